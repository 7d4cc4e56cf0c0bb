-- Terms that change at a past or a future instant, and charges that are rated again because of it.

-- A device that moves to another fleet has subscriptions in several.
ALTER TABLE subscription ADD COLUMN fleet_no integer REFERENCES fleet;
UPDATE subscription SET fleet_no = device.fleet_no FROM device
WHERE device.device_no = subscription.device_no;
ALTER TABLE subscription ALTER COLUMN fleet_no SET NOT NULL;
CREATE INDEX subscription_by_fleet ON subscription (fleet_no, device_no);
-- One to which a change left no time at all is kept, empty: what was granted for it names it.
ALTER TABLE subscription DROP CONSTRAINT subscription_begins;
ALTER TABLE subscription ADD CONSTRAINT subscription_begins CHECK (isempty(valid)
    OR (lower(valid) IS NOT NULL AND lower_inc(valid) AND NOT upper_inc(valid)));

-- Which SIM was in a device, and when. Readings are a device's, whatever SIM carried them.
CREATE TABLE device_sim (
    tenant_no   integer NOT NULL REFERENCES tenant,
    device_no   bigint NOT NULL REFERENCES device,
    iccid       text NOT NULL,
    imsi        text,
    valid       tstzrange NOT NULL,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT a_sim_begins CHECK (NOT isempty(valid) AND lower(valid) IS NOT NULL
        AND lower_inc(valid) AND NOT upper_inc(valid)),
    CONSTRAINT a_device_has_one_sim_at_a_time EXCLUDE USING gist (device_no WITH =, valid WITH &&),
    CONSTRAINT a_sim_is_in_one_device_at_a_time
        EXCLUDE USING gist (tenant_no WITH =, iccid WITH =, valid WITH &&)
);
INSERT INTO device_sim (tenant_no, device_no, iccid, imsi, valid, recorded_at)
SELECT tenant_no, device_no, iccid, imsi, tstzrange(created_at, NULL), created_at FROM device
WHERE iccid IS NOT NULL;

-- Devices that are to be in another fleet from an instant on; its subscriptions there begin then.
CREATE TABLE device_move (
    device_no      bigint NOT NULL REFERENCES device,
    effective_from timestamptz NOT NULL,
    fleet_no       integer NOT NULL REFERENCES fleet,
    PRIMARY KEY (device_no, effective_from)
);
CREATE INDEX device_move_by_time ON device_move (effective_from);

-- A change of terms. What it changed of charges, grants and balances names it.
CREATE TABLE correction (
    correction_no   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no       integer NOT NULL REFERENCES tenant,
    cause           text NOT NULL CONSTRAINT correction_cause_is_known CHECK (cause IN
                    ('subscription', 'plan_change', 'subscription_end', 'state_change', 'fleet_change',
                     'sim_swap', 'parked')),
    detail          jsonb NOT NULL,
    effective_from  timestamptz NOT NULL,
    place_run_no    bigint NOT NULL,
    place_position  integer NOT NULL,
    run_no          bigint NOT NULL,
    recorded_at     timestamptz NOT NULL,
    idempotency_key text,
    CONSTRAINT a_change_is_made_once UNIQUE (tenant_no, idempotency_key)
);
COMMENT ON COLUMN correction.place_run_no IS 'What it grants counts from that place in the history on.';
COMMENT ON COLUMN correction.run_no IS 'The run in which it was made.';

CREATE TABLE correction_device (
    correction_no bigint NOT NULL REFERENCES correction,
    device_no     bigint NOT NULL REFERENCES device,
    PRIMARY KEY (correction_no, device_no)
);
CREATE INDEX correction_by_device ON correction_device (device_no, correction_no DESC);

-- A charge that was made again stands here as it was; `charge` holds what counts.
ALTER TABLE charge ADD COLUMN correction_no bigint;
COMMENT ON COLUMN charge.correction_no IS 'The change because of which it was made again; NULL: none.';
CREATE TABLE superseded_charge (LIKE charge);
ALTER TABLE superseded_charge ADD COLUMN superseded_by bigint NOT NULL REFERENCES correction;
CREATE INDEX superseded_charge_by_reading ON superseded_charge (boot_no, seq, measured_at);
CREATE TRIGGER superseded_charge_is_immutable
    BEFORE UPDATE OR DELETE ON superseded_charge
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- What a change made of one charge: the new one less the old one.
CREATE TABLE charge_correction (
    correction_no     bigint NOT NULL REFERENCES correction,
    boot_no           bigint NOT NULL,
    seq               bigint NOT NULL,
    part              smallint NOT NULL,
    measured_at       timestamptz NOT NULL,
    fleet_no          integer NOT NULL REFERENCES fleet,
    device_no         bigint NOT NULL,
    cycle_start       timestamptz NOT NULL,
    quantity          bigint NOT NULL,
    amount            numeric(76, 0) NOT NULL,
    subunits_per_unit numeric(76, 0) NOT NULL,
    PRIMARY KEY (correction_no, boot_no, seq, part, fleet_no, cycle_start)
);
CREATE INDEX charge_correction_by_reading ON charge_correction (boot_no, seq);
CREATE INDEX charge_correction_by_fleet ON charge_correction (fleet_no, cycle_start);
CREATE TRIGGER charge_correction_is_immutable
    BEFORE UPDATE OR DELETE ON charge_correction
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- A grant that a change made larger or smaller. A lot may then have less than was used of it.
ALTER TABLE bucket ADD COLUMN taken_back numeric(38, 0) NOT NULL DEFAULT 0;
COMMENT ON COLUMN bucket.taken_back IS 'What changes took of it, of which some may have been used.';
ALTER TABLE bucket DROP CONSTRAINT bucket_is_not_overdrawn;
ALTER TABLE bucket ADD CONSTRAINT bucket_is_not_overdrawn CHECK (used <= granted + taken_back);
ALTER TABLE bucket_entry
    ADD COLUMN correction_no bigint REFERENCES correction,
    ADD COLUMN run_position integer NOT NULL DEFAULT -1;
COMMENT ON COLUMN bucket_entry.run_position IS 'It counts before the reading at that place in its run; -1: before all.';
ALTER TABLE fleet_cycle ADD COLUMN run_position integer NOT NULL DEFAULT -1;
ALTER TABLE bucket_entry DROP CONSTRAINT bucket_entry_kind_is_known;
ALTER TABLE bucket_entry ADD CONSTRAINT bucket_entry_kind_is_known
    CHECK (kind IN ('grant', 'regrant', 'expiry'));
ALTER TABLE bucket_entry DROP CONSTRAINT a_grant_has_a_subscription_and_an_expiry_none;
ALTER TABLE bucket_entry ADD CONSTRAINT a_grant_has_a_subscription_and_an_expiry_none
    CHECK ((kind IN ('grant', 'regrant')) = (subscription_no IS NOT NULL)
        AND (kind <> 'regrant' OR correction_no IS NOT NULL));
DROP INDEX a_lot_expires_once_a_run;
CREATE UNIQUE INDEX a_lot_expires_once_a_run
    ON bucket_entry (bucket_no, run_no, run_position, (coalesce(correction_no, 0))) WHERE kind = 'expiry';

-- A device's SIM follows from those dates.
ALTER TABLE device DROP CONSTRAINT iccid_is_unique_in_its_tenant;
ALTER TABLE device DROP COLUMN iccid, DROP COLUMN imsi;

-- In the hour in which a device moves it may use the same plan in two fleets.
DROP INDEX one_usage_hour_a_device_meter_and_plan;
CREATE UNIQUE INDEX one_usage_hour_a_device_meter_plan_and_fleet
    ON usage_hour (device_no, meter_no, plan_no, fleet_no, hour);
