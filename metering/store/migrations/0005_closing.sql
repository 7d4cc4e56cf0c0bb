-- A cycle closes: what it came to is frozen, and what comes later is billed as an adjustment that names it.

ALTER TABLE fleet_cycle
    ADD COLUMN closed_run_no bigint,
    ADD COLUMN late_records bigint NOT NULL DEFAULT 0,
    ADD COLUMN changed boolean NOT NULL DEFAULT false,
    ADD COLUMN corrected_run_no bigint,
    ADD CONSTRAINT only_a_closed_cycle_is_changed_late
        CHECK (closed_run_no IS NOT NULL OR (late_records = 0 AND NOT changed));
CREATE INDEX fleet_cycle_to_close ON fleet_cycle (cycle_end) WHERE closed_run_no IS NULL;
CREATE INDEX fleet_cycle_changed_late ON fleet_cycle (fleet_no) WHERE changed;
COMMENT ON COLUMN fleet_cycle.closed_run_no IS 'Its closing''s place among the charging runs; NULL: it is open.';
COMMENT ON COLUMN fleet_cycle.late_records IS 'Usage records charged in it after it closed.';
COMMENT ON COLUMN fleet_cycle.changed IS 'Whether anything of it changed since it closed or was last adjusted.';
COMMENT ON COLUMN fleet_cycle.corrected_run_no IS 'The last run known when its terms changed after it closed.';

CREATE TABLE closed_cycle (
    fleet_no    integer NOT NULL,
    cycle_start timestamptz NOT NULL,
    run_no      bigint NOT NULL,
    closed_at   timestamptz NOT NULL,
    statement   jsonb NOT NULL,
    total       numeric NOT NULL,
    PRIMARY KEY (fleet_no, cycle_start),
    FOREIGN KEY (fleet_no, cycle_start) REFERENCES fleet_cycle
);
COMMENT ON COLUMN closed_cycle.statement IS 'Its lines and sums: amounts as decimals, exact ones as fractions, in text.';
COMMENT ON COLUMN closed_cycle.total IS 'What it was billed: its own statement''s total and the adjustments in it.';

CREATE TABLE period_adjustment (
    fleet_no       integer NOT NULL,
    cycle_start    timestamptz NOT NULL,
    billed_in      timestamptz NOT NULL,
    run_no         bigint NOT NULL,
    late_records   bigint NOT NULL CONSTRAINT late_records_come_only_in CHECK (late_records >= 0),
    amount         numeric NOT NULL,
    exact_amount   text NOT NULL,
    PRIMARY KEY (fleet_no, cycle_start, billed_in),
    FOREIGN KEY (fleet_no, cycle_start) REFERENCES closed_cycle,
    FOREIGN KEY (fleet_no, billed_in) REFERENCES closed_cycle (fleet_no, cycle_start)
);
CREATE INDEX period_adjustment_by_bill ON period_adjustment (fleet_no, billed_in);
COMMENT ON COLUMN period_adjustment.cycle_start IS 'The cycle that it corrects.';
COMMENT ON COLUMN period_adjustment.billed_in IS 'The start of the cycle in whose bill it is.';

CREATE TRIGGER closed_cycle_is_immutable
    BEFORE UPDATE OR DELETE ON closed_cycle FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER closed_cycles_stay
    BEFORE TRUNCATE ON closed_cycle FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER period_adjustment_is_immutable
    BEFORE UPDATE OR DELETE ON period_adjustment FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER period_adjustments_stay
    BEFORE TRUNCATE ON period_adjustment FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Up to when each boot's usage has arrived.
ALTER TABLE boot
    ADD COLUMN measured_to timestamptz,
    ADD COLUMN complete_to timestamptz,
    ADD COLUMN heard_at timestamptz,
    ADD COLUMN gap_since timestamptz;
COMMENT ON COLUMN boot.measured_to IS 'The latest measured time of its stored readings.';
COMMENT ON COLUMN boot.complete_to IS 'The latest measured time of those up to its first gap.';
COMMENT ON COLUMN boot.heard_at IS 'When the last reading that is stored of it was received.';
COMMENT ON COLUMN boot.gap_since IS 'Since when its first gap is open and nothing of it came; NULL: it has none.';
UPDATE boot SET measured_to = known.measured_to, complete_to = known.complete_to,
    heard_at = known.heard_at
FROM (SELECT boot_no, max(measured_at) AS measured_to,
          max(measured_at) FILTER (WHERE seq <= up_to) AS complete_to, max(received_at) AS heard_at
      FROM reading JOIN boot USING (boot_no) GROUP BY boot_no) AS known
WHERE boot.boot_no = known.boot_no;
UPDATE boot SET gap_since = coalesce(heard_at, first_seen_at) WHERE beyond <> '{}';
