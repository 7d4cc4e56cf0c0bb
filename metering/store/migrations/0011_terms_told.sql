-- What is told of changes of terms: when asked again the same, and of what goes through many devices.

-- Charging what is parked, which goes through devices in transactions of its own.
CREATE TABLE parked_charge (
    parked_charge_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no        integer NOT NULL REFERENCES tenant,
    idempotency_key  text NOT NULL,
    request          jsonb NOT NULL,
    begun_at         timestamptz NOT NULL,
    reached_fleet_no integer NOT NULL DEFAULT 0,
    reached_device_no bigint NOT NULL DEFAULT 0,
    charged          bigint NOT NULL DEFAULT 0,
    charges          bigint NOT NULL DEFAULT 0,
    corrections      bigint[] NOT NULL DEFAULT '{}',
    finished_at      timestamptz,
    remaining        jsonb,
    CONSTRAINT parked_usage_is_charged_once_by_a_key UNIQUE (tenant_no, idempotency_key),
    CONSTRAINT what_remains_is_told_at_the_end CHECK ((finished_at IS NULL) = (remaining IS NULL))
);
COMMENT ON COLUMN parked_charge.reached_device_no IS
    'All devices up to this one of the fleet reached, and of fleets before it, are dealt with.';
COMMENT ON COLUMN parked_charge.charged IS 'Readings that were parked and are charged now.';
COMMENT ON COLUMN parked_charge.remaining IS 'How many readings are parked still, by reason; NULL: it is under way.';

-- What came of a change of terms, so that a request that comes again is answered as it was first.
ALTER TABLE correction
    ADD COLUMN takes_effect_at timestamptz,
    ADD COLUMN changed integer NOT NULL DEFAULT 0,
    ADD COLUMN charges bigint NOT NULL DEFAULT 0,
    ADD COLUMN unparked bigint NOT NULL DEFAULT 0,
    ADD COLUMN parked bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN correction.takes_effect_at IS
    'When it holds for all its devices, where a plan that is left says otherwise; NULL: effective_from.';
COMMENT ON COLUMN correction.changed IS
    'Subscriptions, states or devices that are otherwise than before; 0 of changes before this schema.';
COMMENT ON COLUMN correction.unparked IS
    'Readings that were parked and were dealt with again; 0 of changes before this schema.';
UPDATE correction SET charges = counted.charges
FROM (SELECT correction_no, count(*) AS charges FROM charge_correction GROUP BY correction_no) AS counted
WHERE counted.correction_no = correction.correction_no;

-- What was said of each device's states, in the order in which it was said. `device_state_change` is what
-- holds of it: of several that are dated the same, the last.
CREATE TABLE device_state_entry (
    device_no      bigint NOT NULL REFERENCES device,
    entry_no       integer NOT NULL CONSTRAINT states_are_numbered_from_one CHECK (entry_no >= 1),
    effective_from timestamptz NOT NULL,
    state          text NOT NULL,
    recorded_at    timestamptz NOT NULL,
    PRIMARY KEY (device_no, entry_no)
);
COMMENT ON COLUMN device_state_entry.entry_no IS 'Its place among those of its device: 1, 2, 3, … without a gap.';
INSERT INTO device_state_entry (device_no, entry_no, effective_from, state, recorded_at)
SELECT device_no, row_number() OVER (PARTITION BY device_no ORDER BY recorded_at, effective_from),
    effective_from, state, recorded_at FROM device_state_change;
CREATE TRIGGER device_state_entry_is_immutable
    BEFORE UPDATE OR DELETE ON device_state_entry FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER device_state_entries_stay
    BEFORE TRUNCATE ON device_state_entry FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER device_state_change_stays
    BEFORE DELETE ON device_state_change FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER device_state_changes_stay
    BEFORE TRUNCATE ON device_state_change FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
