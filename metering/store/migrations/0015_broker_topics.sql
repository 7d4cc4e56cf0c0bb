-- What a broker that looks here itself has to know of topics outside the deployment's root: those of
-- Sparkplug, and those that ThingsBoard's devices are made with, which the broker rewrites to their own.
CREATE OR REPLACE VIEW broker_authorisation AS
SELECT tenant.tenant_id || '/' || device.device_id AS username,
    'allow' AS permission, rule.action, tenant.tenant_id || '/' || device.device_id || '/' || rule.last AS branch,
    replace(replace(rule.elsewhere, '{tenant}', tenant.tenant_id), '{device}', device.device_id) AS topic
FROM broker_client AS client JOIN device USING (device_no) JOIN tenant USING (tenant_no)
    CROSS JOIN LATERAL (SELECT broker_right(client.device_no, client.revoked_at, now()) AS name) AS held
    JOIN (VALUES
        ('publish', 'usage/#', NULL, 'publish'),
        ('publish', 'quota', NULL, 'publish'),
        ('publish', NULL, 'spBv1.0/{tenant}/+/{device}/#', 'publish'),
        ('publish', NULL, 'v1/devices/me/telemetry', 'publish'),
        ('publish', NULL, 'v1/gateway/telemetry', 'publish'),
        ('publish', 'command-ack', NULL, 'listen'),
        ('subscribe', 'ack', NULL, 'listen'),
        ('subscribe', 'command', NULL, 'listen'),
        ('subscribe', NULL, 'spBv1.0/{tenant}/NCMD/{device}', 'listen'),
        ('subscribe', NULL, 'spBv1.0/STATE/fleetmeter', 'listen')
    ) AS rule (action, last, elsewhere, least)
    ON held.name = 'publish' OR (held.name = 'listen' AND rule.least = 'listen');
COMMENT ON COLUMN broker_authorisation.branch IS 'The topic below the root that the deployment chose; null where topic says it whole.';
COMMENT ON COLUMN broker_authorisation.topic IS 'The whole topic, where it is below no root; else null.';
