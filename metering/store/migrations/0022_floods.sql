-- Devices that sent more than they may, and for how long each then publishes nothing.

CREATE TABLE device_flood (
    device_no  bigint NOT NULL REFERENCES device,
    held_from  timestamptz NOT NULL,
    held_until timestamptz NOT NULL,
    messages   bigint NOT NULL,
    octets     bigint NOT NULL,
    seconds    double precision NOT NULL,
    PRIMARY KEY (device_no, held_from),
    CONSTRAINT a_flooding_device_is_held_for_a_while CHECK (held_until > held_from)
);
COMMENT ON TABLE device_flood IS 'Floods: a device sent more than it may, and has no right to publish for a while.';
COMMENT ON COLUMN device_flood.messages IS 'How many of its messages, with how many octets, came within so many seconds.';

ALTER TABLE device_flood ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON device_flood TO fleetmeter_api
    USING (EXISTS (SELECT FROM device WHERE device.device_no = device_flood.device_no));
GRANT SELECT ON device_flood TO fleetmeter_api;

-- A device that is held hears commands and answers them, as a suspended one does.
CREATE OR REPLACE FUNCTION broker_right(device bigint, revoked timestamptz, at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN revoked IS NOT NULL THEN 'none'
        ELSE CASE (SELECT state FROM device_state_change
                   WHERE device_no = device AND effective_from <= at
                   ORDER BY effective_from DESC LIMIT 1)
            WHEN 'suspended' THEN 'listen'
            WHEN 'retired' THEN 'none'
            ELSE CASE WHEN EXISTS (SELECT FROM device_flood
                                   WHERE device_no = device AND held_from <= at AND held_until > at)
                THEN 'listen' ELSE 'publish' END
        END
    END
$$;

-- When a device's right may change next by what is known: a dated state, or the end of its being held.
CREATE FUNCTION broker_right_changes_at(device bigint, at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE AS $$
    SELECT least(
        (SELECT min(effective_from) FROM device_state_change WHERE device_no = device AND effective_from > at),
        (SELECT min(held_until) FROM device_flood WHERE device_no = device AND held_until > at))
$$;

ALTER TABLE command DROP CONSTRAINT command_kind_is_known, ADD CONSTRAINT command_kind_is_known
    CHECK (kind IN ('balance', 'throttle', 'suspend', 'resume', 'grant', 'hold'));

-- Claims at a broker that looks here itself: who was announced gets in by its code, under one client id.
ALTER TABLE device_claim
    ADD COLUMN code_digest bytea,
    ADD COLUMN code_salt text,
    ADD COLUMN code_iterations integer,
    ADD CONSTRAINT code_is_whole CHECK (num_nulls(code_digest, code_salt, code_iterations) IN (0, 3));
COMMENT ON COLUMN device_claim.code_digest IS 'Of the code by which the device claims; NULL: announced before this was kept.';

CREATE OR REPLACE VIEW broker_authentication AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    encode(client.password_digest, 'hex') AS password_hash,
    client.password_salt AS salt,
    false AS is_superuser,
    tenant.tenant_id || '/' || device.device_id AS client_id
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
WHERE client.password_digest IS NOT NULL
    AND broker_right(client.device_no, client.revoked_at, now()) <> 'none'
UNION ALL
SELECT 'claim:' || tenant.tenant_id || '/' || device.device_id,
    encode(claim.code_digest, 'hex'), claim.code_salt, false,
    'claiming:' || tenant.tenant_id || '/' || device.device_id
FROM device_claim AS claim JOIN device USING (device_no) JOIN tenant USING (tenant_no)
WHERE claim.is_open AND claim.expires_at > now() AND claim.code_digest IS NOT NULL;
COMMENT ON COLUMN broker_authentication.client_id IS 'The only one under which it may connect.';

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
    ON held.name = 'publish' OR (held.name = 'listen' AND rule.least = 'listen')
UNION ALL
SELECT 'claim:' || tenant.tenant_id || '/' || device.device_id, 'allow', rule.action,
    tenant.tenant_id || '/' || device.device_id || '/' || rule.last, NULL
FROM device_claim AS claim JOIN device USING (device_no) JOIN tenant USING (tenant_no)
    CROSS JOIN (VALUES ('publish', 'claim'), ('subscribe', 'claim-answer')) AS rule (action, last)
WHERE claim.is_open AND claim.expires_at > now();
