-- Workers lease shards. A worker keeps all its leases alive by its one row here, so that heartbeats
-- leave the shards' rows, which charging locks, alone.

CREATE TABLE charging_worker (
    worker_no    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host         text NOT NULL,
    pid          integer NOT NULL,
    session      text NOT NULL, -- the application_name of the connection with which it charges
    backend_pid  integer NOT NULL, -- serves the connection with which it keeps its leases
    started_at   timestamptz NOT NULL,
    leased_until timestamptz NOT NULL -- by the database's clock
) WITH (fillfactor = 50);

-- The fence ascends with each lease. Whoever charges checks worker and fence under the row's lock.
ALTER TABLE charging_shard
    ADD COLUMN worker_no bigint REFERENCES charging_worker,
    ADD COLUMN fence bigint NOT NULL DEFAULT 0,
    ADD COLUMN leased_at timestamptz;
