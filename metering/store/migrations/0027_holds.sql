-- A device that flooded is kept away from the broker while it is held: what is refused nobody acknowledges.

ALTER TABLE broker_client DROP CONSTRAINT told_is_a_right, ADD CONSTRAINT told_is_a_right
    CHECK (told IN ('publish', 'listen', 'held', 'none'));

-- Both functions run as their owner: a broker's database role reads the views alone.
CREATE FUNCTION is_held(device bigint, at timestamptz) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT EXISTS (SELECT FROM device_flood
                   WHERE device_no = device AND held_from <= at AND held_until > at)
$$;

-- What a device may do: one that is held may nothing until then, be it suspended or not.
CREATE OR REPLACE FUNCTION broker_right(device bigint, revoked timestamptz, at timestamptz) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN revoked IS NOT NULL THEN 'none'
        ELSE (
            SELECT CASE
                WHEN state = 'retired' THEN 'none'
                WHEN is_held(device, at) THEN 'held'
                WHEN state = 'suspended' THEN 'listen'
                ELSE 'publish'
            END
            FROM (SELECT (SELECT device_state_change.state FROM device_state_change
                          WHERE device_no = device AND effective_from <= at
                          ORDER BY effective_from DESC LIMIT 1)) AS now_is (state)
        )
    END
$$;

-- For a broker that looks here itself: who is held is not let in. Who needs no password there, or is connected
-- already, may no more than listen.
CREATE OR REPLACE VIEW broker_authentication AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    encode(client.password_digest, 'hex') AS password_hash,
    client.password_salt AS salt,
    false AS is_superuser,
    tenant.tenant_id || '/' || device.device_id AS client_id
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
WHERE client.password_digest IS NOT NULL
    AND broker_right(client.device_no, client.revoked_at, now()) NOT IN ('none', 'held')
UNION ALL
SELECT 'claim:' || tenant.tenant_id || '/' || device.device_id,
    encode(claim.code_digest, 'hex'), claim.code_salt, false,
    'claiming:' || tenant.tenant_id || '/' || device.device_id
FROM device_claim AS claim JOIN device USING (device_no) JOIN tenant USING (tenant_no)
WHERE claim.is_open AND claim.expires_at > now() AND claim.code_digest IS NOT NULL
    AND NOT is_held(claim.device_no, now());
CREATE OR REPLACE VIEW broker_authorisation AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    'allow' AS permission, rule.action, tenant.tenant_id || '/' || device.device_id || '/' || rule.last AS branch,
    replace(replace(rule.elsewhere, '{tenant}', tenant.tenant_id), '{device}', device.device_id) AS topic
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
    CROSS JOIN LATERAL (SELECT broker_right(client.device_no, client.revoked_at, now()) AS name) AS held
    JOIN (VALUES
        ('publish', 'usage/#', NULL, 'publish'),
        ('publish', 'quota', NULL, 'publish'),
        ('publish', NULL, 'spBv1.0/{tenant}/+/{device}/#', 'publish'),
        ('publish', NULL, 'v1/devices/me/telemetry', 'publish'),
        ('publish', NULL, 'v1/gateway/telemetry', 'publish'),
        ('publish', 'command-ack', NULL, 'listen'),
        ('subscribe', 'ack', NULL, 'listen'),
        ('subscribe', 'command', NULL, 'listen'),
        ('subscribe', NULL, 'spBv1.0/{tenant}/NCMD/{device}', 'listen'),
        ('subscribe', NULL, 'spBv1.0/STATE/fleetmeter', 'listen')
    ) AS rule (action, last, elsewhere, least)
    ON held.name = 'publish' OR (held.name IN ('listen', 'held') AND rule.least = 'listen')
UNION ALL
SELECT 'claim:' || tenant.tenant_id || '/' || device.device_id, 'allow', rule.action,
    tenant.tenant_id || '/' || device.device_id || '/' || rule.last, NULL
FROM device_claim AS claim JOIN device USING (device_no) JOIN tenant USING (tenant_no)
    CROSS JOIN (VALUES ('publish', 'claim'), ('subscribe', 'claim-answer')) AS rule (action, last)
WHERE claim.is_open AND claim.expires_at > now() AND NOT is_held(claim.device_no, now());
