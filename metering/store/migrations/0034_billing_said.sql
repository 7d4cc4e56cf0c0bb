-- What was said of billing, by when: so that a bill can be drawn up as it would have been at a past moment.

CREATE TABLE billing_said (
    said_no     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no   integer NOT NULL REFERENCES tenant,
    fleet_no    integer REFERENCES fleet,
    what        text NOT NULL CONSTRAINT what_is_said_of_billing_is_known
                CHECK (what IN ('settings', 'tax_rules', 'buyer')),
    content     jsonb NOT NULL,
    is_first    boolean NOT NULL DEFAULT false,
    recorded_at timestamptz NOT NULL,
    CONSTRAINT a_buyer_is_a_fleets CHECK ((what = 'buyer') = (fleet_no IS NOT NULL))
);
CREATE INDEX billing_said_by_what ON billing_said (tenant_no, what, fleet_no, said_no DESC);
COMMENT ON TABLE billing_said IS 'Settings, tax rules and buyers as they were said, each time all of them.';
COMMENT ON COLUMN billing_said.is_first IS 'Whether this is what stood when this began to be kept.';
CREATE TRIGGER what_was_said_of_billing_is_immutable
    BEFORE UPDATE OR DELETE ON billing_said FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER what_was_said_of_billing_stays
    BEFORE TRUNCATE ON billing_said FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

INSERT INTO billing_said (tenant_no, what, content, is_first, recorded_at)
SELECT tenant_no, 'settings', jsonb_build_object('seller', seller, 'prices_include_tax', prices_include_tax,
    'payment_days', payment_days), true, updated_at FROM tenant_billing ORDER BY tenant_no;
INSERT INTO billing_said (tenant_no, fleet_no, what, content, is_first, recorded_at)
SELECT tenant_no, fleet_no, 'buyer', jsonb_build_object('buyer', buyer, 'customer', customer), true, updated_at
FROM fleet_billing JOIN fleet USING (fleet_no) ORDER BY fleet_no;
-- When they were said is not known.
INSERT INTO billing_said (tenant_no, what, content, is_first, recorded_at)
SELECT tenant_no, 'tax_rules', coalesce((SELECT jsonb_agg(jsonb_build_object('country', country,
        'customer', customer, 'category', category, 'rate', rate::text, 'first_day', lower(valid),
        'end_day', upper(valid), 'reason', reason, 'reason_code', reason_code)
        ORDER BY country, customer, valid)
    FROM tax_rule WHERE tax_rule.tenant_no = tenant.tenant_no), '[]'), true, now()
FROM tenant WHERE tenant_no IN (SELECT tenant_no FROM tax_rule UNION SELECT tenant_no FROM tenant_billing)
ORDER BY tenant_no;

ALTER TABLE billing_said ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON billing_said TO fleetmeter_api
    USING (tenant_no = api_tenant()
        AND (fleet_no IS NULL OR EXISTS (SELECT FROM fleet WHERE fleet.fleet_no = billing_said.fleet_no)));
GRANT SELECT, INSERT ON billing_said TO fleetmeter_api;
GRANT USAGE, SELECT ON SEQUENCE billing_said_said_no_seq TO fleetmeter_api;
