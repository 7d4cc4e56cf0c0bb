"""What the auditor reads of fleets' accounts: where entries, documents and states say different things."""

from decimal import Decimal

from metering.store.connection import Connection

_QUERIES = {
    "sums": (
        "SELECT 'entry ' || entry_no || ' sums to ' || sum(amount) || ' over its accounts'"
        " FROM account_posting WHERE fleet_no = %(fleet_no)s GROUP BY entry_no HAVING sum(amount) <> 0"
    ),
    "lots": (
        "SELECT account || ' of payment ' || coalesce(payment_no::text, 'none') || ' holds ' || sum(amount)"
        " FROM account_posting WHERE fleet_no = %(fleet_no)s AND account IN ('credit', 'wallet')"
        " GROUP BY account, payment_no HAVING sum(amount) < 0"
    ),
    "payments": (
        "SELECT 'payment ' || payment_no || ' is of ' || payment.amount || ', its entries say '"
        "   || coalesce(sum(account_entry.amount), 0)"
        " FROM payment LEFT JOIN account_entry USING (payment_no)"
        " WHERE payment.fleet_no = %(fleet_no)s AND coalesce(kind, 'payment') = 'payment'"
        " GROUP BY payment_no HAVING payment.amount <> coalesce(sum(account_entry.amount), 0)"
        "   OR bool_or(account_entry.currency <> payment.currency)"
    ),
    "unentered": (
        "SELECT 'payment ' || payment_no || ' was not entered' FROM payment"
        " WHERE fleet_no = %(fleet_no)s AND NOT EXISTS (SELECT FROM account_entry"
        "   WHERE account_entry.payment_no = payment.payment_no AND kind = 'payment')"
    ),
    # A bill is entered with what the wallet pays of it when it becomes final; a note as it is.
    "documents": (
        "SELECT document.name || ' owes ' || document.owed || ', its entries say ' || entered.amount"
        " FROM bill AS document CROSS JOIN LATERAL"
        "   (SELECT (SELECT coalesce(sum(CASE kind WHEN 'billing' THEN amount ELSE -amount END), 0)"
        "       FROM account_entry WHERE document_no = document.bill_no)"
        "     - (SELECT coalesce(sum(amount), 0) FROM account_entry WHERE document.kind = 'bill'"
        "       AND account_entry.bill_no = document.bill_no AND account_entry.kind = 'allocation'"
        "       AND from_account = 'wallet') AS amount) AS entered"
        " WHERE document.fleet_no = %(fleet_no)s AND document.state <> 'draft'"
        "   AND entered.amount <> document.owed"
    ),
    "currencies": (
        "SELECT 'entry ' || entry_no || ' is in ' || account_entry.currency || ', bill ' || bill.name"
        "   || ' in ' || bill.currency FROM account_entry JOIN bill USING (bill_no)"
        " WHERE account_entry.fleet_no = %(fleet_no)s AND bill.currency <> account_entry.currency"
    ),
    "states": (
        "SELECT bill.name || ' is ' || bill.state || ', with ' || -folded.amount || ' open'"
        " FROM bill CROSS JOIN LATERAL (SELECT coalesce(sum(amount), 0) AS amount FROM account_posting"
        "   WHERE account = 'bill' AND account_posting.bill_no = bill.bill_no) AS folded"
        " WHERE bill.fleet_no = %(fleet_no)s AND kind = 'bill' AND (folded.amount > 0 OR CASE state"
        "   WHEN 'paid' THEN folded.amount <> 0 WHEN 'void' THEN folded.amount <> 0"
        "   WHEN 'finalised' THEN folded.amount = 0 ELSE false END)"
    ),
    "provider": (
        "SELECT 'intent ' || known.intent_id || ' brought ' || received || ' less '"
        "   || refunded + disputed || ', payment ' || payment_no || ' says ' || payment.amount || ' less '"
        "   || back.amount FROM provider_payment AS known JOIN payment USING (payment_no)"
        " CROSS JOIN LATERAL (SELECT coalesce(sum(amount), 0) AS amount FROM account_entry"
        "   WHERE account_entry.payment_no = payment.payment_no AND to_account = 'outside') AS back"
        " WHERE fleet_no = %(fleet_no)s AND (received <> payment.amount"
        "   OR back.amount < least(refunded + disputed, payment.amount))"
    ),
}


_EVERY_QUERY = " UNION ALL ".join(
    f"(SELECT {place} AS place, fault FROM ({query} LIMIT 20) AS found (fault))"  # noqa: S608 - own text
    for place, query in enumerate(_QUERIES.values())
)
"""One statement, because each costs more than what it looks at."""


async def account_faults(connection: Connection, fleet_no: int) -> list[str]:
    """Return in words what is damaged of a fleet's account; at most 20 of each kind."""
    found = await connection.execute(_EVERY_QUERY.encode(), {"fleet_no": fleet_no})
    return [str(row[1]) for row in sorted(await found.fetchall())]


async def expected_balance(connection: Connection, fleet_no: int) -> Decimal:
    """Return what payments, what went back, and documents say a fleet's account comes to.

    Payments less refunds and reversals less what bills owe with their notes, and what the wallet paid of
    them; the wallet is included.
    """
    found = await connection.execute(
        "SELECT (SELECT coalesce(sum(amount), 0) FROM payment WHERE fleet_no = %(fleet_no)s)"
        " - (SELECT coalesce(sum(amount), 0) FROM account_entry"
        "   WHERE fleet_no = %(fleet_no)s AND kind IN ('refund', 'reversal'))"
        " - (SELECT coalesce(sum(owed), 0) FROM bill WHERE fleet_no = %(fleet_no)s"
        "   AND state <> 'draft')"
        " - (SELECT coalesce(sum(amount), 0) FROM account_entry"
        "   WHERE fleet_no = %(fleet_no)s AND kind = 'allocation' AND from_account = 'wallet')",
        {"fleet_no": fleet_no},
    )
    row = await found.fetchone()
    assert row is not None  # noqa: S101 - a row of scalars
    return Decimal(row[0])
