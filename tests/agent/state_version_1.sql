CREATE TABLE install (
    install_id  TEXT NOT NULL,
    tenant      TEXT NOT NULL,
    device      TEXT NOT NULL,
    kernel_boot TEXT NOT NULL,
    boots       INTEGER NOT NULL,
    last_seq    INTEGER NOT NULL
) STRICT;

CREATE TABLE counter (
    interface     TEXT PRIMARY KEY,
    kernel_boot   TEXT NOT NULL,
    ifindex       INTEGER NOT NULL,
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

PRAGMA user_version = 1;

INSERT INTO install VALUES ('0123456789abcdef', 't', 'd', 'k', 1, 7);
INSERT INTO counter VALUES ('wwan0', 'k', 2, 0, 1000, 2000, 1400, 2400);
INSERT INTO outbox (boot, seq, epoch, message, used_up, used_down, held) VALUES (
    '0123456789abcdef-1', 7, 'k/wwan0/2',
    CAST('{"boot":"0123456789abcdef-1","readings":[{"seq":7,"at":"2026-03-01T00:00:00Z","meter":"data","kind":"total","up":400,"down":400,"epoch":"k/wwan0/2","width":64}]}' AS BLOB),
    400, 400, 1
);
