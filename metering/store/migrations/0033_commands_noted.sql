-- What people do by command is in the audit log beside what is done through the API.

ALTER TABLE audit_entry ADD COLUMN command_by text;
ALTER TABLE audit_entry ALTER COLUMN role DROP NOT NULL;
ALTER TABLE audit_entry DROP CONSTRAINT somebody_did_it;
ALTER TABLE audit_entry ADD CONSTRAINT somebody_did_it CHECK (num_nonnulls(api_key_no, user_no, command_by) = 1
    AND (role IS NULL) = (command_by IS NOT NULL));
COMMENT ON COLUMN audit_entry.command_by IS 'The user of the operating system who ran a command; NULL: by the API.';
COMMENT ON COLUMN audit_entry.role IS 'Of key or user; NULL: a command, which has the database''s own password.';
-- The API cannot say that a command did it.
REVOKE INSERT ON audit_entry FROM fleetmeter_api;
GRANT INSERT (tenant_no, at, role, api_key_no, user_no, operation, target, request) ON audit_entry TO fleetmeter_api;

-- An announced device is noted with the rest of its credentials, without its code.
CREATE TRIGGER changes_are_noted AFTER INSERT OR UPDATE OR DELETE ON device_claim FOR EACH ROW
    WHEN (coalesce(current_setting('fleetmeter.audit_entry', true), '') <> '')
    EXECUTE FUNCTION note_change('code_digest', 'code_salt', 'code_iterations', 'request_digest', 'certificate');

-- By tenant as well: else row-level security has all of a tenant's entries read beside a key's or user's.
DROP INDEX audit_entry_by_api_key;
DROP INDEX audit_entry_by_user;
CREATE INDEX audit_entry_by_api_key ON audit_entry (tenant_no, api_key_no, entry_no DESC) WHERE api_key_no IS NOT NULL;
CREATE INDEX audit_entry_by_user ON audit_entry (tenant_no, user_no, entry_no DESC) WHERE user_no IS NOT NULL;
