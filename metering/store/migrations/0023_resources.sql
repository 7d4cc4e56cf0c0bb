-- What the API makes and changes of tenants, fleets, devices, plans and credentials.

ALTER TABLE tenant ADD COLUMN state text NOT NULL DEFAULT 'active'
    CONSTRAINT tenant_state_is_known CHECK (state IN ('active', 'suspended'));
COMMENT ON COLUMN tenant.state IS 'A suspended tenant''s users and keys are let in no more; its usage is charged as ever.';

ALTER TABLE fleet ADD COLUMN labels jsonb NOT NULL DEFAULT '{}'
    CONSTRAINT fleet_labels_are_an_object CHECK (jsonb_typeof(labels) = 'object');
COMMENT ON COLUMN fleet.labels IS 'Text by name, for those who manage the fleet.';

ALTER TABLE device
    ADD COLUMN name   text,
    ADD COLUMN eid    text,
    ADD COLUMN msisdn text,
    ADD COLUMN tags   text[] NOT NULL DEFAULT '{}'
        CONSTRAINT device_tags_are_told CHECK (array_position(tags, NULL) IS NULL),
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}'
        CONSTRAINT device_labels_are_an_object CHECK (jsonb_typeof(labels) = 'object');
COMMENT ON COLUMN device.eid IS 'Of its eUICC.';
COMMENT ON COLUMN device.msisdn IS 'The number at which it is called, digits alone.';
COMMENT ON COLUMN device.tags IS 'Each once, ascending; lists and series of usage may be of those with one.';
COMMENT ON COLUMN device.labels IS 'Text by name, for those who manage the device.';
-- What people say of a device concerns no cache of where its usage goes.
DROP TRIGGER device_advances_registry_version ON device;
CREATE TRIGGER device_advances_registry_version
    AFTER INSERT OR DELETE OR UPDATE OF tenant_no, fleet_no, device_id ON device
    FOR EACH STATEMENT EXECUTE FUNCTION advance_registry_version();
CREATE INDEX device_by_imei ON device (tenant_no, imei) WHERE imei IS NOT NULL;
CREATE INDEX device_by_eid ON device (tenant_no, eid) WHERE eid IS NOT NULL;
CREATE INDEX device_by_msisdn ON device (tenant_no, msisdn) WHERE msisdn IS NOT NULL;

-- A tag finds its devices here: an array's operators are not leakproof, so that an index on them would be of
-- no use under row-level security.
CREATE TABLE device_tag (
    tenant_no integer NOT NULL REFERENCES tenant,
    tag       text NOT NULL,
    device_no bigint NOT NULL REFERENCES device ON DELETE CASCADE,
    PRIMARY KEY (tenant_no, tag, device_no)
);
CREATE INDEX device_tag_by_device ON device_tag (device_no);
COMMENT ON TABLE device_tag IS 'What device.tags says, by tag; a trigger writes it.';
CREATE FUNCTION note_device_tags() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM device_tag WHERE device_no = NEW.device_no AND NOT tag = ANY (NEW.tags);
    INSERT INTO device_tag (tenant_no, tag, device_no)
    SELECT NEW.tenant_no, tag, NEW.device_no FROM unnest(NEW.tags) AS tag ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER new_tags_are_noted AFTER INSERT ON device FOR EACH ROW WHEN (NEW.tags <> '{}')
    EXECUTE FUNCTION note_device_tags();
CREATE TRIGGER changed_tags_are_noted AFTER UPDATE OF tags ON device FOR EACH ROW
    WHEN (NEW.tags IS DISTINCT FROM OLD.tags) EXECUTE FUNCTION note_device_tags();

-- A plan's versions are immutable; when nobody may be subscribed to it any more stands beside them.
CREATE TABLE plan_end (
    tenant_no integer NOT NULL REFERENCES tenant,
    plan_id   text NOT NULL,
    ends_at   timestamptz NOT NULL,
    PRIMARY KEY (tenant_no, plan_id)
);
COMMENT ON COLUMN plan_end.ends_at IS 'No subscription to it begins from then on; those that run go on.';

-- What was made under an idempotency key: so that it is made once.
CREATE TABLE resource_creation (
    tenant_no       integer NOT NULL REFERENCES tenant,
    idempotency_key text NOT NULL,
    operation       text NOT NULL,
    request_digest  bytea NOT NULL,
    made            text NOT NULL,
    recorded_at     timestamptz NOT NULL,
    PRIMARY KEY (tenant_no, idempotency_key)
);
COMMENT ON COLUMN resource_creation.request_digest IS 'SHA-256 of what was asked for: another request is refused.';
COMMENT ON COLUMN resource_creation.made IS 'The number or the id of what was made.';

-- What the API writes from here on, and what is logged of it -----------------------------------------

-- A suspended tenant's keys and users are nobody's.
CREATE OR REPLACE FUNCTION api_key_of(hash bytea, OUT api_key_no integer, OUT tenant_no integer, OUT role text,
    OUT fleets integer[], OUT device_no bigint, OUT expires_at timestamptz, OUT last_used_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT key.api_key_no, key.tenant_no, key.role, key.fleets, key.device_no, key.expires_at, key.last_used_at
    FROM api_key AS key WHERE key.key_hash = hash AND key.revoked_at IS NULL AND NOT EXISTS (
        SELECT FROM tenant WHERE tenant.tenant_no = key.tenant_no AND tenant.state = 'suspended')
$$;
CREATE OR REPLACE FUNCTION api_user_of(given_issuer text, given_subject text, OUT user_no integer,
    OUT tenant_no integer, OUT role text, OUT fleets integer[])
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT known.user_no, known.tenant_no, known.role, known.fleets FROM api_user AS known
    WHERE known.issuer = given_issuer AND known.subject = given_subject AND known.disabled_at IS NULL
        AND NOT EXISTS (
        SELECT FROM tenant WHERE tenant.tenant_no = known.tenant_no AND tenant.state = 'suspended')
$$;

-- Fleets are dealt out to the shards in turn, of whichever tenant they are.
CREATE FUNCTION next_shard(shards integer) RETURNS smallint
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT (count(*) % shards)::smallint FROM fleet
$$;
REVOKE ALL ON FUNCTION next_shard(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION next_shard(integer) TO fleetmeter_api;

DO $$
DECLARE
    name text;
    of_tenant constant text := 'tenant_no = api_tenant()';
BEGIN
    FOREACH name IN ARRAY ARRAY['plan', 'plan_end', 'broker_client', 'device_certificate'] LOOP
        EXECUTE format('CREATE TRIGGER changes_are_noted AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW'
            ' WHEN (coalesce(current_setting(''fleetmeter.audit_entry'', true), '''') <> '''')'
            ' EXECUTE FUNCTION note_change()', name);
    END LOOP;
    FOREACH name IN ARRAY ARRAY['plan_end', 'resource_creation', 'device_tag'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY a_tenant_reaches_its_own ON %I TO fleetmeter_api USING (%s)', name,
            of_tenant || CASE name WHEN 'device_tag'
                THEN ' AND EXISTS (SELECT FROM device WHERE device.device_no = device_tag.device_no)' ELSE '' END);
    END LOOP;
END
$$;
GRANT SELECT ON device_tag TO fleetmeter_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON plan_end TO fleetmeter_api;
GRANT SELECT, INSERT ON resource_creation TO fleetmeter_api;
GRANT UPDATE (expires_at) ON api_key TO fleetmeter_api;
GRANT INSERT, UPDATE (revoked_at) ON device_certificate TO fleetmeter_api;
