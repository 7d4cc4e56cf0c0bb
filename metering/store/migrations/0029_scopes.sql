-- Keys that may less than their role; people who are users of several tenants; lists across fleets.

ALTER TABLE api_key ADD COLUMN scopes text[];
COMMENT ON COLUMN api_key.scopes IS 'The only scopes of its role that it has; NULL: all of them.';
GRANT SELECT (scopes) ON api_key TO fleetmeter_api;

DROP FUNCTION api_key_of(bytea);
CREATE FUNCTION api_key_of(hash bytea, OUT api_key_no integer, OUT tenant_no integer, OUT role text,
    OUT fleets integer[], OUT device_no bigint, OUT scopes text[], OUT expires_at timestamptz,
    OUT last_used_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT key.api_key_no, key.tenant_no, key.role, key.fleets, key.device_no, key.scopes, key.expires_at,
        key.last_used_at
    FROM api_key AS key WHERE key.key_hash = hash AND key.revoked_at IS NULL AND NOT EXISTS (
        SELECT FROM tenant WHERE tenant.tenant_no = key.tenant_no AND tenant.state = 'suspended')
$$;

-- A tenant says who its users are, and no tenant can keep another from saying so of the same person: an
-- issuer's subject may be a user of several.
ALTER TABLE api_user
    DROP CONSTRAINT an_issuers_subject_is_one_user,
    ADD COLUMN came_at timestamptz;
UPDATE api_user SET came_at = created_at; -- they were each of one tenant, and go on so
COMMENT ON COLUMN api_user.came_at IS 'When its person first came for this tenant; NULL: never.';
CREATE UNIQUE INDEX an_issuers_subject_is_one_user_of_a_tenant
    ON api_user (issuer, subject, (coalesce(tenant_no, 0)));

DROP FUNCTION api_user_of(text, text);
CREATE FUNCTION api_users_of(given_issuer text, given_subject text, OUT user_no integer,
    OUT tenant_no integer, OUT tenant_id text, OUT role text, OUT fleets integer[], OUT came_at timestamptz)
    RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = public, pg_temp AS $$
    SELECT known.user_no, known.tenant_no, tenant.tenant_id, known.role, known.fleets, known.came_at
    FROM api_user AS known LEFT JOIN tenant ON tenant.tenant_no = known.tenant_no
    WHERE known.issuer = given_issuer AND known.subject = given_subject AND known.disabled_at IS NULL
        AND tenant.state IS DISTINCT FROM 'suspended'
    ORDER BY tenant.tenant_id
$$;
CREATE FUNCTION note_api_user_came(number integer, at timestamptz) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    UPDATE api_user SET came_at = at WHERE user_no = number AND came_at IS NULL
$$;
REVOKE ALL ON FUNCTION api_key_of(bytea), api_users_of(text, text), note_api_user_came(integer, timestamptz)
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION api_key_of(bytea), api_users_of(text, text),
    note_api_user_came(integer, timestamptz) TO fleetmeter_api;

-- Lists of a tenant, the last first, fleet by fleet.
CREATE INDEX bucket_by_fleet ON bucket (fleet_no, bucket_no DESC);
CREATE INDEX reservation_by_fleet ON reservation (fleet_no, reservation_no DESC);
CREATE INDEX balance_operation_by_tenant ON balance_operation (tenant_no, operation_no DESC);
