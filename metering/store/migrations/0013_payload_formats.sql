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
