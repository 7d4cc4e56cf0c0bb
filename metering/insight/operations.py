"""What was asked of balances, held against what was done: lots that were bought, and entries."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from metering.rating.plan import DEVICE_TOP_UP_PRIORITY, FLEET_TOP_UP_PRIORITY
from metering.store.balances import Operation, TopUpRow
from metering.store.history import StoredEntry
from metering.usage import METERS


def operation_differences(
    operations: Sequence[Operation],
    entries: Sequence[StoredEntry],
    top_ups: Mapping[int, TopUpRow],
) -> list[str]:
    """Return where a fleet's operations differ from their requests, their entries and their lots."""
    differences: list[str] = []
    entered = {
        entry.operation_no: _of_entry(entry) for entry in entries if entry.operation_no is not None
    }
    asked = {operation.operation_no: _of_operation(operation) for operation in operations}
    differences += [
        f"operation {number} was {asked.get(number)}, entered is {entered.get(number)}"
        for number in sorted(asked.keys() | entered.keys())
        if asked.get(number) != entered.get(number)
    ]
    for operation in operations:
        requested, done = _requested(operation), _done(operation, top_ups)
        if requested != done:
            differences.append(
                f"operation {operation.operation_no} did {done}, requested was {requested}"
            )
    bought = {each.bucket_no for each in operations if each.kind == "top_up"}
    differences += [
        f"bucket {number} is a top-up that nobody made"
        for number in sorted(top_ups.keys() - bought)
    ]
    return differences


_Movement = tuple[str, int, int, int | None, int]
"""kind, run_no, bucket_no, the bucket it comes from, quantity"""


def _of_operation(done: Operation) -> _Movement:
    return (done.kind, done.run_no, done.bucket_no, done.from_bucket_no, done.quantity)


def _of_entry(entry: StoredEntry) -> _Movement:
    return (
        entry.kind.value,
        entry.place[0],
        entry.bucket_no,
        entry.other_bucket_no,
        entry.quantity,
    )


def _requested(operation: Operation) -> tuple[object, ...]:
    """Return what a request says, as what it should have done."""
    content = operation.content
    if operation.kind != "top_up":
        return tuple(content.values())
    device_no = content["device_no"]
    default = FLEET_TOP_UP_PRIORITY if device_no is None else DEVICE_TOP_UP_PRIORITY
    priority = content["priority"]
    return (
        content.get("fleet_no", operation.fleet_no),
        device_no,
        METERS[str(content["meter"])].meter_no,
        content["name"],
        default if priority is None else priority,
        content["zones"],
        _instant(content["begins_at"]) or operation.made_at,
        _instant(content["expires_at"]),
        content["quantity"],
    )


def _done(operation: Operation, top_ups: Mapping[int, TopUpRow]) -> tuple[object, ...]:
    match operation.kind:
        case "top_up":
            row = top_ups.get(operation.bucket_no)
            return () if row is None else (*row[1:9], operation.quantity)
        case "transfer":
            values = {
                "from": operation.from_bucket_no,
                "to": operation.bucket_no,
                "quantity": operation.quantity,
                "reason": operation.reason,
            }
        case _:
            values = {
                "bucket": operation.bucket_no,
                "quantity": operation.quantity,
                "reason": operation.reason,
            }
    # In the order of the request: jsonb keeps none of its own.
    return tuple(values.get(name) for name in operation.content)


def _instant(text: object) -> datetime | None:
    return None if text is None else datetime.fromisoformat(str(text))
