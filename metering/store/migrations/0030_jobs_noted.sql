-- What people do to jobs is noted as all else is. What a job is to do stands in its entry, and is as long as a
-- request may be, so the rows leave it out.

CREATE OR REPLACE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
DECLARE
    hidden constant text[] := '{secret,previous_secret,key_hash,password_digest,password_salt}'::text[]
        || coalesce(TG_ARGV, '{}');
    before jsonb;
    after jsonb;
BEGIN
    IF TG_OP <> 'INSERT' THEN
        before := to_jsonb(OLD) - hidden;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        after := to_jsonb(NEW) - hidden;
    END IF;
    IF before IS DISTINCT FROM after THEN
        INSERT INTO audit_change (entry_no, tenant_no, relation, before, after)
        VALUES (current_setting('fleetmeter.audit_entry')::bigint, api_tenant(), TG_TABLE_NAME, before, after);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION note_change() IS 'Its arguments are columns that it leaves out, beside secrets.';
-- Not what whoever does a job writes of how far it is.
CREATE TRIGGER changes_are_noted AFTER INSERT OR UPDATE OF cancel_asked_at ON job FOR EACH ROW
    WHEN (coalesce(current_setting('fleetmeter.audit_entry', true), '') <> '')
    EXECUTE FUNCTION note_change('request', 'place', 'result', 'problem');
