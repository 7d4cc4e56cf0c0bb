"""What senders are told whose message was refused as a whole."""

from datetime import UTC, datetime

from metering.ids import DeviceId, TenantId
from metering.ingest.admission import Message
from metering.ingest.ingester import _refused_messages
from metering.ingest.write_batch import BatchOutcome
from metering.usage import Rejection, RejectReason


def message(device: str, *rejections: Rejection) -> Message:
    return Message(
        topic="t",
        octets=1,
        sender=(TenantId("acme"), DeviceId(device)),
        received_at=datetime(2026, 5, 1, tzinfo=UTC),
        published_at=None,
        boot=None,
        readings=(),
        rejections=rejections,
    )


def test_who_said_nothing_to_refuse_is_told_nothing_beside_one_that_is_refused() -> None:
    """Such as an edge node that was born: its birth holds neither readings nor a fault."""
    refused = Rejection(reason=RejectReason.NOT_JSON, detail="no JSON", content=b"{")
    outcome = BatchOutcome(batch_no=1, rejections=[refused])
    told = _refused_messages(outcome, [message("edge"), message("broken", refused)])
    assert [(each.device_id, each.boot, each.rejections) for each in told] == [
        ("broken", "", (refused,))
    ]
