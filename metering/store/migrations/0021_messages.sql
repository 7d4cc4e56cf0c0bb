-- The messages that readings came in, as they came; tax services of tenants; refunds by the provider.

-- One row a batch and tenant: its messages with what was read of each, compressed by the ingester. A reading
-- finds its row by the number of its batch.
CREATE TABLE message_batch (
    received_at timestamptz NOT NULL,
    batch_no    bigint NOT NULL,
    tenant_no   integer NOT NULL,
    messages    integer NOT NULL,
    content     bytea NOT NULL
);
COMMENT ON COLUMN message_batch.received_at IS 'When the first of its messages was received.';
ALTER TABLE message_batch ALTER COLUMN content SET STORAGE EXTERNAL; -- it is compressed
SELECT create_hypertable('message_batch', 'received_at', chunk_time_interval => INTERVAL '1 day',
    create_default_indexes => false, associated_schema_name => 'chunk');
CREATE INDEX message_batch_by_number ON message_batch (batch_no);

ALTER TABLE message_batch ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON message_batch TO fleetmeter_api
    USING (tenant_no = api_tenant() AND api_device() IS NULL);
GRANT SELECT, INSERT ON message_batch TO fleetmeter_api;

ALTER TABLE rejected ADD COLUMN batch_no bigint;
COMMENT ON COLUMN rejected.batch_no IS 'The batch in which it came last; NULL: it is not known.';
ALTER TABLE compared_reading ADD COLUMN batch_no bigint;

-- A tenant's own tax service, and the name of the secret that it wants; NULL: the deployment's, if it has one.
ALTER TABLE tenant_billing
    ADD COLUMN tax_service_url    text,
    ADD COLUMN tax_service_secret text,
    ADD CONSTRAINT a_secret_is_a_services CHECK (tax_service_secret IS NULL OR tax_service_url IS NOT NULL);
COMMENT ON COLUMN tenant_billing.tax_service_secret IS 'Its name: the secret itself is a setting of the deployment.';

-- What the payment provider is to give back, each once by its key there.
CREATE TABLE provider_refund (
    refund_no   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    refund_id   uuid NOT NULL UNIQUE,
    tenant_no   integer NOT NULL REFERENCES tenant,
    fleet_no    integer NOT NULL REFERENCES fleet,
    payment_no  bigint NOT NULL REFERENCES payment,
    intent_id   text NOT NULL,
    amount      numeric NOT NULL CONSTRAINT a_refund_gives_something CHECK (amount > 0),
    currency    text NOT NULL,
    reason      text NOT NULL,
    state       text NOT NULL DEFAULT 'queued' CONSTRAINT state_of_a_refund_is_known
                CHECK (state IN ('queued', 'succeeded', 'failed')),
    attempts    integer NOT NULL DEFAULT 0,
    due_at      timestamptz,
    provider_id text,
    problem     text,
    created_at  timestamptz NOT NULL,
    CONSTRAINT a_queued_refund_is_due CHECK ((state = 'queued') = (due_at IS NOT NULL))
);
CREATE INDEX provider_refund_due ON provider_refund (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX provider_refund_by_fleet ON provider_refund (fleet_no, refund_no);
CREATE INDEX provider_refund_by_payment ON provider_refund (payment_no);
COMMENT ON COLUMN provider_refund.refund_id IS 'Its idempotency key at the provider.';
COMMENT ON COLUMN provider_refund.provider_id IS 'What the provider calls it.';
CREATE TRIGGER changes_are_noted AFTER INSERT OR UPDATE OR DELETE ON provider_refund FOR EACH ROW
    WHEN (coalesce(current_setting('fleetmeter.audit_entry', true), '') <> '') EXECUTE FUNCTION note_change();
ALTER TABLE provider_refund ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON provider_refund TO fleetmeter_api
    USING (tenant_no = api_tenant() AND (api_fleets() IS NULL OR fleet_no = ANY (api_fleets())));
GRANT SELECT, INSERT, UPDATE ON provider_refund TO fleetmeter_api;
GRANT USAGE, SELECT ON SEQUENCE provider_refund_refund_no_seq TO fleetmeter_api;
