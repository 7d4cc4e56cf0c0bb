-- Balances as folds over postings: top-ups, transfers, adjustments and rollovers, each linked to its cause.

-- A bucket is a lot that a plan granted, or one that was bought on top: for a device, or for a fleet.
ALTER TABLE bucket
    ADD COLUMN source text NOT NULL DEFAULT 'plan'
        CONSTRAINT bucket_source_is_known CHECK (source IN ('plan', 'top_up')),
    ADD COLUMN device_no bigint REFERENCES device,
    ADD COLUMN priority integer,
    ADD COLUMN zones text[];
ALTER TABLE bucket ALTER COLUMN terms_plan_no DROP NOT NULL, ALTER COLUMN cycle_start DROP NOT NULL;
ALTER TABLE bucket DROP CONSTRAINT an_allowance_has_a_subscription_and_a_pool_none;
ALTER TABLE bucket
    ADD CONSTRAINT a_plans_lot_has_terms_and_a_subscription_or_is_a_pool CHECK (source <> 'plan'
        OR ((kind = 'allowance') = (subscription_no IS NOT NULL) AND device_no IS NULL
            AND terms_plan_no IS NOT NULL AND cycle_start IS NOT NULL
            AND priority IS NULL AND zones IS NULL)),
    ADD CONSTRAINT a_top_up_says_itself_how_it_is_drawn_from CHECK (source <> 'top_up'
        OR ((kind = 'allowance') = (device_no IS NOT NULL) AND subscription_no IS NULL
            AND plan_no IS NULL AND terms_plan_no IS NULL AND cycle_start IS NULL
            AND priority IS NOT NULL AND promised = 0)),
    ADD CONSTRAINT bucket_ends_after_it_begins CHECK (expires_at > begins_at);
COMMENT ON COLUMN bucket.source IS 'plan: granted by a plan''s allowance; top_up: bought on top of it.';
COMMENT ON COLUMN bucket.device_no IS 'Whose top-up it is; NULL of a fleet''s top-up and of a plan''s lot.';
COMMENT ON COLUMN bucket.priority IS 'Of a top-up; a plan''s lot has that of its terms.';
COMMENT ON COLUMN bucket.zones IS 'Where a top-up may be drawn from, by the plans'' names; NULL: anywhere.';
DROP INDEX one_lot_of_a_pool;
CREATE UNIQUE INDEX one_lot_of_a_pool ON bucket (fleet_no, meter_no, name, begins_at, (coalesce(plan_no, 0)))
    WHERE kind = 'pool' AND source = 'plan';
CREATE INDEX fleets_top_up_that_holds ON bucket (fleet_no, meter_no, (coalesce(expires_at, 'infinity')))
    WHERE kind = 'pool' AND source = 'top_up';
CREATE INDEX devices_top_up_that_holds ON bucket (device_no, meter_no, (coalesce(expires_at, 'infinity')))
    WHERE kind = 'allowance' AND source = 'top_up';
-- Whether any device of a fleet has a top-up: where none has, nothing more is looked for.
CREATE INDEX fleet_with_top_ups_of_devices ON bucket (fleet_no, (coalesce(expires_at, 'infinity')))
    WHERE kind = 'allowance' AND source = 'top_up';

-- What a tenant asked to do to balances, each once: its key tells a repetition from another request.
CREATE TABLE balance_operation (
    operation_no    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no       integer NOT NULL REFERENCES tenant,
    idempotency_key text NOT NULL,
    kind            text NOT NULL CONSTRAINT balance_operation_kind_is_known
                    CHECK (kind IN ('top_up', 'transfer', 'adjustment')),
    fleet_no        integer NOT NULL REFERENCES fleet,
    bucket_no       bigint NOT NULL REFERENCES bucket,
    from_bucket_no  bigint REFERENCES bucket,
    quantity        numeric(38, 0) NOT NULL,
    reason          text,
    content         jsonb NOT NULL,
    run_no          bigint NOT NULL,
    made_at         timestamptz NOT NULL,
    CONSTRAINT an_idempotency_key_is_used_once UNIQUE (tenant_no, idempotency_key),
    CONSTRAINT a_transfer_alone_comes_from_another_bucket CHECK ((kind = 'transfer')
        = (from_bucket_no IS NOT NULL) AND from_bucket_no IS DISTINCT FROM bucket_no),
    CONSTRAINT an_adjustment_alone_may_take_away CHECK (quantity > 0
        OR (kind = 'adjustment' AND quantity < 0)),
    CONSTRAINT an_adjustment_has_a_reason CHECK (kind <> 'adjustment' OR reason IS NOT NULL)
);
CREATE INDEX balance_operation_by_fleet ON balance_operation (fleet_no, run_no);
COMMENT ON COLUMN balance_operation.content IS 'The request as it was made: a repetition has the same.';

-- An entry moves a quantity into its bucket from the account that it names, or out of it if negative: so
-- the sum over both accounts is zero by construction. `against` follows from its kind.
ALTER TABLE bucket_entry DROP CONSTRAINT bucket_entry_kind_is_known;
ALTER TABLE bucket_entry DROP CONSTRAINT a_grant_has_a_subscription_and_an_expiry_none;
ALTER TABLE bucket_entry
    ADD COLUMN other_bucket_no bigint REFERENCES bucket,
    ADD COLUMN operation_no bigint REFERENCES balance_operation
        CONSTRAINT an_operation_is_entered_once UNIQUE,
    ADD COLUMN cycle_start timestamptz;
UPDATE bucket_entry SET cycle_start = fleet_cycle.cycle_start
FROM bucket JOIN fleet_cycle USING (fleet_no)
WHERE bucket.bucket_no = bucket_entry.bucket_no AND bucket_entry.kind = 'expiry'
    AND fleet_cycle.run_no = bucket_entry.run_no
    AND fleet_cycle.run_position = bucket_entry.run_position;
ALTER TABLE bucket_entry
    ADD COLUMN against text NOT NULL GENERATED ALWAYS AS (CASE kind
        WHEN 'grant' THEN 'grants' WHEN 'regrant' THEN 'grants' WHEN 'expiry' THEN 'expiries' WHEN 'top_up' THEN 'top_ups'
        WHEN 'adjustment' THEN 'adjustments' WHEN 'transfer' THEN 'bucket' WHEN 'rollover' THEN 'bucket'
        ELSE 'reservations' END) STORED,
    ADD CONSTRAINT bucket_entry_kind_is_known CHECK (kind IN
        ('grant', 'regrant', 'expiry', 'rollover', 'top_up', 'transfer', 'adjustment')),
    ADD CONSTRAINT an_entry_names_its_cause CHECK (CASE kind
        WHEN 'grant' THEN subscription_no IS NOT NULL
        WHEN 'regrant' THEN subscription_no IS NOT NULL AND correction_no IS NOT NULL
        WHEN 'expiry' THEN cycle_start IS NOT NULL AND subscription_no IS NULL
        WHEN 'rollover' THEN cycle_start IS NOT NULL AND subscription_no IS NULL
        WHEN 'top_up' THEN operation_no IS NOT NULL AND subscription_no IS NULL
        WHEN 'transfer' THEN operation_no IS NOT NULL AND subscription_no IS NULL
        WHEN 'adjustment' THEN operation_no IS NOT NULL AND subscription_no IS NULL
        ELSE true END),
    ADD CONSTRAINT an_entry_against_a_bucket_names_it CHECK ((other_bucket_no IS NOT NULL)
        = (kind IN ('transfer', 'rollover'))),
    ADD CONSTRAINT a_transfer_is_to_another_bucket_and_a_rollover_to_the_same CHECK (
        other_bucket_no IS NULL OR (other_bucket_no = bucket_no) = (kind = 'rollover'));
CREATE UNIQUE INDEX a_lot_rolls_over_once_into_a_cycle
    ON bucket_entry (bucket_no, cycle_start, (coalesce(correction_no, 0))) WHERE kind = 'rollover';
DROP INDEX a_lot_expires_once_a_run;
CREATE UNIQUE INDEX a_lot_expires_once_into_a_cycle
    ON bucket_entry (bucket_no, cycle_start, (coalesce(correction_no, 0))) WHERE kind = 'expiry';
CREATE INDEX bucket_entry_by_bucket ON bucket_entry (bucket_no, run_no);
CREATE INDEX bucket_entry_by_other_bucket ON bucket_entry (other_bucket_no, run_no)
    WHERE other_bucket_no IS NOT NULL;
COMMENT ON COLUMN bucket_entry.against IS 'The account that it goes against; bucket: other_bucket_no.';
COMMENT ON COLUMN bucket_entry.cycle_start IS 'The cycle whose opening caused it.';

-- What rolled over before entries said so: of each lot that went on into a cycle, as the newest lot of
-- its allowance says, what was granted and not yet drawn when the cycle was opened.
INSERT INTO bucket_entry
    (bucket_no, other_bucket_no, kind, quantity, cycle_start, run_no, run_position, entered_at)
SELECT bucket_no, bucket_no, 'rollover', left_then, cycle_start, run_no, run_position, opened_at
FROM (SELECT lot.bucket_no, opening.cycle_start, opening.run_no, opening.run_position, opening.opened_at,
        (SELECT coalesce(sum(entry.quantity), 0) FROM bucket_entry AS entry
         WHERE entry.bucket_no = lot.bucket_no
             AND ((entry.run_no, entry.run_position) < (opening.run_no, opening.run_position)
                 OR (entry.kind = 'expiry' AND (entry.run_no, entry.run_position)
                     = (opening.run_no, opening.run_position))))
        - (SELECT coalesce(sum(draw.quantity), 0)
           FROM charge, unnest(charge.draw_buckets, charge.draw_quantities) AS draw (bucket_no, quantity)
           WHERE charge.fleet_no = lot.fleet_no
               AND (charge.run_no, charge.run_position) < (opening.run_no, opening.run_position)
               AND charge.draw_buckets IS NOT NULL AND draw.bucket_no = lot.bucket_no) AS left_then
      FROM fleet_cycle AS opening
      JOIN bucket AS lot ON lot.fleet_no = opening.fleet_no AND lot.begins_at < opening.cycle_start
          AND lot.expires_at > opening.cycle_start
      WHERE opening.run_no > 0 AND EXISTS (
          SELECT FROM (SELECT terms_plan_no, meter_no FROM bucket AS same
              WHERE same.fleet_no = lot.fleet_no AND same.meter_no = lot.meter_no
                  AND same.name = lot.name AND same.kind = lot.kind
                  AND same.subscription_no IS NOT DISTINCT FROM lot.subscription_no
                  AND same.plan_no IS NOT DISTINCT FROM lot.plan_no
                  AND same.begins_at < opening.cycle_start AND same.expires_at > opening.cycle_start
              ORDER BY same.begins_at DESC LIMIT 1) AS newest
          JOIN plan ON plan.plan_no = newest.terms_plan_no
          CROSS JOIN LATERAL json_array_elements(plan.terms #> ARRAY['meters',
              (ARRAY['data', 'sms', 'voice', 'messages'])[newest.meter_no], 'allowances']) AS allowance
          WHERE allowance ->> 'name' = lot.name AND allowance ->> 'rollover' IS NOT NULL)) AS rolled
WHERE left_then > 0;

-- Every balance is a fold over postings. Entries are stored; consumption is what charges drew, which
-- needs no rows of its own. Each transaction (an entry, or a charge) sums to zero over its accounts.
CREATE VIEW posting AS
SELECT bucket.fleet_no, entry.bucket_entry_no, NULL::bigint AS boot_no, NULL::bigint AS seq,
    NULL::smallint AS part, entry.run_no, entry.kind, side.account, side.bucket_no, side.quantity
FROM bucket_entry AS entry JOIN bucket USING (bucket_no)
CROSS JOIN LATERAL (VALUES ('bucket', entry.bucket_no, entry.quantity),
    (entry.against, entry.other_bucket_no, -entry.quantity)) AS side (account, bucket_no, quantity)
UNION ALL
SELECT charge.fleet_no, NULL, charge.boot_no, charge.seq, charge.part, charge.run_no, 'consumption',
    'bucket', draw.bucket_no, -draw.quantity::numeric
FROM charge CROSS JOIN LATERAL unnest(charge.draw_buckets, charge.draw_quantities)
    AS draw (bucket_no, quantity)
WHERE charge.draw_buckets IS NOT NULL
UNION ALL
SELECT charge.fleet_no, NULL, charge.boot_no, charge.seq, charge.part, charge.run_no, 'consumption',
    'consumption', NULL, (charge.from_allowance + charge.from_pool)::numeric
FROM charge WHERE charge.from_allowance + charge.from_pool > 0;
COMMENT ON VIEW posting IS 'What every account got and gave; a transaction is an entry, or a charge.';

-- The ledger of one balance goes back through its fleet's charges.
CREATE INDEX charge_by_fleet_in_order ON charge (fleet_no, run_no, run_position);
