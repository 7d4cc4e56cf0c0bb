-- Usage as it is read: rollups tell the zone, and those of a whole fleet stand beside those of its devices.

ALTER TABLE usage_hour ADD COLUMN zone text NOT NULL DEFAULT '';
COMMENT ON COLUMN usage_hour.zone IS 'Where, as its charges say; empty: they name no zone.';
DROP INDEX one_usage_hour_a_device_meter_plan_and_fleet;
CREATE UNIQUE INDEX one_usage_hour_a_device_meter_plan_fleet_and_zone
    ON usage_hour (device_no, meter_no, plan_no, fleet_no, hour, zone);

-- What was used somewhere: of these hours alone, the rows before this knew no zone.
CREATE TEMPORARY TABLE zoned ON COMMIT DROP AS
    SELECT DISTINCT device_no, meter_no, plan_no, fleet_no, date_trunc('hour', usage_from, 'UTC') AS hour
    FROM charge WHERE zone IS NOT NULL;
DELETE FROM usage_hour USING zoned WHERE usage_hour.device_no = zoned.device_no
    AND usage_hour.meter_no = zoned.meter_no AND usage_hour.plan_no = zoned.plan_no
    AND usage_hour.fleet_no = zoned.fleet_no AND usage_hour.hour = zoned.hour;
INSERT INTO usage_hour (hour, fleet_no, device_no, meter_no, plan_no, zone, records, quantity, uplink, overage,
    amount)
SELECT zoned.hour, zoned.fleet_no, zoned.device_no, zoned.meter_no, zoned.plan_no, coalesce(charge.zone, ''),
    count(*), sum(charge.quantity), sum(charge.uplink), sum(charge.overage), sum(charge.amount)
FROM zoned JOIN charge ON charge.device_no = zoned.device_no AND charge.meter_no = zoned.meter_no
    AND charge.plan_no = zoned.plan_no AND charge.fleet_no = zoned.fleet_no
    AND date_trunc('hour', charge.usage_from, 'UTC') = zoned.hour
GROUP BY 1, 2, 3, 4, 5, 6;

CREATE TABLE fleet_usage_hour (
    fleet_no integer NOT NULL,
    hour     timestamptz NOT NULL,
    meter_no smallint NOT NULL,
    zone     text NOT NULL,
    records  bigint NOT NULL,
    quantity numeric(38, 0) NOT NULL,
    uplink   numeric(38, 0) NOT NULL,
    overage  numeric(38, 0) NOT NULL,
    PRIMARY KEY (fleet_no, hour, meter_no, zone)
) WITH (fillfactor = 60);
COMMENT ON TABLE fleet_usage_hour IS 'Cached: the sums of usage_hour over the devices of a fleet.';
INSERT INTO fleet_usage_hour
SELECT fleet_no, hour, meter_no, zone, sum(records), sum(quantity), sum(uplink), sum(overage)
FROM usage_hour GROUP BY fleet_no, hour, meter_no, zone;

ALTER TABLE fleet_usage_hour ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON fleet_usage_hour TO fleetmeter_api
    USING (EXISTS (SELECT FROM fleet WHERE fleet.fleet_no = fleet_usage_hour.fleet_no));
GRANT SELECT, INSERT, UPDATE, DELETE ON fleet_usage_hour TO fleetmeter_api;

-- What is compared, as a list: the last measured first.
CREATE INDEX compared_reading_in_order ON compared_reading (measured_at, boot_no, seq);
-- Adjustments of a tenant's bills, as a list.
CREATE INDEX bill_adjustment_by_tenant ON bill_adjustment (tenant_no, adjustment_no);
