-- A device's key goes with its device; the audit log is asked by who and by what.

-- It reaches its device, in whichever fleet that is: fleets of its own would go stale when the device moves.

UPDATE api_key SET fleets = NULL WHERE role = 'device';
ALTER TABLE api_key ADD CONSTRAINT a_devices_key_names_no_fleets CHECK (role <> 'device' OR fleets IS NULL);
COMMENT ON COLUMN api_key.fleets IS 'The only fleets that it reaches; NULL: all of the tenant, or its device alone.';

CREATE OR REPLACE FUNCTION api_key_of(hash bytea, OUT api_key_no integer, OUT tenant_no integer, OUT role text,
    OUT fleets integer[], OUT device_no bigint, OUT scopes text[], OUT expires_at timestamptz,
    OUT last_used_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT key.api_key_no, key.tenant_no, key.role,
        CASE WHEN key.device_no IS NULL THEN key.fleets
            ELSE ARRAY(SELECT device.fleet_no FROM device WHERE device.device_no = key.device_no) END,
        key.device_no, key.scopes, key.expires_at, key.last_used_at
    FROM api_key AS key WHERE key.key_hash = hash AND key.revoked_at IS NULL AND NOT EXISTS (
        SELECT FROM tenant WHERE tenant.tenant_no = key.tenant_no AND tenant.state = 'suspended')
$$;

-- The audit log is asked by who and by what.
CREATE INDEX audit_entry_by_operation ON audit_entry (tenant_no, operation, entry_no DESC);
CREATE INDEX audit_entry_by_api_key ON audit_entry (api_key_no, entry_no DESC) WHERE api_key_no IS NOT NULL;
CREATE INDEX audit_entry_by_user ON audit_entry (user_no, entry_no DESC) WHERE user_no IS NOT NULL;
