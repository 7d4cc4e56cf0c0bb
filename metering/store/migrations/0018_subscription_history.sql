-- What was said of each subscription, in turn: so that a bill can be drawn up as it was believed to be at
-- any past moment. `subscription` is what holds of it now.

CREATE TABLE subscription_entry (
    subscription_no bigint NOT NULL REFERENCES subscription,
    entry_no        integer NOT NULL CONSTRAINT subscription_entries_are_numbered_from_one CHECK (entry_no >= 1),
    valid           tstzrange NOT NULL,
    correction_no   bigint REFERENCES correction,
    recorded_at     timestamptz NOT NULL,
    PRIMARY KEY (subscription_no, entry_no)
);
COMMENT ON COLUMN subscription_entry.entry_no IS 'Its place among those of its subscription: 1, 2, 3, … without a gap.';
COMMENT ON COLUMN subscription_entry.correction_no IS
    'The change of terms that said it; NULL: how it stood when this history began.';
COMMENT ON COLUMN subscription_entry.recorded_at IS 'When the change was made, or this history began.';

INSERT INTO subscription_entry (subscription_no, entry_no, valid, recorded_at)
SELECT subscription_no, 1, valid, now() FROM subscription;

-- A change of terms names its devices once it has written what it changes of them.
CREATE FUNCTION note_subscriptions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO subscription_entry (subscription_no, entry_no, valid, correction_no, recorded_at)
    SELECT subscription.subscription_no, coalesce(last.entry_no, 0) + 1, subscription.valid,
        correction.correction_no, correction.recorded_at
    FROM (SELECT DISTINCT correction_no, device_no FROM named) AS said
        JOIN correction USING (correction_no)
        JOIN subscription USING (device_no)
        LEFT JOIN LATERAL (SELECT entry_no, valid FROM subscription_entry AS entry
            WHERE entry.subscription_no = subscription.subscription_no
            ORDER BY entry_no DESC LIMIT 1) AS last ON true
    WHERE last.valid IS DISTINCT FROM subscription.valid;
    RETURN NULL;
END
$$;
CREATE TRIGGER changes_note_subscriptions AFTER INSERT ON correction_device
    REFERENCING NEW TABLE AS named FOR EACH STATEMENT EXECUTE FUNCTION note_subscriptions();
CREATE TRIGGER subscription_entry_is_immutable
    BEFORE UPDATE OR DELETE ON subscription_entry FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER subscription_entries_stay
    BEFORE TRUNCATE ON subscription_entry FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What a fleet was charged at a past moment is found among what was charged otherwise since.
CREATE INDEX superseded_charge_by_fleet ON superseded_charge (fleet_no, cycle_start);
