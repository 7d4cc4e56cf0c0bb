"""Charges that are alike, written many at a time: as rows of one form, filled by column."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from operator import add
from struct import pack
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from metering.period import BillCycle
from metering.rating.bucket import Bucket, BucketKind
from metering.rating.guide import Subscription
from metering.store.binary import (
    NULL_FIELD,
    instant_of,
    int8_array_field,
    microseconds,
    numeric_field,
)
from metering.store.charges import (
    CHARGE_COLUMNS,
    HOURS_SINCE,
    HourOfFleet,
    copy_charges,
    hour_of,
    store_hours,
)
from metering.store.columns import Column
from metering.store.connection import Connection
from metering.store.work import QueuedColumns


class UniformUsage(NamedTuple):
    """Readings by device, meter and order, and how much each of them used, and of that upwards."""

    queued: QueuedColumns
    quantity: Column
    uplink: Column


class UniformCharges(NamedTuple):
    """Charges of a run that differ in nothing else: one a reading, each met by one bucket or by none.

    They are of the readings from one place in the columns to another. `amounts` are what those cost that
    no bucket meets; `priced_before` is what of the cycle was priced before the first of them. `first` and
    `last` are when the first and the last usage began; the sums are those of all of them. (A named tuple,
    because a run may have as many of them as readings.)
    """

    begin: int
    end: int
    device_no: int
    fleet_no: int
    subscription: Subscription
    meter_no: int
    cycle: BillCycle
    bucket: Bucket | None
    priced_before: int
    amounts: Sequence[int] | None
    first: datetime
    last: datetime
    quantity: int
    uplink: int

    @property
    def overage(self) -> int:
        """What of it no bucket met."""
        return 0 if self.amounts is None else self.quantity

    @property
    def amount(self) -> int:
        """What all of it costs, in sub-units."""
        return 0 if self.amounts is None else sum(self.amounts)

    def columns_of(
        self, usage: UniformUsage
    ) -> tuple[Sequence[int], Sequence[int], Sequence[int], Sequence[int]]:
        """Return quantity, uplink, overage and amount of each charge."""
        quantity: list[int] = usage.quantity[self.begin : self.end].tolist()
        uplink: list[int] = usage.uplink[self.begin : self.end].tolist()
        if self.amounts is None:
            nothing = [0] * len(quantity)
            return quantity, uplink, nothing, nothing
        return quantity, uplink, quantity, self.amounts


def _field(name: str, form: str) -> list[tuple[str, str]]:
    return [(f"{name} octets", ">i4"), (name, form)]


_FORM = np.dtype([
    ("columns", ">i2"),
    *_field("measured_at", ">i8"), *_field("charged_at", ">i8"), *_field("run_no", ">i8"),
    *_field("run_position", ">i4"), *_field("boot_no", ">i8"), *_field("seq", ">i8"),
    *_field("part", ">i2"), *_field("device_no", ">i8"), *_field("fleet_no", ">i4"),
    *_field("subscription_no", ">i8"), *_field("plan_no", ">i4"), *_field("meter_no", ">i2"),
    *_field("cycle_start", ">i8"), *_field("usage_from", ">i8"), *_field("usage_to", ">i8"),
    *_field("quantity", ">i8"), *_field("uplink", ">i8"), *_field("variant", ">i2"),
    ("zone", ">i4"), ("band", ">i4"),
    *_field("billed", ">i8"), *_field("from_allowance", ">i8"), *_field("from_pool", ">i8"),
    *_field("overage", ">i8"),
])  # fmt: skip
"""A row of binary COPY up to `overage`, each field after its length; what follows differs in length."""
_ALIKE = np.zeros(1, _FORM)
"""A row with what is the same in all of them."""
_ALIKE["columns"] = CHARGE_COLUMNS.count(",") + 1
_ALIKE["zone"] = _ALIKE["band"] = -1  # NULL
for _name in _FORM.names or ():
    if _name.endswith(" octets"):
        _ALIKE[_name] = _FORM[_name.removesuffix(" octets")].itemsize
_DRAWN = np.dtype([("quantity", ">i8"), ("correction_no", ">i4")])
"""The end of a row that a bucket pays for: the one value of draw_quantities, and NULL."""
_ZERO = numeric_field(0)
_NO_DRAW = _ZERO + NULL_FIELD * 3
"""connection_fee, draw_buckets, draw_quantities, correction_no of what no bucket pays for."""
_ONE_DRAW_BEGINS = pack(">iiiiiii", 32, 1, 0, 20, 1, 1, 8)
"""An array of one bigint, up to its value."""


async def store_uniform_charges(
    connection: Connection,
    run_no: int,
    usage: UniformUsage,
    charged: Sequence[UniformCharges],
    *,
    now: datetime,
) -> None:
    """Write charges by binary COPY."""
    places = _places(charged)
    begins = _parted(_begun_rows(run_no, usage, charged, places, now))
    await copy_charges(connection, map(add, begins, _ends_of_rows(usage, charged, places)))


_Places = NDArray[np.intp]
_Rows = NDArray[np.void]


def _places(charged: Sequence[UniformCharges]) -> _Places:
    """Return the places of the readings of some charges, in the order of these."""
    begins = np.array([each.begin for each in charged], np.intp)
    counts = np.array([each.end for each in charged], np.intp) - begins
    shifts: _Places = np.repeat(begins - np.cumsum(counts) + counts, counts)
    return np.arange(len(shifts)) + shifts


def _parted(rows: _Rows) -> list[bytes]:
    """Return the octets of each row."""
    octets, size = rows.tobytes(), rows.dtype.itemsize
    return [octets[at : at + size] for at in range(0, len(octets), size)]


def _begun_rows(
    run_no: int,
    usage: UniformUsage,
    charged: Sequence[UniformCharges],
    places: _Places,
    now: datetime,
) -> _Rows:
    """Return the rows of charges, each up to `overage`."""
    counts = [each.end - each.begin for each in charged]
    queued = usage.queued
    quantity = usage.quantity[places]
    rows = np.repeat(_ALIKE, len(places))
    rows["charged_at"] = microseconds(now)
    rows["run_no"] = run_no
    rows["measured_at"] = rows["usage_to"] = queued.measured_at[places]
    rows["run_position"] = queued.position[places]
    rows["boot_no"] = queued.boot_no[places]
    rows["seq"] = queued.seq[places]
    rows["usage_from"] = queued.starts_at[places]
    rows["quantity"] = rows["billed"] = quantity
    rows["uplink"] = usage.uplink[places]
    cycle_starts = {each.cycle.start: microseconds(each.cycle.start) for each in charged}
    for name, values in (
        ("device_no", [each.device_no for each in charged]),
        ("fleet_no", [each.fleet_no for each in charged]),
        ("subscription_no", [each.subscription.subscription_no for each in charged]),
        ("plan_no", [each.subscription.plan_no for each in charged]),
        ("meter_no", [each.meter_no for each in charged]),
        ("cycle_start", [cycle_starts[each.cycle.start] for each in charged]),
    ):
        rows[name] = np.repeat(np.array(values, np.int64), counts)
    payers = ("overage", "from_allowance", "from_pool")
    paid_by = np.repeat([_payer(each.bucket) for each in charged], counts)
    for number, name in enumerate(payers):
        rows[name] = np.where(paid_by == number, quantity, 0)
    return rows


def _payer(bucket: Bucket | None) -> int:
    """Return which of overage, allowance and pool what is used is."""
    return 0 if bucket is None else 2 if bucket.kind is BucketKind.POOL else 1


def _ends_of_rows(
    usage: UniformUsage, charged: Iterable[UniformCharges], places: _Places
) -> Iterator[bytes]:
    """Yield what follows `overage` in each row: priced_before … correction_no."""
    quantities = usage.quantity[places]
    drawn = np.full(len(places), -1, _DRAWN)
    drawn["quantity"] = quantities
    ends, used = _parted(drawn), quantities.tolist()
    draws_of: dict[str, bytes] = {}
    at = 0
    for each in charged:
        first, at = at, at + each.end - each.begin
        before, bucket = numeric_field(each.priced_before), each.bucket
        if bucket is None:
            yield from _priced(each, used[first:at])
            continue
        draws = draws_of.get(bucket.bucket_id)
        if draws is None:
            number = int8_array_field([int(bucket.bucket_id)])
            draws = draws_of[bucket.bucket_id] = _ZERO * 2 + number + _ONE_DRAW_BEGINS
        head = before + draws
        for place in range(first, at):
            yield head + ends[place] if used[place] else before + _ZERO + _NO_DRAW


def _priced(of_line: UniformCharges, quantities: Sequence[int]) -> Iterator[bytes]:
    before = of_line.priced_before
    for quantity, amount in zip(quantities, of_line.amounts or (), strict=True):
        yield numeric_field(before) + numeric_field(amount) + _NO_DRAW
        before += quantity


async def add_uniform_to_hours(
    connection: Connection, usage: UniformUsage, charged: Iterable[UniformCharges]
) -> None:
    """Add charges that are new to the hourly rollups; each device's of a meter stand together."""
    hours: dict[HourOfFleet, list[int]] = {}
    begins = ends = HOURS_SINCE
    for each in charged:
        device_no, meter_no, fleet_no = each.device_no, each.meter_no, each.fleet_no
        plan_no = each.subscription.plan_no
        if not begins <= each.first < ends:
            begins = hour_of(each.first)
            ends = begins + timedelta(hours=1)
        if each.last < ends:
            hours[device_no, meter_no, plan_no, begins, "", fleet_no] = [
                each.end - each.begin, each.quantity, each.uplink, each.overage, each.amount
            ]  # fmt: skip
            continue
        starts = usage.queued.starts_at[each.begin : each.end].tolist()
        for start, *sums in zip(starts, *each.columns_of(usage), strict=True):
            key = (device_no, meter_no, plan_no, hour_of(instant_of(start)), "", fleet_no)
            known = hours.setdefault(key, [0, 0, 0, 0, 0])
            known[:] = map(add, known, (1, *sums))
    await store_hours(connection, hours)
