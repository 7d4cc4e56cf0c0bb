-- Bills: drawn up of a closed cycle, numbered without a gap, immutable from then on, corrected by notes.

-- How a tenant bills: who it is, how it numbers, and when bills become final.
CREATE TABLE tenant_billing (
    tenant_no           integer PRIMARY KEY REFERENCES tenant,
    seller              jsonb NOT NULL,
    prices_include_tax  boolean NOT NULL DEFAULT false,
    payment_days        integer NOT NULL DEFAULT 14
        CONSTRAINT a_bill_is_due_within_a_year CHECK (payment_days BETWEEN 0 AND 366),
    finalising          text NOT NULL DEFAULT 'by_hand' CONSTRAINT way_of_finalising_is_known
        CHECK (finalising IN ('at_once', 'after_days', 'by_hand')),
    finalise_after_days integer CONSTRAINT bills_wait_within_a_year
        CHECK (finalise_after_days BETWEEN 1 AND 366),
    updated_at          timestamptz NOT NULL,
    CONSTRAINT bills_wait_so_many_days_if_they_wait
        CHECK ((finalising = 'after_days') = (finalise_after_days IS NOT NULL))
);
COMMENT ON COLUMN tenant_billing.seller IS 'Name, address, tax id and bank account, as documents have them.';
COMMENT ON COLUMN tenant_billing.prices_include_tax IS 'Whether plans state prices with tax.';
COMMENT ON COLUMN tenant_billing.payment_days IS 'A bill is due so many days after it was issued.';

-- A number is a prefix, the year where the series begins anew each year, and the count in so many digits.
CREATE TABLE number_series (
    tenant_no integer NOT NULL REFERENCES tenant_billing,
    series    text NOT NULL CONSTRAINT bills_and_notes_have_a_series_each CHECK (series IN ('bill', 'note')),
    prefix    text NOT NULL CONSTRAINT a_prefix_is_short_and_printable CHECK (prefix ~ '^[!-~]{0,20}$'),
    by_year   boolean NOT NULL,
    digits    smallint NOT NULL CONSTRAINT a_number_has_some_digits CHECK (digits BETWEEN 1 AND 12),
    PRIMARY KEY (tenant_no, series)
);
CREATE TABLE number_counter (
    tenant_no   integer NOT NULL REFERENCES tenant,
    series      text NOT NULL,
    year        smallint NOT NULL,
    last_number bigint NOT NULL CONSTRAINT numbers_begin_at_one CHECK (last_number >= 1),
    PRIMARY KEY (tenant_no, series, year)
);
COMMENT ON TABLE number_counter IS 'Raised in the transaction that gives a number, so that none is ever left out.';
COMMENT ON COLUMN number_counter.year IS 'The year of the numbers; 0: the series never begins anew.';

-- Whom a fleet's bills are for.
CREATE TABLE fleet_billing (
    fleet_no   integer PRIMARY KEY REFERENCES fleet,
    buyer      jsonb NOT NULL,
    customer   text NOT NULL,
    updated_at timestamptz NOT NULL
);
COMMENT ON COLUMN fleet_billing.customer IS 'The category of tax rules that it falls under.';

CREATE TABLE tax_rule (
    tax_rule_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no   integer NOT NULL REFERENCES tenant,
    country     text NOT NULL CONSTRAINT a_country_has_two_letters CHECK (country ~ '^[A-Z]{2}$'),
    customer    text NOT NULL,
    category    text NOT NULL CONSTRAINT tax_category_is_known CHECK (category IN ('S', 'Z', 'E', 'AE', 'O')),
    rate        numeric NOT NULL CONSTRAINT a_rate_is_in_per_cent CHECK (rate BETWEEN 0 AND 100),
    valid       daterange NOT NULL CONSTRAINT a_tax_rule_holds_some_day CHECK (NOT isempty(valid)),
    reason      text,
    reason_code text,
    CONSTRAINT the_standard_category_alone_has_a_rate CHECK ((category = 'S') = (rate > 0)),
    CONSTRAINT an_exemption_says_why CHECK (category <> 'E' OR reason IS NOT NULL),
    CONSTRAINT one_tax_rule_holds_at_a_time
        EXCLUDE USING gist (tenant_no WITH =, country WITH =, customer WITH =, valid WITH &&)
);
COMMENT ON COLUMN tax_rule.valid IS 'The tax points, local days, for which it holds.';

-- Bills, and the notes that correct them.
CREATE TABLE bill (
    bill_no       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no     integer NOT NULL REFERENCES tenant,
    fleet_no      integer NOT NULL REFERENCES fleet,
    cycle_start   timestamptz NOT NULL,
    kind          text NOT NULL DEFAULT 'bill' CONSTRAINT document_kind_is_known
                  CHECK (kind IN ('bill', 'credit_note', 'debit_note')),
    corrects_no   bigint REFERENCES bill,
    state         text NOT NULL DEFAULT 'draft' CONSTRAINT document_state_is_known
                  CHECK (state IN ('draft', 'finalised', 'paid', 'void')),
    drafted_at    timestamptz NOT NULL,
    series        text,
    year          smallint,
    number        bigint,
    name          text,
    issued        date,
    due           date,
    currency      text,
    gross         numeric,
    owed          numeric,
    document      jsonb,
    drawn_from    jsonb,
    finalised_at  timestamptz,
    state_at      timestamptz NOT NULL,
    FOREIGN KEY (fleet_no, cycle_start) REFERENCES closed_cycle,
    CONSTRAINT a_note_corrects_a_bill CHECK ((kind = 'bill') = (corrects_no IS NULL)),
    CONSTRAINT a_note_is_final CHECK (kind = 'bill' OR state = 'finalised'),
    CONSTRAINT what_is_no_draft_is_numbered_and_frozen CHECK (
        num_nulls(series, year, number, name, issued, currency, gross, owed, document, drawn_from,
            finalised_at) = CASE state WHEN 'draft' THEN 11 ELSE 0 END),
    CONSTRAINT a_document_is_in_the_series_of_its_kind
        CHECK (series = CASE kind WHEN 'bill' THEN 'bill' ELSE 'note' END),
    CONSTRAINT a_number_is_given_once UNIQUE (tenant_no, series, year, number),
    CONSTRAINT a_number_names_one_document UNIQUE (tenant_no, name)
);
CREATE UNIQUE INDEX a_cycle_has_one_bill_that_holds ON bill (fleet_no, cycle_start)
    WHERE kind = 'bill' AND state <> 'void';
CREATE INDEX bill_by_tenant ON bill (tenant_no, bill_no);
CREATE INDEX bill_by_fleet ON bill (fleet_no, bill_no);
CREATE INDEX bill_draft ON bill (bill_no) WHERE state = 'draft';
CREATE INDEX note_by_bill ON bill (corrects_no, bill_no) WHERE corrects_no IS NOT NULL;
COMMENT ON TABLE bill IS 'A fleet''s bill of a closed cycle, or a note that corrects one.';
COMMENT ON COLUMN bill.name IS 'Its number as it is written.';
COMMENT ON COLUMN bill.gross IS 'What it comes to with tax; of a credit note what it takes off.';
COMMENT ON COLUMN bill.owed IS 'What it adds to what is to be paid: less what is prepaid; below 0 of a credit note.';
COMMENT ON COLUMN bill.document IS 'What is sent: parties, lines, tax and totals.';
COMMENT ON COLUMN bill.drawn_from IS 'Seller, buyer, tax rules and adjustments that it was drawn up from.';
COMMENT ON COLUMN bill.state_at IS 'Since when it is in its state.';

-- A draft becomes final with all that it says, or stays a draft; what is final changes its state alone.
CREATE FUNCTION keep_what_is_final() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    moves constant text[] := ARRAY['finalised paid', 'paid finalised', 'finalised void', 'paid void'];
    credited numeric;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.kind = 'bill' AND NEW.state <> 'draft' THEN
            RAISE EXCEPTION 'a bill begins as a draft' USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF TG_OP = 'DELETE' THEN
        RAISE EXCEPTION 'bill % stays; void it', OLD.bill_no USING ERRCODE = 'check_violation';
    END IF;
    IF OLD.state = 'draft' THEN
        IF NEW.state NOT IN ('draft', 'finalised') OR (NEW.bill_no, NEW.tenant_no, NEW.fleet_no, NEW.cycle_start,
                NEW.kind, NEW.drafted_at) IS DISTINCT FROM (OLD.bill_no, OLD.tenant_no, OLD.fleet_no,
                OLD.cycle_start, OLD.kind, OLD.drafted_at) THEN
            RAISE EXCEPTION 'draft % can only become final', OLD.bill_no
                USING ERRCODE = 'check_violation';
        END IF;
        RETURN NEW;
    END IF;
    IF to_jsonb(NEW) - ARRAY['state', 'state_at'] <> to_jsonb(OLD) - ARRAY['state', 'state_at'] THEN
        RAISE EXCEPTION 'bill % is final; issue a note', OLD.bill_no USING ERRCODE = 'check_violation';
    END IF;
    IF NOT (OLD.state || ' ' || NEW.state) = ANY (moves) THEN
        RAISE EXCEPTION 'bill % is %, and cannot become %', OLD.bill_no, OLD.state, NEW.state
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.state = 'void' THEN
        SELECT coalesce(sum(CASE kind WHEN 'credit_note' THEN gross ELSE -gross END), 0) INTO credited
        FROM bill WHERE corrects_no = OLD.bill_no;
        IF credited <> OLD.gross THEN
            RAISE EXCEPTION 'bill % is void only once notes take off all of it', OLD.bill_no
                USING ERRCODE = 'check_violation';
        END IF;
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER a_bill_is_final_for_good
    BEFORE INSERT OR UPDATE OR DELETE ON bill FOR EACH ROW EXECUTE FUNCTION keep_what_is_final();
CREATE TRIGGER bills_stay BEFORE TRUNCATE ON bill FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Whoever gives a note owns its bill; so no two notes together take off more than there is. What takes
-- back a bill that is in the buyer's favour is a debit note, which is held to what is left by its operation.
CREATE FUNCTION keep_notes_within() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    corrected bill;
    beyond bigint;
    stays numeric;
BEGIN
    SELECT * INTO corrected FROM bill WHERE bill_no = NEW.corrects_no FOR UPDATE;
    IF corrected.kind <> 'bill' OR corrected.state NOT IN ('finalised', 'paid') THEN
        RAISE EXCEPTION 'note % is for none that is a final bill', NEW.name USING ERRCODE = 'check_violation';
    END IF;
    IF (NEW.tenant_no, NEW.fleet_no, NEW.cycle_start, NEW.currency) IS DISTINCT FROM (corrected.tenant_no,
            corrected.fleet_no, corrected.cycle_start, corrected.currency) THEN
        RAISE EXCEPTION 'note % is of another fleet, cycle or currency than bill %', NEW.name, corrected.name
            USING ERRCODE = 'check_violation';
    END IF;
    IF NEW.kind = 'debit_note' THEN
        RETURN NEW;
    END IF;
    WITH taken AS (
        SELECT (line ->> 'corrects')::bigint AS line, (line ->> 'amount')::numeric
                * CASE note.kind WHEN 'credit_note' THEN 1 ELSE -1 END AS amount, note.is_new
        FROM (SELECT kind, document, false AS is_new FROM bill WHERE corrects_no = NEW.corrects_no
              UNION ALL SELECT NEW.kind, NEW.document, true) AS note,
            jsonb_array_elements(note.document -> 'lines') AS line
        WHERE line ->> 'corrects' IS NOT NULL
    ), changed AS (
        SELECT line, sum(amount) FILTER (WHERE is_new) AS amount,
            coalesce(sum(amount) FILTER (WHERE NOT is_new), 0) AS before
        FROM taken GROUP BY line HAVING bool_or(is_new)
    ), left_then AS (
        SELECT line, (told ->> 'amount')::numeric - before AS before,
            (told ->> 'amount')::numeric - before - changed.amount AS after
        FROM changed LEFT JOIN jsonb_array_elements(corrected.document -> 'lines') AS told
            ON (told ->> 'number')::bigint = line
    )
    SELECT line INTO beyond FROM left_then
    WHERE before IS NULL OR after * before < 0 OR abs(after) > abs(before) LIMIT 1;
    IF beyond IS NOT NULL THEN
        RAISE EXCEPTION 'note % takes more off line % of bill % than is left', NEW.name, beyond, corrected.name
            USING ERRCODE = 'check_violation';
    END IF;
    SELECT corrected.gross - NEW.gross
        - coalesce(sum(CASE kind WHEN 'credit_note' THEN gross ELSE -gross END), 0) INTO stays
    FROM bill WHERE corrects_no = NEW.corrects_no;
    IF stays < 0 OR NEW.gross < 0 THEN
        RAISE EXCEPTION 'note % takes more off bill % than is left', NEW.name, corrected.name
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER notes_never_exceed_their_bill BEFORE INSERT ON bill FOR EACH ROW
    WHEN (NEW.corrects_no IS NOT NULL) EXECUTE FUNCTION keep_notes_within();

-- What a tenant asked to be done to bills, each once by its key.
CREATE TABLE billing_operation (
    operation_no    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no       integer NOT NULL REFERENCES tenant,
    idempotency_key text NOT NULL,
    kind            text NOT NULL CONSTRAINT billing_operation_kind_is_known CHECK (kind IN
                    ('adjust', 'finalise', 'void', 'pay', 'note', 'dispute', 'resolve', 'rerate')),
    content         jsonb NOT NULL,
    outcome         jsonb NOT NULL,
    made_at         timestamptz NOT NULL,
    CONSTRAINT a_billing_key_is_used_once UNIQUE (tenant_no, idempotency_key)
);
COMMENT ON COLUMN billing_operation.content IS 'The request as it was made: a repetition has the same.';
COMMENT ON COLUMN billing_operation.outcome IS 'The numbers of what it made.';

-- Credits (below 0) and debits that somebody entered, each in one cycle's bill.
CREATE TABLE bill_adjustment (
    adjustment_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no     integer NOT NULL REFERENCES tenant,
    fleet_no      integer NOT NULL REFERENCES fleet,
    name          text NOT NULL,
    reason        text NOT NULL,
    amount        numeric NOT NULL CONSTRAINT an_adjustment_of_a_bill_is_not_zero CHECK (amount <> 0),
    currency      text NOT NULL,
    billed_in     timestamptz,
    made_at       timestamptz NOT NULL,
    FOREIGN KEY (fleet_no, billed_in) REFERENCES closed_cycle (fleet_no, cycle_start)
);
CREATE INDEX bill_adjustment_by_bill ON bill_adjustment (fleet_no, billed_in);
COMMENT ON COLUMN bill_adjustment.billed_in IS 'The cycle whose bill it is in; NULL: the next that is drafted.';
CREATE FUNCTION keep_adjustment() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.billed_in IS NULL
            AND to_jsonb(NEW) - 'billed_in' = to_jsonb(OLD) - 'billed_in' THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'adjustment % stays as it is; enter another', OLD.adjustment_no
        USING ERRCODE = 'check_violation';
END
$$;
CREATE TRIGGER a_bills_adjustment_is_immutable
    BEFORE UPDATE OR DELETE ON bill_adjustment FOR EACH ROW EXECUTE FUNCTION keep_adjustment();
CREATE TRIGGER bills_adjustments_stay
    BEFORE TRUNCATE ON bill_adjustment FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

CREATE TABLE dispute (
    dispute_no  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_no   integer NOT NULL REFERENCES tenant,
    bill_no     bigint NOT NULL REFERENCES bill,
    line        integer NOT NULL,
    amount      numeric NOT NULL,
    held        numeric NOT NULL,
    reason      text NOT NULL,
    opened_at   timestamptz NOT NULL,
    state       text NOT NULL DEFAULT 'open' CONSTRAINT dispute_state_is_known
                CHECK (state IN ('open', 'granted', 'refused')),
    resolution  text,
    resolved_at timestamptz,
    note_no     bigint REFERENCES bill,
    CONSTRAINT a_dispute_is_resolved_with_a_reason
        CHECK (num_nulls(resolution, resolved_at) = CASE state WHEN 'open' THEN 2 ELSE 0 END),
    CONSTRAINT a_granted_dispute_has_a_note CHECK ((state = 'granted') = (note_no IS NOT NULL))
);
CREATE UNIQUE INDEX a_line_has_one_open_dispute ON dispute (bill_no, line) WHERE state = 'open';
CREATE INDEX dispute_by_bill ON dispute (bill_no);
CREATE INDEX dispute_by_tenant ON dispute (tenant_no, dispute_no);
COMMENT ON COLUMN dispute.amount IS 'What of the line''s amount is disputed.';
COMMENT ON COLUMN dispute.held IS 'The same with tax: not to be paid while it is open.';

-- What a closed cycle owes since it closed and was settled by a note, so that no later bill carries it.
CREATE TABLE noted_adjustment (
    fleet_no     integer NOT NULL,
    cycle_start  timestamptz NOT NULL,
    run_no       bigint NOT NULL,
    late_records bigint NOT NULL CONSTRAINT late_records_come_only_in CHECK (late_records >= 0),
    amount       numeric NOT NULL,
    exact_amount text NOT NULL,
    note_no      bigint REFERENCES bill,
    PRIMARY KEY (fleet_no, cycle_start, run_no),
    FOREIGN KEY (fleet_no, cycle_start) REFERENCES closed_cycle,
    CONSTRAINT what_comes_to_nothing_alone_has_no_note CHECK ((note_no IS NULL) = (amount = 0))
);
CREATE INDEX noted_adjustment_by_note ON noted_adjustment (note_no);
CREATE TRIGGER noted_adjustment_is_immutable
    BEFORE UPDATE OR DELETE ON noted_adjustment FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER noted_adjustments_stay
    BEFORE TRUNCATE ON noted_adjustment FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Each cycle that closed before bills were drawn up has its draft.
INSERT INTO bill (tenant_no, fleet_no, cycle_start, drafted_at, state_at)
SELECT tenant_no, fleet_no, cycle_start, closed_at, closed_at FROM closed_cycle JOIN fleet USING (fleet_no)
ORDER BY closed_at, fleet_no, cycle_start;
