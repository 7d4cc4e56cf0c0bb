-- Payments and wallets: a fleet's account is a fold over entries; what is asked of a payment provider, and
-- what it says; reminders and suspensions of who does not pay.

ALTER TABLE billing_operation DROP CONSTRAINT billing_operation_kind_is_known;
ALTER TABLE billing_operation ADD CONSTRAINT billing_operation_kind_is_known CHECK (kind IN
    ('adjust', 'finalise', 'void', 'pay', 'note', 'dispute', 'resolve', 'rerate',
     'payment', 'allocate', 'refund', 'reverse', 'payment_request'));

-- Money that came.
CREATE TABLE payment (
    payment_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no   integer NOT NULL REFERENCES tenant,
    fleet_no    integer NOT NULL REFERENCES fleet,
    purpose     text NOT NULL CONSTRAINT purpose_of_a_payment_is_known CHECK (purpose IN ('account', 'wallet')),
    amount      numeric NOT NULL CONSTRAINT a_payment_brings_something CHECK (amount > 0),
    currency    text NOT NULL,
    method      text NOT NULL,
    reference   text,
    intent_id   text CONSTRAINT a_payment_intent_pays_once UNIQUE,
    received_at timestamptz NOT NULL,
    recorded_at timestamptz NOT NULL
);
CREATE INDEX payment_by_fleet ON payment (fleet_no, payment_no);
CREATE INDEX payment_by_tenant ON payment (tenant_no, payment_no);
COMMENT ON COLUMN payment.purpose IS 'Whether it pays bills, or tops up the wallet.';
COMMENT ON COLUMN payment.reference IS 'What it is known by outside, such as on a bank statement.';
COMMENT ON COLUMN payment.intent_id IS 'The payment intent of the provider that it came by; NULL: none.';
CREATE TRIGGER a_payment_is_immutable
    BEFORE UPDATE OR DELETE ON payment FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payments_stay BEFORE TRUNCATE ON payment FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- An entry moves an amount from one account of the fleet to another, so both sides are one row. What is on
-- `credit` and `wallet` is kept by the payment that it came from; NULL there: it came from a bill.
CREATE TABLE account_entry (
    entry_no     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fleet_no     integer NOT NULL REFERENCES fleet,
    kind         text NOT NULL,
    from_account text NOT NULL,
    to_account   text NOT NULL,
    amount       numeric NOT NULL CONSTRAINT an_entry_moves_something CHECK (amount > 0),
    currency     text NOT NULL,
    bill_no      bigint REFERENCES bill,
    document_no  bigint REFERENCES bill,
    payment_no   bigint REFERENCES payment,
    reason       text,
    made_at      timestamptz NOT NULL,
    CONSTRAINT an_entry_is_of_a_known_kind CHECK (CASE kind
        WHEN 'payment'    THEN from_account = 'outside' AND to_account IN ('credit', 'wallet')
        WHEN 'billing'    THEN from_account = 'bill' AND to_account = 'billed'
        WHEN 'credit'     THEN from_account = 'billed' AND to_account = 'bill'
        WHEN 'allocation' THEN from_account IN ('credit', 'wallet') AND to_account = 'bill'
        WHEN 'release'    THEN from_account = 'bill' AND to_account IN ('credit', 'wallet')
        WHEN 'refund'     THEN from_account IN ('credit', 'wallet') AND to_account = 'outside'
        WHEN 'reversal'   THEN from_account IN ('credit', 'wallet') AND to_account = 'outside'
        ELSE false END),
    CONSTRAINT an_entry_names_its_bill
        CHECK ((bill_no IS NOT NULL) = ('bill' IN (from_account, to_account))),
    CONSTRAINT an_entry_names_its_document
        CHECK ((document_no IS NOT NULL) = (kind IN ('billing', 'credit'))),
    CONSTRAINT money_from_outside_is_a_payment
        CHECK (kind NOT IN ('payment', 'reversal') OR payment_no IS NOT NULL),
    CONSTRAINT a_document_is_no_payment CHECK (document_no IS NULL OR payment_no IS NULL)
);
CREATE UNIQUE INDEX a_payment_is_entered_once ON account_entry (payment_no) WHERE kind = 'payment';
CREATE UNIQUE INDEX a_document_is_entered_once ON account_entry (document_no) WHERE document_no IS NOT NULL;
CREATE INDEX account_entry_by_fleet ON account_entry (fleet_no, entry_no);
CREATE INDEX account_entry_by_bill ON account_entry (bill_no, entry_no) WHERE bill_no IS NOT NULL;
CREATE INDEX account_entry_by_payment ON account_entry (payment_no, entry_no) WHERE payment_no IS NOT NULL;
COMMENT ON COLUMN account_entry.document_no IS 'The bill or note by which more, or less, is owed.';
CREATE TRIGGER account_entry_is_immutable
    BEFORE UPDATE OR DELETE ON account_entry FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER account_entries_stay
    BEFORE TRUNCATE ON account_entry FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE VIEW account_posting AS
    SELECT entry_no, fleet_no, kind, from_account AS account, -amount AS amount, currency, bill_no, payment_no,
        to_account AS other_account, made_at FROM account_entry
    UNION ALL
    SELECT entry_no, fleet_no, kind, to_account, amount, currency, bill_no, payment_no, from_account, made_at
    FROM account_entry;
COMMENT ON VIEW account_posting IS 'What each account got and gave; an entry''s two postings sum to zero.';

-- Whoever enters something owns the fleet; so two together neither allocate nor give back more than there is.
CREATE FUNCTION keep_accounts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    of_fleet fleet;
    billed bill;
    paid payment;
    there numeric;
BEGIN
    SELECT * INTO of_fleet FROM fleet WHERE fleet_no = NEW.fleet_no FOR NO KEY UPDATE;
    IF NEW.bill_no IS NOT NULL THEN
        SELECT * INTO billed FROM bill WHERE bill_no = NEW.bill_no;
        IF billed.fleet_no <> NEW.fleet_no OR billed.kind <> 'bill' OR billed.state = 'draft' THEN
            RAISE EXCEPTION '% is no final bill of the fleet', NEW.bill_no USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF NEW.payment_no IS NOT NULL THEN
        SELECT * INTO paid FROM payment WHERE payment_no = NEW.payment_no;
        IF paid.fleet_no <> NEW.fleet_no OR NEW.kind = 'payment' AND (paid.amount <> NEW.amount
                OR NEW.to_account <> CASE paid.purpose WHEN 'wallet' THEN 'wallet' ELSE 'credit' END) THEN
            RAISE EXCEPTION 'payment % says otherwise', NEW.payment_no USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF NOT NEW.currency = ALL (ARRAY[of_fleet.currency, coalesce(billed.currency, NEW.currency),
            coalesce(paid.currency, NEW.currency)]) THEN
        RAISE EXCEPTION '% is not the currency of fleet %', NEW.currency, of_fleet.fleet_id
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.from_account IN ('credit', 'wallet') THEN
        SELECT coalesce(sum(amount), 0) INTO there FROM account_posting
        WHERE fleet_no = NEW.fleet_no AND account = NEW.from_account
            AND payment_no IS NOT DISTINCT FROM NEW.payment_no;
        IF there < NEW.amount THEN
            RAISE EXCEPTION 'only % is left there', there USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    IF NEW.kind IN ('allocation', 'release') THEN
        SELECT coalesce(sum(amount), 0) INTO there FROM account_posting
        WHERE account = 'bill' AND bill_no = NEW.bill_no;
        IF NEW.kind = 'allocation' AND -there < NEW.amount THEN
            RAISE EXCEPTION 'bill % owes only %', billed.name, -there USING ERRCODE = 'check_violation';
        END IF;
        IF NEW.kind = 'release' AND NOT (NEW.payment_no IS NULL AND there >= NEW.amount) THEN
            SELECT coalesce(sum(amount), 0) INTO there FROM account_posting
            WHERE account = 'bill' AND bill_no = NEW.bill_no AND other_account = NEW.to_account
                AND payment_no IS NOT DISTINCT FROM NEW.payment_no;
            IF there < NEW.amount THEN
                RAISE EXCEPTION 'only % of bill % was paid from there', there, billed.name
                    USING ERRCODE = 'check_violation';
            END IF;
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER accounts_never_go_below_what_is_there
    BEFORE INSERT ON account_entry FOR EACH ROW EXECUTE FUNCTION keep_accounts();

-- When a wallet is low, and how it is topped up by itself.
CREATE TABLE wallet (
    fleet_no       integer PRIMARY KEY REFERENCES fleet,
    low_balance    numeric CONSTRAINT a_low_balance_is_above_nothing CHECK (low_balance > 0),
    top_up_below   numeric CONSTRAINT a_wallet_is_topped_up_below_something CHECK (top_up_below > 0),
    top_up_amount  numeric CONSTRAINT a_top_up_brings_something CHECK (top_up_amount > 0),
    customer       text,
    payment_method text,
    is_low         boolean NOT NULL DEFAULT false,
    is_asked       boolean NOT NULL DEFAULT false,
    occasion       integer NOT NULL DEFAULT 0,
    updated_at     timestamptz NOT NULL,
    CONSTRAINT a_wallet_that_is_topped_up_says_how CHECK (num_nulls(top_up_below, top_up_amount) IN (0, 2)
        AND (top_up_below IS NULL OR num_nulls(customer, payment_method) = 0))
);
COMMENT ON COLUMN wallet.customer IS 'The customer at the payment provider.';
COMMENT ON COLUMN wallet.is_low IS 'Whether it was told to be low since its balance fell below `low_balance`.';
COMMENT ON COLUMN wallet.is_asked IS 'Whether a top-up was asked for since it fell below `top_up_below`.';
COMMENT ON COLUMN wallet.occasion IS 'How often it was told to be low, or a top-up was asked for.';

-- What is asked of the payment provider: once a cause, with one idempotency key however often.
CREATE TABLE payment_request (
    request_no     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id     uuid NOT NULL UNIQUE,
    tenant_no      integer NOT NULL REFERENCES tenant,
    fleet_no       integer NOT NULL REFERENCES fleet,
    purpose        text NOT NULL CONSTRAINT purpose_of_a_request_is_known CHECK (purpose IN ('account', 'wallet')),
    amount         numeric NOT NULL CONSTRAINT a_request_is_for_something CHECK (amount > 0),
    currency       text NOT NULL,
    customer       text NOT NULL,
    payment_method text NOT NULL,
    cause          text NOT NULL,
    state          text NOT NULL DEFAULT 'queued' CONSTRAINT state_of_a_request_is_known
                   CHECK (state IN ('queued', 'asked', 'succeeded', 'failed')),
    attempts       integer NOT NULL DEFAULT 0,
    due_at         timestamptz,
    intent_id      text,
    problem        text,
    created_at     timestamptz NOT NULL,
    CONSTRAINT a_payment_is_asked_for_once_a_cause UNIQUE (tenant_no, cause),
    CONSTRAINT what_is_queued_is_due CHECK ((state = 'queued') = (due_at IS NOT NULL))
);
CREATE INDEX payment_request_due ON payment_request (due_at) WHERE due_at IS NOT NULL;
CREATE INDEX payment_request_by_fleet ON payment_request (fleet_no, request_no);
COMMENT ON COLUMN payment_request.request_id IS 'Its idempotency key at the provider, which names it back.';

-- What the provider says: each of its events once, and what is known of an intent by all of them.
CREATE TABLE provider_event (
    event_id    text PRIMARY KEY,
    kind        text NOT NULL,
    intent_id   text NOT NULL,
    received_at timestamptz NOT NULL
);
CREATE TABLE provider_payment (
    intent_id  text PRIMARY KEY,
    request_no bigint REFERENCES payment_request,
    currency   text NOT NULL,
    received   numeric NOT NULL DEFAULT 0,
    refunded   numeric NOT NULL DEFAULT 0,
    disputed   numeric NOT NULL DEFAULT 0,
    failure    text,
    payment_no bigint UNIQUE REFERENCES payment
);
COMMENT ON TABLE provider_payment IS 'Amounts only grow, so that the order in which events come changes nothing.';
COMMENT ON COLUMN provider_payment.request_no IS 'NULL: no event or answer named the request yet.';

-- What follows when a bill is not paid, and what did.
CREATE TABLE payment_policy (
    tenant_no     integer PRIMARY KEY REFERENCES tenant,
    reminder_days integer[] NOT NULL CONSTRAINT reminders_come_within_a_year
                  CHECK (0 <= ALL (reminder_days) AND 366 >= ALL (reminder_days)),
    suspend_days  integer CONSTRAINT devices_are_suspended_within_a_year CHECK (suspend_days BETWEEN 1 AND 366),
    updated_at    timestamptz NOT NULL
);
COMMENT ON COLUMN payment_policy.reminder_days IS 'So many days after a bill is due, one each.';
COMMENT ON COLUMN payment_policy.suspend_days IS 'Devices are suspended so many days after; NULL: never.';
CREATE TABLE payment_reminder (
    bill_no bigint NOT NULL REFERENCES bill,
    days    integer NOT NULL,
    told_at timestamptz NOT NULL,
    PRIMARY KEY (bill_no, days)
);
CREATE TABLE payment_suspension (
    suspension_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no     integer NOT NULL REFERENCES tenant,
    fleet_no      integer NOT NULL REFERENCES fleet,
    bill_no       bigint NOT NULL REFERENCES bill,
    state         text NOT NULL DEFAULT 'suspending' CONSTRAINT state_of_a_suspension_is_known
                  CHECK (state IN ('suspending', 'suspended', 'resuming', 'ended')),
    began_at      timestamptz NOT NULL,
    ended_at      timestamptz,
    CONSTRAINT a_suspension_ends_once CHECK ((state = 'ended') = (ended_at IS NOT NULL))
);
CREATE UNIQUE INDEX a_fleet_is_suspended_once_at_a_time ON payment_suspension (fleet_no) WHERE state <> 'ended';
CREATE TABLE payment_suspension_device (
    suspension_no bigint NOT NULL REFERENCES payment_suspension,
    device_no     bigint NOT NULL REFERENCES device,
    entry_no      integer,
    outcome       text CONSTRAINT what_became_of_a_device_is_known
                  CHECK (outcome IN ('resumed', 'changed_since', 'refused')),
    PRIMARY KEY (suspension_no, device_no)
);
CREATE INDEX payment_suspension_device_held ON payment_suspension_device (suspension_no, device_no)
    WHERE outcome IS NULL;
COMMENT ON COLUMN payment_suspension_device.entry_no IS 'What was said of its state by this; NULL: it was refused.';
COMMENT ON COLUMN payment_suspension_device.outcome IS 'NULL: it is suspended by this.';

CREATE INDEX bill_to_be_paid ON bill (tenant_no, due, bill_no) WHERE kind = 'bill' AND state = 'finalised';
