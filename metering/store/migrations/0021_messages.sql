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
