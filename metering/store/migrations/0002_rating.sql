-- Prices by zone and time, tiers and increments, several buckets a meter: what charging keeps of them.

-- A plan keeps the sub-unit that its amounts count. Until now it was the least in which the fee and the
-- price of every single base unit are whole: that of a price is its denominator in lowest terms.
ALTER TABLE plan ADD COLUMN subunits_per_unit numeric(38, 0);
CREATE FUNCTION pg_temp.denominator(amount numeric, per numeric) RETURNS numeric LANGUAGE sql AS $$
    SELECT per * 10::numeric ^ scale(amount)
        / gcd(amount * 10::numeric ^ scale(amount), per * 10::numeric ^ scale(amount))
$$;
CREATE FUNCTION pg_temp.base_units(quantity text) RETURNS numeric LANGUAGE sql AS $$
    SELECT substring(quantity FROM '[0-9.]+')::numeric
        * CASE substring(quantity FROM '[A-Za-z]+')
            WHEN 'kB' THEN 1000 WHEN 'MB' THEN 1000 ^ 2 WHEN 'GB' THEN 1000 ^ 3 WHEN 'TB' THEN 1000 ^ 4
            WHEN 'KiB' THEN 1024 WHEN 'MiB' THEN 1024 ^ 2 WHEN 'GiB' THEN 1024 ^ 3
            WHEN 'TiB' THEN 1024 ^ 4 WHEN 'min' THEN 60 WHEN 'minute' THEN 60
            WHEN 'h' THEN 3600 WHEN 'hour' THEN 3600 ELSE 1 END::numeric
$$;
CREATE AGGREGATE pg_temp.lcm_of(numeric) (sfunc = lcm, stype = numeric, initcond = '1');
ALTER TABLE plan DISABLE TRIGGER plan_version_is_immutable;
UPDATE plan SET subunits_per_unit = (
    SELECT lcm(pg_temp.denominator((terms ->> 'monthly_fee')::numeric, 1),
               pg_temp.lcm_of(pg_temp.denominator((value #>> '{overage,amount}')::numeric,
                                                  pg_temp.base_units(value #>> '{overage,per}'))))
    FROM jsonb_each(terms -> 'meters'));
ALTER TABLE plan ALTER COLUMN subunits_per_unit SET NOT NULL;
DROP AGGREGATE pg_temp.lcm_of(numeric);
DROP FUNCTION pg_temp.base_units(text);
DROP FUNCTION pg_temp.denominator(numeric, numeric);
COMMENT ON COLUMN plan.subunits_per_unit IS 'What all amounts that are stored of the plan version count.';

-- A stored plan says `price` where it said `overage`; what it costs stays the same.
UPDATE plan SET terms = jsonb_set(terms, '{meters}', (
    SELECT jsonb_object_agg(key, value - 'overage' || jsonb_build_object('price', value -> 'overage'))
    FROM jsonb_each(terms -> 'meters')));
ALTER TABLE plan ENABLE TRIGGER plan_version_is_immutable;
-- jsonb sorts the names in a document; the order of meters and bands is part of a plan.
ALTER TABLE plan ALTER COLUMN terms TYPE json USING terms::json;

-- What else a device may tell of its usage.
ALTER TABLE reading ADD COLUMN session text, ADD COLUMN packets bigint NOT NULL DEFAULT 0;

-- A charge names its price, and what of it was priced before: so its tier walk can be told again.
ALTER TABLE charge
    ADD COLUMN variant smallint NOT NULL DEFAULT 0,
    ADD COLUMN zone text,
    ADD COLUMN band text,
    ADD COLUMN billed bigint NOT NULL DEFAULT 0,
    ADD COLUMN priced_before numeric(38, 0) NOT NULL DEFAULT 0,
    ADD COLUMN connection_fee numeric(38, 0) NOT NULL DEFAULT 0,
    ADD COLUMN draw_buckets bigint[],
    ADD COLUMN draw_quantities bigint[];
UPDATE charge SET billed = quantity, priced_before = earlier.overage,
    draw_buckets = nullif(array_remove(ARRAY[own.bucket_no, pool.bucket_no], NULL), '{}'),
    draw_quantities = nullif(array_remove(ARRAY[
        CASE WHEN own.bucket_no IS NOT NULL THEN charge.from_allowance END,
        CASE WHEN pool.bucket_no IS NOT NULL THEN charge.from_pool END], NULL), '{}')
FROM (SELECT boot_no, seq, part, measured_at, coalesce(sum(overage) OVER (
          PARTITION BY subscription_no, meter_no, cycle_start ORDER BY run_no, run_position, part
          ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS overage,
          CASE WHEN from_allowance > 0 THEN subscription_no END AS own_no,
          CASE WHEN from_pool > 0 THEN fleet_no END AS pool_no, meter_no, cycle_start
      FROM charge) AS earlier
    LEFT JOIN bucket AS own ON own.kind = 'allowance' AND own.subscription_no = earlier.own_no
        AND own.meter_no = earlier.meter_no AND own.cycle_start = earlier.cycle_start
    LEFT JOIN bucket AS pool ON pool.kind = 'pool' AND pool.fleet_no = earlier.pool_no
        AND pool.meter_no = earlier.meter_no AND pool.cycle_start = earlier.cycle_start
WHERE charge.boot_no = earlier.boot_no AND charge.seq = earlier.seq AND charge.part = earlier.part
    AND charge.measured_at = earlier.measured_at;
ALTER TABLE charge DROP CONSTRAINT charge_parts_make_its_quantity;
ALTER TABLE charge ADD CONSTRAINT charge_parts_make_what_is_billed
    CHECK (from_allowance + from_pool + overage = billed);
COMMENT ON COLUMN charge.variant IS 'The price: its position among the variants of the meter in the plan version.';
COMMENT ON COLUMN charge.draw_buckets IS 'Which buckets paid what, in the order in which they burned.';
COMMENT ON COLUMN charge.billed IS 'What is charged of the quantity, after overhead and increment.';
COMMENT ON COLUMN charge.priced_before IS 'Units priced before it at this price: it costs rated(after) - rated(before).';

ALTER TABLE meter_use
    ADD COLUMN variant smallint NOT NULL DEFAULT 0,
    ADD COLUMN billed numeric(38, 0) NOT NULL DEFAULT 0;
UPDATE meter_use SET billed = quantity;
ALTER TABLE meter_use DROP CONSTRAINT meter_use_pkey;
ALTER TABLE meter_use ADD PRIMARY KEY (subscription_no, meter_no, cycle_start, variant);

-- Cumulative quantities beside the use itself: of a price that counts a whole fleet together (under
-- the negative of its number), of what an increment rounds together, of a session that was connected.
CREATE TABLE rating_count (
    subscription_no bigint NOT NULL,
    meter_no        smallint NOT NULL,
    cycle_start     timestamptz NOT NULL,
    variant         smallint NOT NULL,
    name            text NOT NULL,
    fleet_no        integer NOT NULL REFERENCES fleet,
    quantity        numeric(38, 0) NOT NULL,
    PRIMARY KEY (subscription_no, meter_no, cycle_start, variant, name)
) WITH (fillfactor = 60);
CREATE INDEX rating_count_by_fleet ON rating_count (fleet_no, cycle_start);

-- A bucket is one lot of one allowance of a plan. It may outlive its cycle.
ALTER TABLE bucket
    ADD COLUMN name text NOT NULL DEFAULT 'allowance',
    ADD COLUMN plan_no integer REFERENCES plan,
    ADD COLUMN terms_plan_no integer REFERENCES plan,
    ADD COLUMN begins_at timestamptz,
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN promised numeric(38, 0) NOT NULL DEFAULT 0;
UPDATE bucket SET name = 'pool' WHERE kind = 'pool';
UPDATE bucket SET begins_at = cycle_start,
    expires_at = (SELECT cycle_end FROM fleet_cycle
                  WHERE fleet_cycle.fleet_no = bucket.fleet_no
                  AND fleet_cycle.cycle_start = bucket.cycle_start),
    terms_plan_no = (SELECT plan_no FROM bucket_entry JOIN subscription USING (subscription_no)
                     WHERE bucket_entry.bucket_no = bucket.bucket_no
                     ORDER BY bucket_entry.run_no, bucket_entry_no LIMIT 1);
-- A bucket into which nothing was granted holds nothing.
DELETE FROM bucket WHERE terms_plan_no IS NULL;
ALTER TABLE bucket
    ALTER COLUMN begins_at SET NOT NULL,
    ALTER COLUMN terms_plan_no SET NOT NULL,
    ALTER COLUMN name DROP DEFAULT;
COMMENT ON COLUMN bucket.plan_no IS 'Of a pool that one plan version''s devices share; NULL: any plan''s.';
COMMENT ON COLUMN bucket.terms_plan_no IS 'The plan version that says how it is drawn from: its first grant''s.';
COMMENT ON COLUMN bucket.expires_at IS 'NULL: it has no end.';
COMMENT ON COLUMN bucket.promised IS 'Cached: what a pool''s members are still guaranteed of it.';
DROP INDEX one_allowance_a_subscription_meter_and_cycle;
DROP INDEX one_pool_a_fleet_meter_and_cycle;
CREATE UNIQUE INDEX one_lot_of_an_allowance
    ON bucket (subscription_no, meter_no, name, begins_at) WHERE kind = 'allowance';
CREATE UNIQUE INDEX one_lot_of_a_pool
    ON bucket (fleet_no, meter_no, name, begins_at, (coalesce(plan_no, 0))) WHERE kind = 'pool';
-- What still holds is found by its end: lots that have ended grow in number, those that hold do not.
CREATE INDEX bucket_that_holds
    ON bucket (subscription_no, meter_no, (coalesce(expires_at, 'infinity'))) WHERE kind = 'allowance';
CREATE INDEX pool_that_holds
    ON bucket (fleet_no, meter_no, (coalesce(expires_at, 'infinity'))) WHERE kind = 'pool';
CREATE INDEX bucket_by_end ON bucket (fleet_no, expires_at);

-- An entry may also take away: what does not roll over.
ALTER TABLE bucket_entry DROP CONSTRAINT bucket_entry_kind_is_known;
ALTER TABLE bucket_entry ADD CONSTRAINT bucket_entry_kind_is_known CHECK (kind IN ('grant', 'expiry'));
ALTER TABLE bucket_entry DROP CONSTRAINT a_subscription_is_granted_once;
ALTER TABLE bucket_entry ALTER COLUMN subscription_no DROP NOT NULL;
ALTER TABLE bucket_entry ADD CONSTRAINT a_grant_has_a_subscription_and_an_expiry_none
    CHECK ((kind = 'grant') = (subscription_no IS NOT NULL));
CREATE UNIQUE INDEX a_subscription_is_granted_once ON bucket_entry (bucket_no, subscription_no)
    WHERE kind = 'grant';
CREATE UNIQUE INDEX a_lot_expires_once_a_run ON bucket_entry (bucket_no, run_no) WHERE kind = 'expiry';

-- In which charging run a cycle was opened: what does not roll over into it expires there.
ALTER TABLE fleet_cycle ADD COLUMN run_no bigint NOT NULL DEFAULT 0;

-- What each member drew from a pool that has a floor or a ceiling; a member brought something in.
CREATE TABLE pool_draw (
    bucket_no       bigint NOT NULL REFERENCES bucket,
    subscription_no bigint NOT NULL REFERENCES subscription,
    drawn           numeric(38, 0) NOT NULL DEFAULT 0,
    member          boolean NOT NULL DEFAULT false,
    PRIMARY KEY (bucket_no, subscription_no)
) WITH (fillfactor = 60);

-- Fees follow from subscriptions, states and use, all of which are dated: nothing to keep.
DROP TABLE recurring_charge;
