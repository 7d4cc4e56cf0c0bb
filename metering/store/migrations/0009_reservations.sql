-- Quota ahead of use: what is granted to a device, where it is held, and how each grant ended.

CREATE TABLE reservation (
    reservation_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id      text NOT NULL,
    device_no       bigint NOT NULL REFERENCES device,
    fleet_no        integer NOT NULL REFERENCES fleet,
    subscription_no bigint NOT NULL REFERENCES subscription,
    meter_no        smallint NOT NULL,
    zone            text,
    requested       bigint,
    granted         bigint NOT NULL CONSTRAINT a_grant_is_not_negative CHECK (granted >= 0),
    held            bigint NOT NULL CONSTRAINT no_more_is_held_than_granted
                    CHECK (held BETWEEN 0 AND granted),
    overshoot_bound bigint NOT NULL,
    final_action    text CONSTRAINT final_action_is_known
                    CHECK (final_action IN ('terminate', 'restrict', 'overage')),
    state           text NOT NULL DEFAULT 'active' CONSTRAINT reservation_state_is_known
                    CHECK (state IN ('active', 'settled', 'replaced', 'released', 'expired')),
    granted_at      timestamptz NOT NULL,
    expires_at      timestamptz NOT NULL,
    run_no          bigint NOT NULL,
    replaces_no     bigint REFERENCES reservation,
    used            bigint,
    ended_at        timestamptz,
    ended_run_no    bigint,
    drawn           bigint,
    CONSTRAINT a_request_is_granted_once UNIQUE (device_no, request_id),
    CONSTRAINT a_reservation_is_replaced_once UNIQUE (replaces_no),
    CONSTRAINT a_reservation_ends_in_a_run CHECK (
        (state = 'active') = (ended_run_no IS NULL)
        AND (state = 'active') = (ended_at IS NULL) AND (state = 'active') = (drawn IS NULL)
        AND (state <> 'active' OR used IS NULL)),
    CONSTRAINT a_reservation_ends_after_it_was_granted CHECK (ended_run_no >= run_no)
) WITH (fillfactor = 80);
COMMENT ON TABLE reservation IS 'Quota promised to a device ahead of its use; it ends exactly once.';
COMMENT ON COLUMN reservation.request_id IS 'The name that the device or the caller gave it.';
COMMENT ON COLUMN reservation.requested IS 'NULL: as much as is likely to be used.';
COMMENT ON COLUMN reservation.held IS 'What was held for it: less than granted where a correction left less.';
COMMENT ON COLUMN reservation.final_action IS 'Set on a last grant: what the device does when it is used up.';
COMMENT ON COLUMN reservation.overshoot_bound IS 'The most that the device could overshoot by, when it was granted.';
COMMENT ON COLUMN reservation.used IS 'What the device said that it used; NULL: it said nothing.';
COMMENT ON COLUMN reservation.drawn IS 'What of it was charged until it ended; the rest was released.';
CREATE UNIQUE INDEX one_active_reservation_a_device_and_meter
    ON reservation (device_no, meter_no) WHERE state = 'active';
CREATE INDEX reservation_that_expires ON reservation (expires_at) WHERE state = 'active';
CREATE INDEX reservation_by_end ON reservation (fleet_no, ended_at);
CREATE INDEX reservation_by_device ON reservation (device_no, reservation_no DESC);

-- What is still held in a bucket for a subscription: use draws on it first.
CREATE TABLE bucket_hold (
    bucket_no       bigint NOT NULL REFERENCES bucket,
    subscription_no bigint NOT NULL REFERENCES subscription,
    reservation_no  bigint NOT NULL REFERENCES reservation,
    quantity        numeric(38, 0) NOT NULL CONSTRAINT a_hold_is_not_negative CHECK (quantity >= 0),
    PRIMARY KEY (bucket_no, subscription_no)
) WITH (fillfactor = 60);
CREATE INDEX bucket_hold_by_reservation ON bucket_hold (reservation_no);

ALTER TABLE bucket ADD COLUMN reserved numeric(38, 0) NOT NULL DEFAULT 0;
ALTER TABLE bucket ADD CONSTRAINT bucket_is_not_oversold
    CHECK (reserved >= 0 AND used + reserved <= granted + taken_back);
COMMENT ON COLUMN bucket.reserved IS 'Cached: what is held in it for all subscriptions together.';
COMMENT ON COLUMN bucket.granted IS 'Cached: the sum of its entries, without holds and releases.';

-- Holds and releases are entries, too; they do not change what was granted.
ALTER TABLE bucket_entry ADD COLUMN reservation_no bigint REFERENCES reservation;
ALTER TABLE bucket_entry DROP CONSTRAINT bucket_entry_kind_is_known;
ALTER TABLE bucket_entry ADD CONSTRAINT bucket_entry_kind_is_known CHECK (kind IN
    ('grant', 'regrant', 'expiry', 'rollover', 'top_up', 'transfer', 'adjustment', 'hold', 'release'));
ALTER TABLE bucket_entry ADD CONSTRAINT a_hold_and_its_release_have_a_reservation
    CHECK ((kind IN ('hold', 'release')) = (reservation_no IS NOT NULL)
        AND (reservation_no IS NULL OR (quantity >= 0 AND subscription_no IS NOT NULL)));
CREATE UNIQUE INDEX a_reservation_holds_and_releases_once ON bucket_entry (reservation_no, bucket_no, kind)
    WHERE reservation_no IS NOT NULL;

-- A hold moves nothing out of its bucket: it goes from what is available there to what is reserved.
CREATE OR REPLACE VIEW posting AS
SELECT bucket.fleet_no, entry.bucket_entry_no, NULL::bigint AS boot_no, NULL::bigint AS seq,
    NULL::smallint AS part, entry.run_no, entry.kind, side.account, side.bucket_no, side.quantity
FROM bucket_entry AS entry JOIN bucket USING (bucket_no)
CROSS JOIN LATERAL (VALUES ('bucket', entry.bucket_no, entry.quantity),
    (entry.against, entry.other_bucket_no, -entry.quantity)) AS side (account, bucket_no, quantity)
WHERE entry.kind NOT IN ('hold', 'release')
UNION ALL
SELECT bucket.fleet_no, entry.bucket_entry_no, NULL, NULL, NULL, entry.run_no, entry.kind, side.account,
    entry.bucket_no, CASE entry.kind WHEN 'hold' THEN side.quantity ELSE -side.quantity END
FROM bucket_entry AS entry JOIN bucket USING (bucket_no)
CROSS JOIN LATERAL (VALUES ('available', -entry.quantity), ('reserved', entry.quantity))
    AS side (account, quantity)
WHERE entry.kind IN ('hold', 'release')
UNION ALL
SELECT charge.fleet_no, NULL, charge.boot_no, charge.seq, charge.part, charge.run_no, 'consumption',
    'bucket', draw.bucket_no, -draw.quantity::numeric
FROM charge CROSS JOIN LATERAL unnest(charge.draw_buckets, charge.draw_quantities)
    AS draw (bucket_no, quantity)
WHERE charge.draw_buckets IS NOT NULL
UNION ALL
SELECT charge.fleet_no, NULL, charge.boot_no, charge.seq, charge.part, charge.run_no, 'consumption',
    'consumption', NULL, (charge.from_allowance + charge.from_pool)::numeric
FROM charge WHERE charge.from_allowance + charge.from_pool > 0;
