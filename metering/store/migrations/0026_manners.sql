-- How many requests each caller of the API made, and work that takes longer than a request.

-- The deployment's own, not a tenant's: subjects are numbers of keys, users and tenants. Lost in a crash,
-- which forgives a minute.
CREATE UNLOGGED TABLE request_window (
    subject  text PRIMARY KEY,
    began_at timestamptz NOT NULL,
    taken    integer NOT NULL,
    given    integer NOT NULL
);
COMMENT ON TABLE request_window IS 'Requests that processes of the API took of a window''s, by who asks.';
COMMENT ON COLUMN request_window.given IS 'What the last to ask was given.';

-- Take requests of a window for a process; return how many are given, and how many all processes took.
CREATE FUNCTION take_requests(who text, since timestamptz, wanted integer, most integer,
    OUT given integer, OUT taken integer)
    LANGUAGE sql SECURITY DEFINER SET search_path = public, pg_temp AS $$
    INSERT INTO request_window AS known (subject, began_at, taken, given)
    VALUES (who, since, least(wanted, most), least(wanted, most))
    ON CONFLICT (subject) DO UPDATE SET
        began_at = greatest(known.began_at, since),
        given = CASE WHEN known.began_at < since THEN least(wanted, most)
            ELSE greatest(0, least(wanted, most - known.taken)) END,
        taken = CASE WHEN known.began_at < since THEN least(wanted, most)
            ELSE known.taken + greatest(0, least(wanted, most - known.taken)) END
    RETURNING known.given, known.taken
$$;
REVOKE ALL ON FUNCTION take_requests(text, timestamptz, integer, integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION take_requests(text, timestamptz, integer, integer) TO fleetmeter_api;

CREATE TABLE job (
    job_no          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no       integer NOT NULL REFERENCES tenant,
    idempotency_key text NOT NULL,
    kind            text NOT NULL,
    request         jsonb NOT NULL,
    role            text NOT NULL,
    fleets          integer[],
    api_key_no      integer REFERENCES api_key,
    user_no         integer REFERENCES api_user,
    audit_entry_no  bigint REFERENCES audit_entry,
    state           text NOT NULL DEFAULT 'queued',
    done            bigint NOT NULL DEFAULT 0,
    total           bigint,
    place           jsonb,
    result          jsonb,
    problem         jsonb,
    attempts        integer NOT NULL DEFAULT 0,
    leased_until    timestamptz,
    cancel_asked_at timestamptz,
    created_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    CONSTRAINT a_job_is_asked_for_once UNIQUE (tenant_no, idempotency_key),
    CONSTRAINT job_kind_is_known CHECK (kind IN ('charge_export', 'device_import', 'rerating')),
    CONSTRAINT job_state_is_known CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    CONSTRAINT a_job_that_ended_says_when CHECK ((ended_at IS NULL) = (state IN ('queued', 'running'))),
    CONSTRAINT a_job_that_failed_says_why CHECK ((problem IS NULL) = (state <> 'failed'))
);
CREATE INDEX job_to_do ON job (job_no) WHERE state IN ('queued', 'running');
CREATE INDEX job_by_tenant ON job (tenant_no, job_no DESC);
CREATE INDEX job_by_end ON job (ended_at) WHERE ended_at IS NOT NULL;
COMMENT ON COLUMN job.fleets IS 'What who asked for it reaches; NULL: all of the tenant.';
COMMENT ON COLUMN job.place IS 'Where it goes on, known to its kind; NULL: at its beginning.';
COMMENT ON COLUMN job.attempts IS 'How often it was taken; only who took it last may write it.';

CREATE TABLE job_part (
    job_no  bigint NOT NULL REFERENCES job ON DELETE CASCADE,
    part_no integer NOT NULL,
    content bytea NOT NULL,
    PRIMARY KEY (job_no, part_no)
);
COMMENT ON TABLE job_part IS 'What a job wrote, in pieces that make one file.';

ALTER TABLE job ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON job TO fleetmeter_api
    USING (tenant_no = api_tenant() AND (api_fleets() IS NULL OR fleets <@ api_fleets())
        AND api_device() IS NULL);
GRANT SELECT, INSERT, UPDATE ON job TO fleetmeter_api;
ALTER TABLE job_part ENABLE ROW LEVEL SECURITY;
CREATE POLICY a_tenant_reaches_its_own ON job_part TO fleetmeter_api
    USING (EXISTS (SELECT FROM job WHERE job.job_no = job_part.job_no));
GRANT SELECT, INSERT ON job_part TO fleetmeter_api;
GRANT USAGE, SELECT ON SEQUENCE job_job_no_seq TO fleetmeter_api;
