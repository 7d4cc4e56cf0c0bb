"""The kinds of event: what webhooks, streams and the list of events tell, each by one name."""

from enum import StrEnum


class EventKind(StrEnum):
    """What happened; a kind keeps its name."""

    BALANCE_ADJUSTED = "balance.adjusted"
    BALANCE_TOPPED_UP = "balance.topped_up"
    BALANCE_TRANSFERRED = "balance.transferred"
    BILL_FINALISED = "bill.finalised"
    BILL_OVERDUE = "bill.overdue"
    BILL_PAID = "bill.paid"
    BILL_UNPAID = "bill.unpaid"
    CREDIT_NOTE_ISSUED = "credit_note.issued"
    DEBIT_NOTE_ISSUED = "debit_note.issued"
    DEVICE_FLOODING = "device.flooding"
    FLEET_RESUMED = "fleet.resumed"
    FLEET_SUSPENDED = "fleet.suspended"
    PAYMENT_FAILED = "payment.failed"
    PAYMENT_RECEIVED = "payment.received"
    PAYMENT_REFUNDED = "payment.refunded"
    PAYMENT_REVERSED = "payment.reversed"
    REFUND_FAILED = "refund.failed"
    RESERVATION_EXPIRED = "reservation.expired"
    THRESHOLD_CLEARED = "threshold.cleared"
    THRESHOLD_CROSSED = "threshold.crossed"
    WALLET_LOW = "wallet.low"
    WEBHOOK_DISABLED = "webhook.disabled"
    WEBHOOK_TEST = "webhook.test"

    @property
    def meaning(self) -> str:
        """When it is told, in a few words."""
        return _MEANINGS[self]


_MEANINGS = {
    EventKind.BALANCE_ADJUSTED: "units were given or taken away by hand",
    EventKind.BALANCE_TOPPED_UP: "a device or a fleet was topped up",
    EventKind.BALANCE_TRANSFERRED: "units were moved to another bucket",
    EventKind.BILL_FINALISED: "a bill is numbered and frozen",
    EventKind.BILL_OVERDUE: "a bill is due for as long as the payment policy reminds of",
    EventKind.BILL_PAID: "nothing of a bill is open any more",
    EventKind.BILL_UNPAID: "something of a bill that was paid is open again",
    EventKind.CREDIT_NOTE_ISSUED: "a credit note was issued on a bill",
    EventKind.DEBIT_NOTE_ISSUED: "a debit note was issued on a bill",
    EventKind.DEVICE_FLOODING: "a device sends more than it may",
    EventKind.FLEET_RESUMED: "a fleet that was suspended for what it owed goes on",
    EventKind.FLEET_SUSPENDED: "a fleet is suspended for what it owes",
    EventKind.PAYMENT_FAILED: "the payment provider could not collect",
    EventKind.PAYMENT_RECEIVED: "money came",
    EventKind.PAYMENT_REFUNDED: "money was given back",
    EventKind.PAYMENT_REVERSED: "a payment bounced",
    EventKind.REFUND_FAILED: "the payment provider could not give money back",
    EventKind.RESERVATION_EXPIRED: "quota ended unsettled",
    EventKind.THRESHOLD_CLEARED: "a value is under its limit again",
    EventKind.THRESHOLD_CROSSED: "a value reached its limit",
    EventKind.WALLET_LOW: "a prepaid wallet fell to its limit",
    EventKind.WEBHOOK_DISABLED: "an endpoint is told nothing more",
    EventKind.WEBHOOK_TEST: "somebody tested an endpoint",
}
