-- Who may see and change what: users and keys with a role, and row-level security beneath the API.

-- Role of the API's connections. It owns nothing and cannot bypass row-level security. Roles belong to the
-- whole server, so it may be there already; `migrate` lets it log in.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fleetmeter_api') THEN
        CREATE ROLE fleetmeter_api NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEDB NOCREATEROLE NOREPLICATION;
    END IF;
EXCEPTION WHEN duplicate_object OR unique_violation THEN
    NULL; -- another database of the server is migrated at the same time
END
$$;

-- People, known by what an OpenID Connect issuer says. A tenant's, or the platform's own.
CREATE TABLE api_user (
    user_no     integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no   integer REFERENCES tenant,
    issuer      text NOT NULL,
    subject     text NOT NULL,
    name        text NOT NULL,
    role        text NOT NULL,
    fleets      integer[],
    created_at  timestamptz NOT NULL,
    disabled_at timestamptz,
    CONSTRAINT an_issuers_subject_is_one_user UNIQUE (issuer, subject),
    CONSTRAINT user_role_is_known CHECK (role IN
        ('platform_operator', 'tenant_admin', 'billing', 'fleet_manager', 'read_only')),
    CONSTRAINT the_platforms_users_are_operators CHECK ((tenant_no IS NULL) = (role = 'platform_operator')),
    CONSTRAINT a_fleet_managers_fleets_are_named CHECK (role <> 'fleet_manager' OR fleets IS NOT NULL)
);
CREATE INDEX api_user_by_tenant ON api_user (tenant_no, user_no);
COMMENT ON COLUMN api_user.fleets IS 'The only fleets that it reaches; NULL: all of the tenant.';

ALTER TABLE api_key
    ALTER COLUMN tenant_no DROP NOT NULL,
    ADD COLUMN role         text NOT NULL DEFAULT 'tenant_admin' CONSTRAINT key_role_is_known CHECK (role IN
        ('platform_operator', 'tenant_admin', 'billing', 'fleet_manager', 'read_only', 'device')),
    ADD COLUMN fleets       integer[],
    ADD COLUMN device_no    bigint REFERENCES device,
    ADD COLUMN expires_at   timestamptz,
    ADD COLUMN last_used_at timestamptz,
    ADD CONSTRAINT the_platforms_keys_are_operators CHECK ((tenant_no IS NULL) = (role = 'platform_operator')),
    ADD CONSTRAINT a_fleet_managers_keys_name_fleets CHECK (role <> 'fleet_manager' OR fleets IS NOT NULL),
    ADD CONSTRAINT a_devices_key_names_it CHECK ((role = 'device') = (device_no IS NOT NULL));
CREATE INDEX api_key_by_tenant ON api_key (tenant_no, api_key_no);
COMMENT ON COLUMN api_key.fleets IS 'The only fleets that it reaches; NULL: all of the tenant.';

-- For whom the API's transaction speaks ------------------------------------------------------------
-- It says so by settings of the transaction: fleetmeter.tenant_no; fleetmeter.fleets and
-- fleetmeter.device_no, where the caller is limited to some; fleetmeter.platform, where it is the platform.

CREATE FUNCTION api_tenant() RETURNS integer LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('fleetmeter.tenant_no', true), '')::integer
$$;
CREATE FUNCTION api_fleets() RETURNS integer[] LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('fleetmeter.fleets', true), '')::integer[]
$$;
CREATE FUNCTION api_device() RETURNS bigint LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('fleetmeter.device_no', true), '')::bigint
$$;
CREATE FUNCTION api_platform() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT nullif(current_setting('fleetmeter.platform', true), '')
$$;

-- What has to be known before the tenant is; nothing but this is seen without one.
CREATE FUNCTION api_key_of(hash bytea, OUT api_key_no integer, OUT tenant_no integer, OUT role text,
    OUT fleets integer[], OUT device_no bigint, OUT expires_at timestamptz, OUT last_used_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT key.api_key_no, key.tenant_no, key.role, key.fleets, key.device_no, key.expires_at, key.last_used_at
    FROM api_key AS key WHERE key.key_hash = hash AND key.revoked_at IS NULL
$$;
CREATE FUNCTION api_user_of(given_issuer text, given_subject text, OUT user_no integer, OUT tenant_no integer,
    OUT role text, OUT fleets integer[])
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT known.user_no, known.tenant_no, known.role, known.fleets FROM api_user AS known
    WHERE known.issuer = given_issuer AND known.subject = given_subject AND known.disabled_at IS NULL
$$;
CREATE FUNCTION note_api_key_use(number integer, at timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE api_key SET last_used_at = at WHERE api_key_no = number AND (last_used_at IS NULL OR last_used_at < at)
$$;
CREATE FUNCTION tenant_of_payment(given_request uuid, given_intent text) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT tenant_no FROM payment_request WHERE request_id = given_request OR request_no =
        (SELECT request_no FROM provider_payment WHERE intent_id = given_intent) LIMIT 1
$$;
CREATE FUNCTION charging_queue(OUT work_items bigint, OUT readings bigint, OUT oldest_received_at timestamptz)
    LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT count(*), coalesce(sum(work_item.readings), 0),
        (SELECT min(reading.received_at) FROM (SELECT oldest.batch_no, oldest.measured_from, oldest.measured_to
            FROM work_item AS oldest ORDER BY oldest.work_item_no LIMIT 1) AS first
        JOIN reading ON reading.batch_no = first.batch_no
            AND reading.measured_at BETWEEN first.measured_from AND first.measured_to)
    FROM work_item
$$;
REVOKE ALL ON FUNCTION api_key_of(bytea), api_user_of(text, text), note_api_key_use(integer, timestamptz),
    tenant_of_payment(uuid, text), charging_queue() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION api_key_of(bytea), api_user_of(text, text), note_api_key_use(integer, timestamptz),
    tenant_of_payment(uuid, text), charging_queue() TO fleetmeter_api;

-- Who changed what --------------------------------------------------------------------------------

CREATE TABLE audit_entry (
    entry_no   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no  integer REFERENCES tenant,
    at         timestamptz NOT NULL,
    role       text NOT NULL,
    api_key_no integer REFERENCES api_key,
    user_no    integer REFERENCES api_user,
    operation  text NOT NULL,
    target     jsonb NOT NULL,
    request    jsonb,
    CONSTRAINT somebody_did_it CHECK (num_nonnulls(api_key_no, user_no) = 1)
);
CREATE INDEX audit_entry_by_tenant ON audit_entry (tenant_no, entry_no DESC);
COMMENT ON COLUMN audit_entry.target IS 'What its address names.';
COMMENT ON COLUMN audit_entry.request IS 'Its body; NULL where it has none, or where it is no JSON object.';
CREATE TABLE audit_change (
    change_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entry_no  bigint NOT NULL REFERENCES audit_entry,
    tenant_no integer REFERENCES tenant,
    relation  text NOT NULL,
    before    jsonb,
    after     jsonb
);
CREATE INDEX audit_change_by_entry ON audit_change (entry_no, change_no);
COMMENT ON COLUMN audit_change.before IS 'The row as it was; NULL: it is new.';
COMMENT ON COLUMN audit_change.after IS 'The row as it is since; NULL: it is gone.';
CREATE TRIGGER audit_entry_is_immutable
    BEFORE UPDATE OR DELETE ON audit_entry FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_entries_stay BEFORE TRUNCATE ON audit_entry FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_change_is_immutable
    BEFORE UPDATE OR DELETE ON audit_change FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_changes_stay BEFORE TRUNCATE ON audit_change FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    hidden constant text[] := '{secret,previous_secret,key_hash,password_digest,password_salt}';
    before jsonb;
    after jsonb;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        before := to_jsonb(OLD) - hidden;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after := to_jsonb(NEW) - hidden;
    END IF;
    IF before IS DISTINCT FROM after THEN
        INSERT INTO audit_change (entry_no, tenant_no, relation, before, after)
        VALUES (current_setting('fleetmeter.audit_entry')::bigint, api_tenant(), TG_TABLE_NAME, before, after);
    END IF;
    RETURN NULL;
END
$$;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['tenant', 'api_user', 'api_key', 'fleet', 'device', 'device_state_change',
        'device_sim', 'device_move', 'subscription', 'correction', 'tenant_billing', 'number_series', 'tax_rule',
        'fleet_billing', 'bill', 'bill_adjustment', 'dispute', 'payment', 'account_entry', 'wallet',
        'payment_request', 'payment_policy', 'threshold', 'threshold_change', 'webhook_endpoint',
        'webhook_delivery', 'command', 'reservation', 'balance_operation', 'parked_charge', 'payload_mapping']
    LOOP
        EXECUTE format('CREATE TRIGGER changes_are_noted AFTER INSERT OR UPDATE OR DELETE ON %I FOR EACH ROW'
            ' WHEN (coalesce(current_setting(''fleetmeter.audit_entry'', true), '''') <> '''')'
            ' EXECUTE FUNCTION note_change()', name);
    END LOOP;
END
$$;

-- What the API's role may, and which rows --------------------------------------------------------

GRANT USAGE ON SCHEMA public TO fleetmeter_api;
GRANT SELECT ON charging_shard, charging_worker, registry_version, schema_migration TO fleetmeter_api;
GRANT UPDATE (shard_no) ON charging_shard TO fleetmeter_api; -- to lock a row
GRANT UPDATE ON registry_version TO fleetmeter_api;
GRANT SELECT, INSERT ON work_item TO fleetmeter_api;
GRANT INSERT ON provider_event TO fleetmeter_api;
GRANT SELECT ON posting, account_posting TO fleetmeter_api;
ALTER VIEW posting SET (security_invoker = true);
ALTER VIEW account_posting SET (security_invoker = true);

DO $$
DECLARE
    of_tenant constant text := 'tenant_no = api_tenant()';
    of_fleet constant text := '(api_fleets() IS NULL OR fleet_no = ANY (api_fleets()))';
    condition text;
    name text;
    condition_of constant jsonb := jsonb_build_object(
        of_tenant, '{tenant_billing,number_series,number_counter,tax_rule,plan,payload_mapping,payment_policy,
            billing_operation,parked_charge,webhook_endpoint,sparkplug_birth}'::text[],
        of_tenant || ' OR api_platform() = ''operator''', '{tenant}'::text[],
        of_tenant || ' OR tenant_no IS NULL AND api_platform() = ''operator''',
            '{api_user,api_key,audit_entry,audit_change}'::text[],
        of_tenant || ' AND ' || of_fleet,
            '{fleet,alert,balance_operation,bill,bill_adjustment,event,payment,payment_request,
            payment_suspension,threshold}'::text[],
        of_tenant || ' AND ' || of_fleet || ' AND (api_device() IS NULL OR device_no = api_device())',
            '{device}'::text[],
        of_tenant || ' AND (api_fleets() IS NULL OR EXISTS (SELECT FROM device WHERE device.device_no ='
            ' %1$I.device_no))', '{command,device_sim,rejected}'::text[],
        of_tenant || ' AND (api_fleets() IS NULL OR EXISTS (SELECT FROM correction_device WHERE'
            ' correction_device.correction_no = %1$I.correction_no))', '{correction}'::text[],
        of_tenant || ' AND EXISTS (SELECT FROM bill WHERE bill.bill_no = %1$I.bill_no)', '{dispute}'::text[],
        'EXISTS (SELECT FROM fleet WHERE fleet.fleet_no = %1$I.fleet_no)',
            '{account_entry,bucket,charge,charge_correction,closed_cycle,fleet_billing,fleet_cycle,meter_use,
            noted_adjustment,parked,period_adjustment,rating_count,reservation,subscription,superseded_charge,
            threshold_tally,usage_hour,wallet}'::text[],
        'EXISTS (SELECT FROM device WHERE device.device_no = %1$I.device_no)',
            '{anomaly,boot,broker_client,compared_reading,correction_device,counter,device_certificate,
            device_claim,device_move,device_state_change,device_state_entry,payment_suspension_device,
            reading}'::text[],
        -- Not by its device, which may be none: the fleet as a whole.
        'EXISTS (SELECT FROM threshold_tally WHERE threshold_tally.tally_no = %1$I.tally_no)',
            '{threshold_count}'::text[],
        'EXISTS (SELECT FROM boot WHERE boot.boot_no = %1$I.boot_no)', '{reading_identity}'::text[],
        'EXISTS (SELECT FROM subscription WHERE subscription.subscription_no = %1$I.subscription_no)',
            '{subscription_entry}'::text[],
        'EXISTS (SELECT FROM bucket WHERE bucket.bucket_no = %1$I.bucket_no)',
            '{bucket_entry,bucket_hold,pool_draw}'::text[],
        'EXISTS (SELECT FROM bill WHERE bill.bill_no = %1$I.bill_no)', '{payment_reminder}'::text[],
        'EXISTS (SELECT FROM threshold WHERE threshold.threshold_no = %1$I.threshold_no)',
            '{threshold_change}'::text[],
        -- Not by its event, which the same statement may have made: a policy does not see that yet.
        'EXISTS (SELECT FROM webhook_endpoint WHERE webhook_endpoint.endpoint_no = %1$I.endpoint_no)'
            ' AND (api_fleets() IS NULL OR EXISTS (SELECT FROM event WHERE event.event_no = %1$I.event_no))',
            '{webhook_delivery}'::text[],
        'CASE WHEN request_no IS NULL THEN api_platform() = ''provider'' ELSE EXISTS (SELECT FROM payment_request'
            ' WHERE payment_request.request_no = %1$I.request_no) END', '{provider_payment}'::text[]);
BEGIN
    FOR condition, name IN
        SELECT key, jsonb_array_elements_text(value) FROM jsonb_each(condition_of)
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY a_tenant_reaches_its_own ON %1$I TO fleetmeter_api USING ('
            || condition || ')', name);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %I TO fleetmeter_api', name);
    END LOOP;
    FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
        EXECUTE format('GRANT USAGE, SELECT ON SEQUENCE %I TO fleetmeter_api', name);
    END LOOP;
END
$$;

-- A device is in a fleet that its writer sees.
ALTER POLICY a_tenant_reaches_its_own ON device WITH CHECK (tenant_no = api_tenant()
    AND EXISTS (SELECT FROM fleet WHERE fleet.fleet_no = device.fleet_no)
    AND (api_device() IS NULL OR device_no = api_device()));

-- What writes the log is called by its triggers alone, none of which the role may make.
REVOKE ALL ON FUNCTION note_change() FROM PUBLIC;

-- A key's hash is compared in `api_key_of`, and shown to nobody; what is logged stays as it is.
REVOKE SELECT, UPDATE, DELETE ON api_key FROM fleetmeter_api;
GRANT SELECT (api_key_no, tenant_no, label, created_at, revoked_at, role, fleets, device_no, expires_at,
    last_used_at), UPDATE (revoked_at) ON api_key TO fleetmeter_api;
REVOKE UPDATE, DELETE ON audit_entry, audit_change FROM fleetmeter_api;
REVOKE INSERT ON audit_change FROM fleetmeter_api; -- its trigger alone writes it
REVOKE INSERT, UPDATE, DELETE ON device_certificate, device_claim FROM fleetmeter_api;

-- TimescaleDB gives each chunk the rights of its hypertable, but not its policies: the role must not be able
-- to name a chunk. So chunks live in a schema that it may not enter.
CREATE SCHEMA chunk;
DO $$
DECLARE
    one record;
BEGIN
    UPDATE _timescaledb_catalog.hypertable SET associated_schema_name = 'chunk' WHERE schema_name = 'public';
    FOR one IN SELECT chunk_schema, chunk_name FROM timescaledb_information.chunks
        WHERE hypertable_schema = 'public' AND chunk_schema <> 'chunk'
    LOOP
        EXECUTE format('ALTER TABLE %I.%I SET SCHEMA chunk', one.chunk_schema, one.chunk_name);
    END LOOP;
    REVOKE SELECT ON pg_catalog.pg_stats FROM PUBLIC; -- values of chunks stand there, too
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'chunks stay where they are: moving them takes a superuser (docs/operations.md)';
END
$$;
