-- A fleet's bill cycles have a month, a quarter or a year.

ALTER TABLE fleet
    ADD COLUMN cycle_months smallint NOT NULL DEFAULT 1
        CONSTRAINT a_fleets_cycle_is_a_month_a_quarter_or_a_year CHECK (cycle_months IN (1, 3, 12)),
    ADD COLUMN anchor_month smallint NOT NULL DEFAULT 1
        CONSTRAINT fleet_anchor_month_is_in_a_year CHECK (anchor_month BETWEEN 1 AND 12);
COMMENT ON COLUMN fleet.cycle_months IS 'How many months a bill cycle has.';
COMMENT ON COLUMN fleet.anchor_month IS 'A month in which a cycle of several begins; of one month it says nothing.';

