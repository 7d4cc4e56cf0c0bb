-- What is told while it happens: a stream for each fleet, and webhooks that can be looked into.

-- The stream --------------------------------------------------------------------------------------

CREATE TABLE stream_entry (
    entry_no    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fleet_no    integer NOT NULL REFERENCES fleet,
    position    bigint CONSTRAINT a_stream_position_is_given_once UNIQUE,
    topic       text NOT NULL CONSTRAINT stream_topic_is_known
                CHECK (topic IN ('alert', 'event', 'command', 'device_state')),
    detail      jsonb NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 80);
COMMENT ON TABLE stream_entry IS 'What readers of a fleet''s stream are told, until it is pruned.';
COMMENT ON COLUMN stream_entry.position IS
    'Its place in the order of the stream, given after it was committed; NULL: not yet.';
CREATE INDEX stream_entry_without_position ON stream_entry (entry_no) WHERE position IS NULL;
CREATE INDEX stream_entry_by_fleet ON stream_entry (fleet_no, position) WHERE position IS NOT NULL;
CREATE INDEX stream_entry_by_age ON stream_entry (recorded_at);

CREATE TABLE stream_head (
    is_the_only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT a_stream_has_one_head CHECK (is_the_only_row),
    position        bigint NOT NULL,
    pruned_to       bigint NOT NULL
);
COMMENT ON COLUMN stream_head.position IS 'The highest position that was given.';
COMMENT ON COLUMN stream_head.pruned_to IS 'The highest position of an entry that is gone.';
INSERT INTO stream_head (position, pruned_to) VALUES (0, 0);

CREATE TABLE balance_version (
    fleet_no integer PRIMARY KEY REFERENCES fleet,
    version  bigint NOT NULL
) WITH (fillfactor = 50);
COMMENT ON COLUMN balance_version.version IS 'Ascends with each change of what the fleet used or may use.';

-- Positions in the order of commits: a number that is drawn earlier may be committed later, so they are
-- given to what is committed, by one at a time. Wants READ COMMITTED, in which each statement sees anew.
CREATE FUNCTION number_stream_entries() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    head bigint;
    given bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM stream_entry WHERE position IS NULL) THEN
        RETURN;
    END IF;
    SELECT stream_head.position INTO head FROM stream_head FOR UPDATE;
    UPDATE stream_entry SET position = head + placed.place
    FROM (SELECT entry_no, row_number() OVER (ORDER BY entry_no) AS place FROM stream_entry
        WHERE position IS NULL) AS placed
    WHERE stream_entry.entry_no = placed.entry_no;
    GET DIAGNOSTICS given = ROW_COUNT;
    UPDATE stream_head SET position = head + given;
END
$$;
CREATE FUNCTION prune_stream(before timestamptz) RETURNS bigint
    LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
DECLARE
    pruned bigint;
    highest bigint;
BEGIN
    PERFORM number_stream_entries(); -- so that who missed something is told so
    WITH gone AS (DELETE FROM stream_entry WHERE recorded_at < before AND position IS NOT NULL
        RETURNING position)
    SELECT count(*), max(position) INTO pruned, highest FROM gone;
    UPDATE stream_head SET pruned_to = greatest(pruned_to, highest) WHERE pruned > 0;
    RETURN pruned;
END
$$;
CREATE FUNCTION balance_versions(fleets integer[], OUT fleet_no integer, OUT version bigint)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT known.fleet_no, known.version FROM balance_version AS known WHERE known.fleet_no = ANY (fleets)
$$;
REVOKE ALL ON FUNCTION number_stream_entries(), prune_stream(timestamptz), balance_versions(integer[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION number_stream_entries(), balance_versions(integer[]) TO fleetmeter_api;

CREATE FUNCTION wake_streams(fleets integer[]) RETURNS void
    LANGUAGE sql SET search_path = public, pg_temp AS $$
    -- More than a notification holds is told without names: whoever listens looks at all.
    SELECT pg_notify('fleetmeter_stream', CASE WHEN cardinality(fleets) <= 500
        THEN 'fleets:' || array_to_string(fleets, ',') ELSE '' END) WHERE cardinality(fleets) > 0
$$;
CREATE FUNCTION instant_text(at timestamptz) RETURNS text LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT (to_json(at AT TIME ZONE 'UTC') #>> '{}') || 'Z'
$$;

CREATE FUNCTION stream_events() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO stream_entry (fleet_no, topic, detail)
    SELECT fleet_no, CASE WHEN kind LIKE 'threshold.%' THEN 'alert' ELSE 'event' END, jsonb_build_object(
        'event_id', event_id, 'kind', kind, 'fleet_id', fleet_id, 'device_id', device_id,
        'payload', payload, 'cause', cause, 'created_at', instant_text(created.created_at))
    FROM created JOIN fleet USING (fleet_no)
        LEFT JOIN (SELECT device_no, device_id FROM device) AS device USING (device_no)
    ORDER BY event_no;
    PERFORM wake_streams(ARRAY(SELECT DISTINCT fleet_no FROM created WHERE fleet_no IS NOT NULL));
    RETURN NULL;
END
$$;
CREATE TRIGGER events_are_streamed AFTER INSERT ON event REFERENCING NEW TABLE AS created
    FOR EACH STATEMENT EXECUTE FUNCTION stream_events();

CREATE FUNCTION stream_commands(numbers bigint[]) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO stream_entry (fleet_no, topic, detail)
    SELECT device.fleet_no, 'command', jsonb_build_object(
        'command_id', command_id, 'number', command_no, 'fleet_id', fleet_id, 'device_id', device_id,
        'kind', kind, 'payload', payload, 'cause', cause, 'state', state,
        'created_at', instant_text(command.created_at), 'sent_at', instant_text(sent_at),
        'acknowledged_at', instant_text(acknowledged_at), 'detail', detail)
    FROM command JOIN device USING (device_no) JOIN fleet ON fleet.fleet_no = device.fleet_no
    WHERE command_no = ANY (numbers) ORDER BY command_no;
    PERFORM wake_streams(ARRAY(SELECT DISTINCT fleet_no FROM command JOIN device USING (device_no)
        WHERE command_no = ANY (numbers)));
END
$$;
CREATE FUNCTION stream_new_commands() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM stream_commands(ARRAY(SELECT command_no FROM changed));
    RETURN NULL;
END
$$;
CREATE FUNCTION stream_changed_commands() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    numbers bigint[] := ARRAY(SELECT command_no FROM changed JOIN previous USING (command_no)
        WHERE changed.state <> previous.state);
BEGIN
    IF cardinality(numbers) > 0 THEN
        PERFORM stream_commands(numbers);
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER new_commands_are_streamed AFTER INSERT ON command REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION stream_new_commands();
CREATE TRIGGER changed_commands_are_streamed AFTER UPDATE ON command
    REFERENCING OLD TABLE AS previous NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION stream_changed_commands();

CREATE FUNCTION stream_device_states() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    -- Not what a device is when it is new: a deployment may make very many at once.
    INSERT INTO stream_entry (fleet_no, topic, detail)
    SELECT device.fleet_no, 'device_state', jsonb_build_object('fleet_id', fleet_id, 'device_id', device_id,
        'state', said.state, 'from', instant_text(effective_from), 'recorded_at', instant_text(recorded_at))
    FROM said JOIN device USING (device_no) JOIN fleet ON fleet.fleet_no = device.fleet_no
    WHERE entry_no > 1 ORDER BY device_no, entry_no;
    PERFORM wake_streams(ARRAY(SELECT DISTINCT fleet_no FROM said JOIN device USING (device_no)
        WHERE entry_no > 1));
    RETURN NULL;
END
$$;
CREATE TRIGGER device_states_are_streamed AFTER INSERT ON device_state_entry REFERENCING NEW TABLE AS said
    FOR EACH STATEMENT EXECUTE FUNCTION stream_device_states();

-- Who changes what a fleet used owns its shard, so no two wait for each other here. No NOTIFY: transactions
-- that notify are committed one by one, and charging is not to wait for that. Readers look now and then.
CREATE FUNCTION note_balance_change() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    INSERT INTO balance_version (fleet_no, version)
    SELECT DISTINCT fleet_no, 1 FROM changed ORDER BY fleet_no
    ON CONFLICT (fleet_no) DO UPDATE SET version = balance_version.version + 1;
    RETURN NULL;
END
$$;
CREATE TRIGGER new_buckets_change_the_balance AFTER INSERT ON bucket REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION note_balance_change();
CREATE TRIGGER changed_buckets_change_the_balance AFTER UPDATE ON bucket REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION note_balance_change();
CREATE TRIGGER new_use_changes_the_balance AFTER INSERT ON meter_use REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION note_balance_change();
CREATE TRIGGER more_use_changes_the_balance AFTER UPDATE ON meter_use REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION note_balance_change();

-- A stream ends when whoever reads it may no longer.
CREATE FUNCTION wake_for_access() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM pg_notify('fleetmeter_stream', 'access');
    RETURN NULL;
END
$$;
CREATE TRIGGER a_revoked_key_ends_streams AFTER UPDATE OF revoked_at ON api_key
    FOR EACH STATEMENT EXECUTE FUNCTION wake_for_access();
CREATE TRIGGER a_disabled_user_ends_streams AFTER UPDATE OF disabled_at ON api_user
    FOR EACH STATEMENT EXECUTE FUNCTION wake_for_access();

-- Webhooks ----------------------------------------------------------------------------------------

ALTER TABLE event ALTER COLUMN fleet_no DROP NOT NULL;
COMMENT ON COLUMN event.fleet_no IS 'Which fleet it concerns; NULL: none, but a webhook endpoint.';
ALTER TABLE webhook_endpoint
    ADD COLUMN previous_secret bytea,
    ADD COLUMN previous_until  timestamptz,
    ADD COLUMN failing_since   timestamptz,
    ADD COLUMN disabled_reason text,
    ADD CONSTRAINT a_previous_secret_has_an_end CHECK ((previous_secret IS NULL) = (previous_until IS NULL));
COMMENT ON COLUMN webhook_endpoint.secret IS
    'Signs what it is told: as it is, or encrypted by the deployment''s key, which its first octets tell.';
COMMENT ON COLUMN webhook_endpoint.previous_secret IS 'Signs beside it until `previous_until`.';
COMMENT ON COLUMN webhook_endpoint.failing_since IS 'When the first attempt failed after which none succeeded.';
CREATE TABLE webhook_attempt (
    attempt_no   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    delivery_no  bigint NOT NULL REFERENCES webhook_delivery ON DELETE CASCADE,
    attempted_at timestamptz NOT NULL,
    status       smallint,
    milliseconds integer NOT NULL,
    error        text
);
COMMENT ON COLUMN webhook_attempt.status IS 'HTTP status of the answer; NULL: none came.';
CREATE INDEX webhook_attempt_by_delivery ON webhook_attempt (delivery_no, attempt_no);
CREATE INDEX webhook_delivery_that_ended ON webhook_delivery (attempted_at) WHERE due_at IS NULL;

-- What the API's role may, and which rows ---------------------------------------------------------

DO $$
DECLARE
    name text;
    condition text;
BEGIN
    FOR name, condition IN VALUES
        ('stream_entry', 'EXISTS (SELECT FROM fleet WHERE fleet.fleet_no = stream_entry.fleet_no)'),
        ('balance_version', 'EXISTS (SELECT FROM fleet WHERE fleet.fleet_no = balance_version.fleet_no)'),
        ('webhook_attempt', 'EXISTS (SELECT FROM webhook_delivery'
            ' WHERE webhook_delivery.delivery_no = webhook_attempt.delivery_no)')
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY a_tenant_reaches_its_own ON %I TO fleetmeter_api USING (%s)',
            name, condition);
        EXECUTE format('GRANT SELECT ON %I TO fleetmeter_api', name);
    END LOOP;
END
$$;
GRANT SELECT ON stream_head TO fleetmeter_api;
