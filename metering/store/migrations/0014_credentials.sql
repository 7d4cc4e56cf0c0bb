-- Who may connect to the broker, what each may do there, and views that a broker reads that by itself.

ALTER TABLE tenant ADD CONSTRAINT tenant_id_is_safe_in_topics
    CHECK (tenant_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$');
ALTER TABLE device ADD CONSTRAINT device_id_is_safe_in_topics
    CHECK (device_id ~ '^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$');

CREATE TABLE broker_client (
    device_no           bigint PRIMARY KEY REFERENCES device,
    password_digest     bytea,
    password_salt       text,
    password_iterations integer,
    created_at          timestamptz NOT NULL,
    revoked_at          timestamptz,
    told                text CONSTRAINT told_is_a_right CHECK (told IN ('publish', 'listen', 'none')),
    look_at             timestamptz,
    CONSTRAINT password_is_whole CHECK (num_nulls(password_digest, password_salt, password_iterations) IN (0, 3))
);
COMMENT ON TABLE broker_client IS 'Devices that were given a credential at the broker, one row each.';
COMMENT ON COLUMN broker_client.told IS 'Which right the broker was last told; NULL: none yet, or not known.';
COMMENT ON COLUMN broker_client.look_at IS 'When the right may differ from what was told; NULL: not until a state changes.';
CREATE INDEX broker_client_to_look_at ON broker_client (look_at) WHERE look_at IS NOT NULL;

CREATE TABLE device_certificate (
    serial     text PRIMARY KEY CONSTRAINT serial_is_hexadecimal CHECK (serial ~ '^[0-9a-f]{1,40}$'),
    device_no  bigint NOT NULL REFERENCES device,
    issued_at  timestamptz NOT NULL,
    not_after  timestamptz NOT NULL,
    revoked_at timestamptz
);
CREATE INDEX device_certificate_by_device ON device_certificate (device_no);
CREATE INDEX device_certificate_revoked ON device_certificate (not_after) WHERE revoked_at IS NOT NULL;

CREATE TABLE device_claim (
    device_no      bigint PRIMARY KEY REFERENCES device,
    announced_at   timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    request_digest bytea,
    certificate    text,
    claimed_at     timestamptz,
    is_open        boolean NOT NULL DEFAULT true,
    CONSTRAINT claimed_by_one_request CHECK ((request_digest IS NULL) = (claimed_at IS NULL))
);
COMMENT ON TABLE device_claim IS 'Devices that were announced as coming with a factory certificate, and what became of it.';
COMMENT ON COLUMN device_claim.request_digest IS 'SHA-256 of the request that was granted: the same one is answered again, no other.';
COMMENT ON COLUMN device_claim.is_open IS 'Whether the broker still lets the device in to claim.';
CREATE INDEX device_claim_open ON device_claim (expires_at) WHERE is_open;

-- What a device may do at an instant: its credential and its state then.
CREATE FUNCTION broker_right(device bigint, revoked timestamptz, at timestamptz) RETURNS text
LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN revoked IS NOT NULL THEN 'none'
        ELSE CASE (SELECT state FROM device_state_change
                   WHERE device_no = device AND effective_from <= at
                   ORDER BY effective_from DESC LIMIT 1)
            WHEN 'suspended' THEN 'listen'
            WHEN 'retired' THEN 'none'
            ELSE 'publish'
        END
    END
$$;

-- A change of state reaches the broker from the transaction that makes it: whoever tells the broker
-- looks at the device when the change takes effect.
CREATE FUNCTION look_at_rights() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE broker_client AS client SET look_at = least(client.look_at, said.effective_from)
    FROM (SELECT device_no, min(effective_from) AS effective_from FROM changed GROUP BY device_no) AS said
    WHERE client.device_no = said.device_no;
    IF FOUND THEN
        PERFORM pg_notify('fleetmeter_outbox', '');
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER rights_follow_new_states AFTER INSERT ON device_state_change
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION look_at_rights();
CREATE TRIGGER rights_follow_changed_states AFTER UPDATE ON device_state_change
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION look_at_rights();

-- For a broker that looks here itself (broker_config/emqx). The salt goes before the password, as text.
CREATE VIEW broker_authentication AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    encode(client.password_digest, 'hex') AS password_hash,
    client.password_salt AS salt,
    false AS is_superuser
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
WHERE client.password_digest IS NOT NULL
    AND broker_right(client.device_no, client.revoked_at, now()) <> 'none';

CREATE VIEW broker_authorisation AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    'allow' AS permission, rule.action, tenant.tenant_id || '/' || device.device_id || '/' || rule.last AS branch
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
    CROSS JOIN LATERAL (SELECT broker_right(client.device_no, client.revoked_at, now()) AS name) AS held
    JOIN (VALUES
        ('publish', 'usage/#', 'publish'), ('publish', 'quota', 'publish'),
        ('publish', 'command-ack', 'publish'), ('subscribe', 'ack', 'publish'),
        ('subscribe', 'command', 'publish'),
        ('publish', 'command-ack', 'listen'), ('subscribe', 'ack', 'listen'),
        ('subscribe', 'command', 'listen')
    ) AS rule (action, last, name) ON rule.name = held.name;
COMMENT ON COLUMN broker_authorisation.branch IS 'The topic below the root that the deployment chose.';
