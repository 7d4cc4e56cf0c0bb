CREATE TABLE install (
    install_id  TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    device      TEXT NOT NULL,
    kernel_boot TEXT NOT NULL,
    boots       INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL
) STRICT;

CREATE TABLE counter (
    counter       TEXT PRIMARY KEY,
    family        TEXT NOT NULL,
    label         TEXT NOT NULL,
    kernel_boot   TEXT NOT NULL,
    life          TEXT NOT NULL,
    falls         INTEGER NOT NULL,
    baseline_up   INTEGER NOT NULL,
    baseline_down INTEGER NOT NULL,
    seen_up       INTEGER NOT NULL,
    seen_down     INTEGER NOT NULL
) STRICT;

-- A held reading was never published: it may still be replaced by a newer one of its epoch.
CREATE TABLE outbox (
    position  INTEGER PRIMARY KEY AUTOINCREMENT,
    boot      TEXT NOT NULL,
    seq       INTEGER NOT NULL,
    epoch     TEXT NOT NULL,
    message   BLOB NOT NULL,
    used_up   INTEGER NOT NULL,
    used_down INTEGER NOT NULL,
    held      INTEGER NOT NULL,
    CONSTRAINT a_number_is_used_once UNIQUE (boot, seq)
) STRICT;

CREATE TABLE rejected (
    rejected_no INTEGER PRIMARY KEY AUTOINCREMENT,
    boot        TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL
) STRICT;

-- One row: what may be used by the commands that were obeyed.
CREATE TABLE limits (
    throttled_by      INTEGER NOT NULL,
    octets_per_second INTEGER,
    suspended_by      INTEGER NOT NULL,
    resumed_by        INTEGER NOT NULL
) STRICT;

INSERT INTO limits VALUES (0, NULL, 0, 0);

PRAGMA user_version = 2;
