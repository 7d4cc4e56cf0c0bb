-- From version 1, which metered interfaces alone. Epochs are named otherwise now, so each goes on in a new one,
-- which counts from what was seen last.
ALTER TABLE counter RENAME TO interface_counter;

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

INSERT INTO counter
SELECT interface, '', 'interface,octets', kernel_boot, ifindex, falls, seen_up, seen_down, seen_up, seen_down
FROM interface_counter;

DROP TABLE interface_counter;

CREATE TABLE limits (
    throttled_by      INTEGER NOT NULL,
    octets_per_second INTEGER,
    suspended_by      INTEGER NOT NULL,
    resumed_by        INTEGER NOT NULL
) STRICT;

INSERT INTO limits VALUES (0, NULL, 0, 0);

PRAGMA user_version = 2;
