-- A suspended device is kept away from the broker as one that is held is: what the broker refused amid a connection,
-- it would acknowledge over MQTT 3.1.1, and whoever forgets at that would lose it.

ALTER TABLE broker_client DROP CONSTRAINT told_is_a_right;
UPDATE broker_client SET told = 'suspended' WHERE told = 'listen';
ALTER TABLE broker_client ADD CONSTRAINT told_is_a_right
    CHECK (told IN ('publish', 'suspended', 'held', 'none'));

-- One that is both is suspended: that does not end by itself.
CREATE OR REPLACE FUNCTION broker_right(device bigint, revoked timestamptz, at timestamptz) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT CASE
        WHEN revoked IS NOT NULL THEN 'none'
        ELSE (
            SELECT CASE
                WHEN state = 'retired' THEN 'none'
                WHEN state = 'suspended' THEN 'suspended'
                WHEN is_held(device, at) THEN 'held'
                ELSE 'publish'
            END
            FROM (SELECT (SELECT device_state_change.state FROM device_state_change
                          WHERE device_no = device AND effective_from <= at
                          ORDER BY effective_from DESC LIMIT 1)) AS now_is (state)
        )
    END
$$;

-- For a broker that looks here itself: who is kept away is not let in, and whoever is connected already, or needs no
-- password, may do nothing. It ends the connection of who tries.
CREATE OR REPLACE VIEW broker_authentication AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    encode(client.password_digest, 'hex') AS password_hash,
    client.password_salt AS salt,
    false AS is_superuser,
    tenant.tenant_id || '/' || device.device_id AS client_id
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
WHERE client.password_digest IS NOT NULL
    AND broker_right(client.device_no, client.revoked_at, now()) = 'publish'
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
    CROSS JOIN (VALUES
        ('publish', 'usage/#', NULL),
        ('publish', 'quota', NULL),
        ('publish', 'command-ack', NULL),
        ('publish', NULL, 'spBv1.0/{tenant}/+/{device}/#'),
        ('publish', NULL, 'v1/devices/me/telemetry'),
        ('publish', NULL, 'v1/gateway/telemetry'),
        ('subscribe', 'ack', NULL),
        ('subscribe', 'command', NULL),
        ('subscribe', NULL, 'spBv1.0/{tenant}/NCMD/{device}'),
        ('subscribe', NULL, 'spBv1.0/STATE/fleetmeter')
    ) AS rule (action, last, elsewhere)
WHERE broker_right(client.device_no, client.revoked_at, now()) = 'publish'
UNION ALL
SELECT 'claim:' || tenant.tenant_id || '/' || device.device_id, 'allow', rule.action,
    tenant.tenant_id || '/' || device.device_id || '/' || rule.last, NULL
FROM device_claim AS claim JOIN device USING (device_no) JOIN tenant USING (tenant_no)
    CROSS JOIN (VALUES ('publish', 'claim'), ('subscribe', 'claim-answer')) AS rule (action, last)
WHERE claim.is_open AND claim.expires_at > now() AND NOT is_held(claim.device_no, now());
