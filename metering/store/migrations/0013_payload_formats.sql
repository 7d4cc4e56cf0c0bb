-- Payloads of other formats: how a tenant's metrics are meters, and what identifies their readings.

-- Which metric of which format is which meter, as it was written (metering/wire/mapping.py).
CREATE TABLE payload_mapping (
    tenant_no integer PRIMARY KEY REFERENCES tenant,
    document  jsonb NOT NULL,
    set_at    timestamptz NOT NULL
);
CREATE TRIGGER payload_mapping_advances_registry_version
    AFTER INSERT OR UPDATE OR DELETE ON payload_mapping
    FOR EACH STATEMENT EXECUTE FUNCTION advance_registry_version();

-- The number that a record with an id of its own got when it first arrived. The boot's row is locked
-- while it is given.
CREATE TABLE reading_identity (
    boot_no  bigint NOT NULL REFERENCES boot,
    identity text NOT NULL,
    seq      bigint NOT NULL,
    PRIMARY KEY (boot_no, identity)
);

-- What Sparkplug's edge nodes and devices announced at their last birth: metric names by alias.
CREATE TABLE sparkplug_birth (
    tenant_no  integer NOT NULL REFERENCES tenant,
    edge_node  text NOT NULL,
    device     text NOT NULL,
    bd_seq     bigint,
    born_at    timestamptz NOT NULL,
    aliases    jsonb NOT NULL,
    is_alive   boolean NOT NULL,
    PRIMARY KEY (tenant_no, edge_node, device)
);
COMMENT ON COLUMN sparkplug_birth.device IS 'Empty: the edge node itself.';

-- What is counted but not charged: of a device and its carrier, the count of the one that is not the
-- charged one. It arrives and is numbered as any reading, and never reaches charging.
CREATE TABLE compared_reading (
    boot_no     bigint NOT NULL REFERENCES boot,
    seq         bigint NOT NULL,
    device_no   bigint NOT NULL REFERENCES device,
    measured_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL,
    meter_no    smallint NOT NULL,
    kind        smallint NOT NULL,
    uplink      bigint NOT NULL,
    downlink    bigint NOT NULL,
    quantity    bigint NOT NULL,
    since       timestamptz,
    epoch       text,
    width       smallint,
    zone        text,
    rat         text,
    apn         text,
    session     text,
    packets     bigint NOT NULL,
    PRIMARY KEY (boot_no, seq, measured_at)
);
CREATE INDEX compared_reading_by_device ON compared_reading (device_no, measured_at);

-- Finding the device of a carrier's record.
CREATE INDEX device_sim_by_iccid ON device_sim (tenant_no, iccid);
CREATE INDEX device_sim_by_iccid_without_check_digit ON device_sim (tenant_no, left(iccid, -1));
CREATE INDEX device_sim_by_imsi ON device_sim (tenant_no, imsi) WHERE imsi IS NOT NULL;
