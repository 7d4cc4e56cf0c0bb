-- The first schema: who is metered, what they published, what was charged.

CREATE EXTENSION IF NOT EXISTS timescaledb;
CREATE EXTENSION IF NOT EXISTS btree_gist;

-- Who ---------------------------------------------------------------------------------------------

CREATE TABLE tenant (
    tenant_no  integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id  text NOT NULL CONSTRAINT tenant_id_is_unique UNIQUE,
    name       text NOT NULL,
    created_at timestamptz NOT NULL
);

CREATE TABLE api_key (
    api_key_no integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no  integer NOT NULL REFERENCES tenant,
    label      text NOT NULL,
    key_hash   bytea NOT NULL CONSTRAINT api_key_is_unique UNIQUE,
    created_at timestamptz NOT NULL,
    revoked_at timestamptz,
    CONSTRAINT api_key_hash_is_sha256 CHECK (octet_length(key_hash) = 32)
);

-- A worker owns the fleets of a shard for as long as it holds a lock on the shard's row.
CREATE TABLE charging_shard (
    shard_no smallint PRIMARY KEY
);
INSERT INTO charging_shard SELECT generate_series(0, 63);

CREATE TABLE fleet (
    fleet_no   integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no  integer NOT NULL REFERENCES tenant,
    fleet_id   text NOT NULL,
    name       text NOT NULL,
    currency   text NOT NULL CONSTRAINT fleet_currency_is_iso_4217 CHECK (currency ~ '^[A-Z]{3}$'),
    time_zone  text NOT NULL,
    anchor_day smallint NOT NULL CONSTRAINT fleet_anchor_day_is_in_a_month CHECK (anchor_day BETWEEN 1 AND 31),
    shard_no   smallint NOT NULL REFERENCES charging_shard,
    created_at timestamptz NOT NULL,
    CONSTRAINT fleet_id_is_unique_in_its_tenant UNIQUE (tenant_no, fleet_id)
);
CREATE INDEX fleet_by_shard ON fleet (shard_no);

CREATE TABLE device (
    device_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no  integer NOT NULL REFERENCES tenant,
    fleet_no   integer NOT NULL REFERENCES fleet,
    device_id  text NOT NULL,
    iccid      text,
    imsi       text,
    imei       text,
    created_at timestamptz NOT NULL,
    CONSTRAINT device_id_is_unique_in_its_tenant UNIQUE (tenant_no, device_id),
    CONSTRAINT iccid_is_unique_in_its_tenant UNIQUE (tenant_no, iccid)
);
CREATE INDEX device_by_fleet ON device (fleet_no, device_id);

CREATE TABLE device_state_change (
    device_no      bigint NOT NULL REFERENCES device,
    effective_from timestamptz NOT NULL,
    state          text NOT NULL CONSTRAINT device_state_is_known
                   CHECK (state IN ('inventory', 'active', 'suspended', 'retired')),
    recorded_at    timestamptz NOT NULL,
    PRIMARY KEY (device_no, effective_from)
);

-- Caches of devices and fleets hold this number and ask for it in each transaction.
CREATE TABLE registry_version (
    only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT registry_version_is_one_row CHECK (only_row),
    version  bigint NOT NULL
);
INSERT INTO registry_version (version) VALUES (1);

CREATE FUNCTION advance_registry_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE registry_version SET version = version + 1;
    RETURN NULL;
END
$$;
CREATE TRIGGER device_advances_registry_version
    AFTER INSERT OR UPDATE OR DELETE ON device
    FOR EACH STATEMENT EXECUTE FUNCTION advance_registry_version();
CREATE TRIGGER fleet_advances_registry_version
    AFTER INSERT OR UPDATE OR DELETE ON fleet
    FOR EACH STATEMENT EXECUTE FUNCTION advance_registry_version();

-- What they are sold ------------------------------------------------------------------------------

CREATE TABLE plan (
    plan_no        integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no      integer NOT NULL REFERENCES tenant,
    plan_id        text NOT NULL,
    version        integer NOT NULL CHECK (version >= 1),
    name           text NOT NULL,
    terms          jsonb NOT NULL,
    effective_from timestamptz NOT NULL,
    created_at     timestamptz NOT NULL,
    CONSTRAINT plan_version_is_unique UNIQUE (tenant_no, plan_id, version)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is immutable; insert a new row', TG_TABLE_NAME;
END
$$;
CREATE TRIGGER plan_version_is_immutable
    BEFORE UPDATE OR DELETE ON plan
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

CREATE TABLE subscription (
    subscription_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device_no       bigint NOT NULL REFERENCES device,
    plan_no         integer NOT NULL REFERENCES plan,
    valid           tstzrange NOT NULL,
    CONSTRAINT subscription_begins CHECK (NOT isempty(valid) AND lower(valid) IS NOT NULL
        AND lower_inc(valid) AND NOT upper_inc(valid)),
    CONSTRAINT subscriptions_of_a_device_do_not_overlap
        EXCLUDE USING gist (device_no WITH =, valid WITH &&)
);
CREATE INDEX subscription_by_device ON subscription (device_no);

-- What they published -----------------------------------------------------------------------------

CREATE SEQUENCE batch_no;

-- One row a boot: what arrived of it. The global unique key of readings lives here, because a
-- hypertable's unique index must hold the time.
CREATE TABLE boot (
    boot_no       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    device_no     bigint NOT NULL REFERENCES device,
    boot_id       text NOT NULL,
    up_to         bigint NOT NULL DEFAULT 0,
    beyond        bigint[] NOT NULL DEFAULT '{}',
    first_seen_at timestamptz NOT NULL,
    CONSTRAINT boot_id_is_unique_in_its_device UNIQUE (device_no, boot_id)
) WITH (fillfactor = 60);

CREATE TABLE reading (
    measured_at  timestamptz NOT NULL,
    received_at  timestamptz NOT NULL,
    published_at timestamptz,
    batch_no     bigint NOT NULL,
    boot_no      bigint NOT NULL,
    seq          bigint NOT NULL,
    device_no    bigint NOT NULL,
    shard_no     smallint NOT NULL,
    meter_no     smallint NOT NULL,
    kind         smallint NOT NULL,
    uplink       bigint NOT NULL,
    downlink     bigint NOT NULL,
    quantity     bigint NOT NULL,
    since        timestamptz,
    epoch        text,
    width        smallint,
    zone         text,
    rat          text,
    apn          text
);
SELECT create_hypertable('reading', by_range('measured_at', INTERVAL '1 day'), create_default_indexes => false);
CREATE UNIQUE INDEX reading_is_stored_once ON reading (boot_no, seq, measured_at);
CREATE INDEX reading_by_batch ON reading (batch_no);

-- The same bad bytes on the same topic are one row that counts how often they came.
CREATE TABLE rejected (
    rejected_no       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    topic             text NOT NULL,
    tenant_no         integer REFERENCES tenant,
    device_no         bigint REFERENCES device,
    reason            text NOT NULL,
    field             text,
    detail            text NOT NULL,
    boot_id           text,
    seq               bigint,
    content           bytea NOT NULL,
    content_sha256    bytea NOT NULL,
    first_received_at timestamptz NOT NULL,
    last_received_at  timestamptz NOT NULL,
    times             bigint NOT NULL DEFAULT 1,
    CONSTRAINT rejected_is_kept_once UNIQUE (topic, reason, content_sha256)
);
CREATE INDEX rejected_by_sequence ON rejected (device_no, boot_id, seq) WHERE seq IS NOT NULL;
CREATE INDEX rejected_by_tenant ON rejected (tenant_no, last_received_at DESC, rejected_no DESC);

-- The claim queue between ingest and charging: a row is visible once its readings are, and is
-- deleted by the transaction that charges them.
CREATE TABLE work_item (
    work_item_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- No foreign key: checking it would lock the shard's row, for which a charging run may hold up ingest.
    shard_no      smallint NOT NULL CONSTRAINT work_item_has_a_shard CHECK (shard_no BETWEEN 0 AND 63),
    batch_no      bigint NOT NULL,
    readings      integer NOT NULL,
    measured_from timestamptz NOT NULL,
    measured_to   timestamptz NOT NULL,
    -- Why charging it failed; NULL while it may be claimed.
    refused       text,
    CONSTRAINT a_batch_is_queued_once_a_shard UNIQUE (shard_no, batch_no)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- What was charged --------------------------------------------------------------------------------

CREATE SEQUENCE charging_run_no;

CREATE TABLE charge (
    measured_at     timestamptz NOT NULL,
    charged_at      timestamptz NOT NULL,
    run_no          bigint NOT NULL,
    run_position    integer NOT NULL,
    boot_no         bigint NOT NULL,
    seq             bigint NOT NULL,
    part            smallint NOT NULL,
    device_no       bigint NOT NULL,
    fleet_no        integer NOT NULL,
    subscription_no bigint NOT NULL,
    plan_no         integer NOT NULL,
    meter_no        smallint NOT NULL,
    cycle_start     timestamptz NOT NULL,
    usage_from      timestamptz NOT NULL,
    usage_to        timestamptz NOT NULL,
    quantity        bigint NOT NULL,
    uplink          bigint NOT NULL,
    from_allowance  bigint NOT NULL,
    from_pool       bigint NOT NULL,
    overage         bigint NOT NULL,
    amount          numeric(38, 0) NOT NULL,
    CONSTRAINT charge_parts_make_its_quantity CHECK (from_allowance + from_pool + overage = quantity)
);
COMMENT ON COLUMN charge.amount IS 'Count of the sub-unit that the plan version states.';
SELECT create_hypertable('charge', by_range('measured_at', INTERVAL '1 day'), create_default_indexes => false);
CREATE UNIQUE INDEX charge_is_made_once ON charge (boot_no, seq, part, measured_at);

-- The first and the last counted point of each counter epoch, in the order of boot and sequence.
CREATE TABLE counter (
    device_no         bigint NOT NULL,
    meter_no          smallint NOT NULL,
    epoch             text NOT NULL,
    first_boot_no     bigint NOT NULL,
    first_seq         bigint NOT NULL,
    first_measured_at timestamptz NOT NULL,
    first_uplink      bigint NOT NULL,
    first_downlink    bigint NOT NULL,
    first_quantity    bigint NOT NULL,
    first_width       smallint,
    boot_no           bigint NOT NULL,
    seq               bigint NOT NULL,
    measured_at       timestamptz NOT NULL,
    uplink            bigint NOT NULL,
    downlink          bigint NOT NULL,
    quantity          bigint NOT NULL,
    width             smallint,
    PRIMARY KEY (device_no, meter_no, epoch)
) WITH (fillfactor = 60);

CREATE TABLE anomaly (
    boot_no     bigint NOT NULL,
    seq         bigint NOT NULL,
    kind        text NOT NULL,
    device_no   bigint NOT NULL,
    meter_no    smallint NOT NULL,
    measured_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL,
    PRIMARY KEY (boot_no, seq, kind)
);
CREATE INDEX anomaly_by_device ON anomaly (device_no, measured_at DESC);

CREATE TABLE parked (
    boot_no     bigint NOT NULL,
    seq         bigint NOT NULL,
    measured_at timestamptz NOT NULL,
    device_no   bigint NOT NULL,
    fleet_no    integer NOT NULL,
    reason      text NOT NULL,
    quantity    bigint NOT NULL,
    uplink      bigint NOT NULL,
    usage_from  timestamptz NOT NULL,
    usage_to    timestamptz NOT NULL,
    run_no      bigint NOT NULL,
    run_position integer NOT NULL,
    parked_at   timestamptz NOT NULL,
    PRIMARY KEY (boot_no, seq)
);
CREATE INDEX parked_by_fleet ON parked (fleet_no, parked_at DESC);
CREATE INDEX parked_by_device ON parked (device_no, parked_at DESC);

-- A bill cycle that was opened for a fleet: grants made, fees charged.
CREATE TABLE fleet_cycle (
    fleet_no        integer NOT NULL REFERENCES fleet,
    cycle_start     timestamptz NOT NULL,
    cycle_end       timestamptz NOT NULL,
    first_day       date NOT NULL,
    next_first_day  date NOT NULL,
    opened_at       timestamptz NOT NULL,
    PRIMARY KEY (fleet_no, cycle_start)
);

CREATE TABLE bucket (
    bucket_no       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind            text NOT NULL CONSTRAINT bucket_kind_is_known CHECK (kind IN ('allowance', 'pool')),
    fleet_no        integer NOT NULL REFERENCES fleet,
    subscription_no bigint REFERENCES subscription,
    meter_no        smallint NOT NULL,
    cycle_start     timestamptz NOT NULL,
    granted         numeric(38, 0) NOT NULL DEFAULT 0,
    used            numeric(38, 0) NOT NULL DEFAULT 0,
    CONSTRAINT an_allowance_has_a_subscription_and_a_pool_none
        CHECK ((kind = 'allowance') = (subscription_no IS NOT NULL)),
    CONSTRAINT bucket_is_not_overdrawn CHECK (used <= granted)
) WITH (fillfactor = 60);
CREATE UNIQUE INDEX one_allowance_a_subscription_meter_and_cycle
    ON bucket (subscription_no, meter_no, cycle_start) WHERE kind = 'allowance';
CREATE UNIQUE INDEX one_pool_a_fleet_meter_and_cycle
    ON bucket (fleet_no, meter_no, cycle_start) WHERE kind = 'pool';
COMMENT ON COLUMN bucket.granted IS 'Cached: the sum of its entries.';
COMMENT ON COLUMN bucket.used IS 'Cached: the sum of what charges drew from it.';

CREATE TABLE bucket_entry (
    bucket_entry_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    bucket_no       bigint NOT NULL REFERENCES bucket,
    kind            text NOT NULL CONSTRAINT bucket_entry_kind_is_known CHECK (kind IN ('grant')),
    quantity        numeric(38, 0) NOT NULL,
    subscription_no bigint NOT NULL REFERENCES subscription,
    run_no          bigint NOT NULL,
    entered_at      timestamptz NOT NULL,
    CONSTRAINT a_subscription_is_granted_once UNIQUE (bucket_no, kind, subscription_no)
);

COMMENT ON COLUMN bucket_entry.run_no IS 'Its place among the charging runs: it counts from this run on.';

-- Cumulative use of one meter by one subscription in one cycle: what rated(before) needs.
CREATE TABLE meter_use (
    subscription_no bigint NOT NULL REFERENCES subscription,
    meter_no        smallint NOT NULL,
    cycle_start     timestamptz NOT NULL,
    fleet_no        integer NOT NULL REFERENCES fleet,
    records         bigint NOT NULL,
    quantity        numeric(38, 0) NOT NULL,
    uplink          numeric(38, 0) NOT NULL,
    from_allowance  numeric(38, 0) NOT NULL,
    from_pool       numeric(38, 0) NOT NULL,
    overage         numeric(38, 0) NOT NULL,
    amount          numeric(38, 0) NOT NULL,
    PRIMARY KEY (subscription_no, meter_no, cycle_start)
) WITH (fillfactor = 60);
CREATE INDEX meter_use_by_fleet ON meter_use (fleet_no, cycle_start);

CREATE TABLE recurring_charge (
    subscription_no   bigint NOT NULL REFERENCES subscription,
    cycle_start       timestamptz NOT NULL,
    kind              text NOT NULL CONSTRAINT recurring_charge_kind_is_known CHECK (kind IN ('monthly_fee')),
    fleet_no          integer NOT NULL REFERENCES fleet,
    days              smallint NOT NULL,
    amount            numeric(38, 0) NOT NULL,
    subunits_per_unit numeric(38, 0) NOT NULL,
    charged_at        timestamptz NOT NULL,
    PRIMARY KEY (subscription_no, cycle_start, kind)
);
CREATE INDEX recurring_charge_by_fleet ON recurring_charge (fleet_no, cycle_start);

CREATE TABLE usage_hour (
    hour            timestamptz NOT NULL,
    fleet_no        integer NOT NULL,
    device_no       bigint NOT NULL,
    meter_no        smallint NOT NULL,
    plan_no         integer NOT NULL,
    records         bigint NOT NULL,
    quantity        numeric(38, 0) NOT NULL,
    uplink          numeric(38, 0) NOT NULL,
    overage         numeric(38, 0) NOT NULL,
    amount          numeric(38, 0) NOT NULL
) WITH (fillfactor = 60);
SELECT create_hypertable('usage_hour', by_range('hour', INTERVAL '30 days'), create_default_indexes => false);
CREATE UNIQUE INDEX one_usage_hour_a_device_meter_and_plan
    ON usage_hour (device_no, meter_no, plan_no, hour);
CREATE INDEX usage_hour_by_fleet ON usage_hour (fleet_no, hour);
