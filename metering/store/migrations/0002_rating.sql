-- Prices by zone and time, tiers and increments, several buckets a meter: what charging keeps of them.

-- What else a device may tell of its usage.
ALTER TABLE reading ADD COLUMN session text, ADD COLUMN packets bigint;

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
UPDATE charge SET billed = quantity;
ALTER TABLE charge DROP CONSTRAINT charge_parts_make_its_quantity;
ALTER TABLE charge ADD CONSTRAINT charge_parts_make_what_is_billed
    CHECK (from_allowance + from_pool + overage = billed);
COMMENT ON COLUMN charge.variant IS 'The price: its position among the variants of the meter in the plan version.';
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
    ADD COLUMN begins_at timestamptz,
    ADD COLUMN expires_at timestamptz;
UPDATE bucket SET name = 'pool' WHERE kind = 'pool';
UPDATE bucket SET begins_at = cycle_start,
    expires_at = (SELECT cycle_end FROM fleet_cycle
                  WHERE fleet_cycle.fleet_no = bucket.fleet_no
                  AND fleet_cycle.cycle_start = bucket.cycle_start);
ALTER TABLE bucket ALTER COLUMN begins_at SET NOT NULL, ALTER COLUMN name DROP DEFAULT;
DROP INDEX one_allowance_a_subscription_meter_and_cycle;
DROP INDEX one_pool_a_fleet_meter_and_cycle;
CREATE UNIQUE INDEX one_lot_of_an_allowance
    ON bucket (subscription_no, meter_no, name, begins_at) WHERE kind = 'allowance';
CREATE UNIQUE INDEX one_lot_of_a_pool
    ON bucket (fleet_no, meter_no, name, begins_at, (coalesce(plan_no, 0))) WHERE kind = 'pool';
COMMENT ON COLUMN bucket.plan_no IS 'Of a pool that one plan version''s devices share; NULL: any plan''s.';
COMMENT ON COLUMN bucket.expires_at IS 'NULL: it has no end.';

-- Fees follow from subscriptions, states and use, all of which are dated: nothing to keep.
DROP TABLE recurring_charge;
