-- Limits on what is used, what counts towards them, and the alerts that their crossings raise.

-- What is added up for thresholds: one row for all that look at the same sum. Its fleet is charged by
-- one process at a time, so a row is read and changed by nobody else meanwhile.
CREATE TABLE threshold_tally (
    tally_no     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fleet_no     integer NOT NULL REFERENCES fleet,
    device_no    bigint REFERENCES device,
    per          text NOT NULL CONSTRAINT tally_per_is_known CHECK (per IN ('device', 'fleet')),
    measure      text NOT NULL CONSTRAINT tally_measure_is_known
                 CHECK (measure IN ('allowance', 'pool', 'spend', 'quantity')),
    meter_no     smallint,
    period       text NOT NULL CONSTRAINT tally_period_is_known CHECK (period IN ('day', 'cycle')),
    counted_from timestamptz NOT NULL,
    CONSTRAINT only_spend_is_of_all_meters CHECK (meter_no IS NOT NULL OR measure = 'spend'),
    CONSTRAINT a_fleets_tally_has_no_device CHECK (per = 'device' OR device_no IS NULL)
);
CREATE UNIQUE INDEX one_tally_of_a_sum ON threshold_tally
    (fleet_no, (coalesce(device_no, 0)), per, measure, (coalesce(meter_no, 0)), period);
COMMENT ON COLUMN threshold_tally.device_no IS 'NULL: of each device of the fleet, or of the fleet, as per says.';
COMMENT ON COLUMN threshold_tally.counted_from IS 'The beginning of the first period that it counts.';

CREATE TABLE threshold_count (
    tally_no     bigint NOT NULL REFERENCES threshold_tally ON DELETE CASCADE,
    device_no    bigint NOT NULL,
    period_start timestamptz NOT NULL,
    per_unit     numeric(38, 0) NOT NULL,
    quantity     numeric(38, 0) NOT NULL,
    PRIMARY KEY (tally_no, device_no, period_start, per_unit)
) WITH (fillfactor = 60);
COMMENT ON COLUMN threshold_count.device_no IS '0: the fleet as a whole.';
COMMENT ON COLUMN threshold_count.per_unit IS
    'How many of what is counted make one: 1 of a quantity; of money the sub-units of plan versions, apart.';

CREATE TABLE threshold (
    threshold_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no     integer NOT NULL REFERENCES tenant,
    fleet_no      integer NOT NULL REFERENCES fleet,
    device_no     bigint REFERENCES device,
    per           text NOT NULL,
    measure       text NOT NULL,
    meter_no      smallint,
    period        text NOT NULL,
    name          text NOT NULL,
    limit_value   numeric,
    percent       numeric NOT NULL,
    actions       jsonb NOT NULL,
    enabled       boolean NOT NULL,
    holds_from    timestamptz NOT NULL,
    tally_no      bigint REFERENCES threshold_tally ON DELETE SET NULL,
    pool_tally_no bigint REFERENCES threshold_tally ON DELETE SET NULL,
    request_key   text NOT NULL,
    request       jsonb NOT NULL,
    created_at    timestamptz NOT NULL,
    changed_at    timestamptz NOT NULL,
    deleted_at    timestamptz,
    CONSTRAINT a_threshold_is_requested_once UNIQUE (tenant_no, request_key),
    CONSTRAINT a_share_is_of_an_allowance_or_a_pool
        CHECK ((limit_value IS NULL) = (measure IN ('allowance', 'pool'))),
    CONSTRAINT a_limit_is_positive CHECK (limit_value > 0 AND percent > 0),
    CONSTRAINT a_live_threshold_has_its_tally CHECK (deleted_at IS NOT NULL OR tally_no IS NOT NULL)
);
CREATE INDEX threshold_by_tally ON threshold (tally_no) WHERE deleted_at IS NULL;
CREATE INDEX threshold_by_pool_tally ON threshold (pool_tally_no) WHERE deleted_at IS NULL;
CREATE INDEX threshold_by_tenant ON threshold (tenant_no, threshold_no);
CREATE INDEX threshold_by_fleet ON threshold (fleet_no, threshold_no);
COMMENT ON COLUMN threshold.limit_value IS 'An amount of money, or of base units; NULL: what is there to have a share of.';
COMMENT ON COLUMN threshold.holds_from IS 'The beginning of the first period that it holds for.';

-- What a threshold said from which charging run on; the newest is what `threshold` says.
CREATE TABLE threshold_change (
    threshold_no bigint NOT NULL REFERENCES threshold,
    run_no       bigint NOT NULL,
    limit_value  numeric,
    percent      numeric NOT NULL,
    actions      jsonb NOT NULL,
    enabled      boolean NOT NULL,
    deleted      boolean NOT NULL,
    changed_at   timestamptz NOT NULL,
    PRIMARY KEY (threshold_no, run_no)
);

CREATE TABLE alert (
    alert_no       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    threshold_no   bigint NOT NULL REFERENCES threshold,
    tenant_no      integer NOT NULL REFERENCES tenant,
    fleet_no       integer NOT NULL REFERENCES fleet,
    device_no      bigint REFERENCES device,
    period_start   timestamptz NOT NULL,
    period_end     timestamptz NOT NULL,
    occasion       smallint NOT NULL,
    per_unit       numeric(38, 0) NOT NULL,
    value          numeric NOT NULL,
    limit_value    numeric NOT NULL,
    overshoot      numeric NOT NULL,
    run_no         bigint NOT NULL,
    boot_no        bigint,
    seq            bigint,
    measured_at    timestamptz,
    published_at   timestamptz,
    raised_at      timestamptz NOT NULL,
    cleared_run_no bigint,
    cleared_at     timestamptz,
    actions        jsonb NOT NULL,
    restrains      boolean NOT NULL,
    released_at    timestamptz,
    CONSTRAINT an_alert_is_raised_once_an_occasion
        UNIQUE NULLS NOT DISTINCT (threshold_no, device_no, period_start, occasion),
    CONSTRAINT an_alert_went_over CHECK (overshoot = value - limit_value AND overshoot >= 0)
);
CREATE UNIQUE INDEX one_alert_a_threshold_subject_and_period
    ON alert (threshold_no, device_no, period_start) NULLS NOT DISTINCT WHERE cleared_run_no IS NULL;
CREATE INDEX alert_by_tenant ON alert (tenant_no, alert_no);
CREATE INDEX alert_by_fleet ON alert (fleet_no, alert_no);
CREATE INDEX alert_by_device ON alert (device_no, alert_no) WHERE device_no IS NOT NULL;
CREATE INDEX alert_that_restrains ON alert (period_end) WHERE restrains AND released_at IS NULL;
COMMENT ON COLUMN alert.per_unit IS
    'Value, limit and overshoot are counts of which so many make one base unit or unit of currency.';
COMMENT ON COLUMN alert.boot_no IS 'The reading that crossed it; NULL: a change of the threshold did.';
COMMENT ON COLUMN alert.cleared_run_no IS
    'From which run on its value was under the limit again: a limit was raised, or more was granted.';
COMMENT ON COLUMN alert.released_at IS 'When what it throttled or suspended was let go.';
