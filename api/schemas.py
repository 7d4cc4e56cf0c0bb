"""What the API answers: money and prices as decimal strings, times in RFC 3339 UTC.

A quantity is a whole number of its meter's base unit, which stands beside it as `unit`.
"""

from datetime import UTC, date, datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from metering.plan_document import PlanDocument

Time = Annotated[datetime, AfterValidator(lambda instant: instant.astimezone(UTC))]
Unit = Annotated[str, Field(description="the meter's base unit", examples=["octet"])]
Decimals = Annotated[str, Field(description="a decimal number", examples=["13.80"])]
Item = TypeVar("Item")
Source = Annotated[
    Literal["plan", "top_up"], Field(description="what a plan grants, or what was bought on top")
]


def _example(value: JsonDict) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [value]})


_CYCLE: JsonDict = {
    "start": "2026-03-31T22:00:00Z",
    "end": "2026-04-30T22:00:00Z",
    "first_day": "2026-04-01",
    "end_day": "2026-05-01",
}
_BUCKET: JsonDict = {
    "granted": 1000000000,
    "used": 250000000,
    "left": 750000000,
    "reserved": 5000000,
}
_HOLDS: JsonDict = {"bucket_no": 17, "begins_at": _CYCLE["start"], "expires_at": _CYCLE["end"]}
_MONEY: JsonDict = {"amount": "0.12", "exact_amount": "0.1234567", "currency": "EUR"}
_FLEET: JsonDict = {
    "fleet_id": "north",
    "name": "North",
    "currency": "EUR",
    "time_zone": "Europe/Berlin",
    "cycle": "month",
    "anchor_day": 1,
    "anchor_month": None,
    "time_zone_from": None,
    "labels": {"customer": "c-17"},
    "devices": 100,
    "created_at": "2026-01-01T00:00:00Z",
}
_DEVICE: JsonDict = {
    "device_id": "meter-7",
    "fleet_id": "north",
    "iccid": None,
    "imsi": None,
    "imei": None,
    "eid": None,
    "msisdn": None,
    "name": "Cellar",
    "tags": ["water"],
    "labels": {"site": "Hamburg"},
    "state": "active",
    "state_since": "2026-01-01T00:00:00Z",
    "subscription": {
        "plan_id": "basic",
        "plan_version": 1,
        "subscribed_from": "2026-01-01T00:00:00Z",
        "subscribed_to": None,
    },
    "created_at": "2026-01-01T00:00:00Z",
}
_TERMS: JsonDict = {
    "plan": "basic",
    "name": "Basic",
    "currency": "EUR",
    "monthly_fee": "5.00",
    "meters": {
        "data": {
            "allowance": "100 MB",
            "pooled": True,
            "price": {"amount": "0.10", "per": "1 MB"},
        }
    },
}
_PLAN: JsonDict = {
    "plan_id": "basic",
    "newest_version": 1,
    "name": "Basic",
    "currency": "EUR",
    "effective_from": "2026-01-01T00:00:00Z",
    "ends_at": None,
}
_PLAN_VERSION: JsonDict = {
    "version": 1,
    "name": "Basic",
    "effective_from": "2026-01-01T00:00:00Z",
    "created_at": "2026-01-01T00:00:00Z",
    "terms": _TERMS,
}


class Page(BaseModel, Generic[Item]):
    """One page of a list; `next_cursor` is null on the last."""

    items: list[Item]
    next_cursor: str | None = Field(description="give it as `cursor` for the page after this one")


class Money(BaseModel):
    """An amount: rounded to the currency's minor unit, and exact (to 30 places if periodic)."""

    amount: Decimals
    exact_amount: Decimals
    currency: str = Field(description="ISO 4217", examples=["EUR"])


class Cycle(BaseModel):
    """A bill cycle: instants `[start, end)`, and local days of the fleet's zone `[first_day, end_day)`."""

    start: Time
    end: Time
    first_day: date
    end_day: date


class Bucket(BaseModel):
    """An amount of allowance in the meter's base unit."""

    granted: int
    used: int
    left: int
    reserved: int | None = Field(
        description="what of `left` is promised to devices ahead of its use; null with `at`: that is not kept"
    )


class Fleet(BaseModel):
    """One fleet: the billing account of its devices."""

    model_config = _example(_FLEET)

    fleet_id: str
    name: str
    currency: str = Field(description="ISO 4217; each bill of the fleet is in it")
    time_zone: str = Field(description="IANA name; days and bill cycles are local to it")
    time_zone_from: Time | None = Field(
        description="from when on they are, where they were local to another before; null: always"
    )
    cycle: str = Field(description="how long a bill cycle is: month, quarter or year")
    anchor_day: int = Field(
        description="the day of the month on which a bill cycle begins; in a shorter one its last"
    )
    anchor_month: int | None = Field(
        description="a month in which a quarter or a year begins; null: cycles are months"
    )
    labels: dict[str, str]
    devices: int = Field(description="how many devices it has, in whatever state")
    created_at: Time


class Fleets(Page[Fleet]):
    """A page of fleets, ascending by id."""

    model_config = _example({"items": [_FLEET], "next_cursor": None})


class Lot(Bucket):
    """What a pool was given at one time: usage of `[begins_at, expires_at)` may draw from it."""

    bucket_no: int = Field(description="its number; see /v1/buckets/{bucket_no}")
    begins_at: Time
    expires_at: Time | None = Field(description="null: it has no end")


class Pool(BaseModel):
    """A pool of one meter as it is now: what the fleet's members share."""

    meter: str
    unit: Unit
    name: str = Field(description="of the plan's allowance; allowances of one name share a pool")
    source: Source
    plan_id: str | None = Field(description="whose devices alone share it; null: those of any plan")
    plan_version: int | None
    pool: Bucket = Field(description="the sum of its lots")
    lots: list[Lot] = Field(description="what holds now, the earliest first")


class FleetBalance(BaseModel):
    """What is left of a fleet's pools. A pool appears once charging opened the cycle."""

    model_config = _example(
        {
            "fleet_id": "north",
            "cycle": _CYCLE,
            "cycle_opened_at": "2026-04-01T00:00:01Z",
            "pools": [
                {
                    "meter": "data",
                    "unit": "octet",
                    "name": "pool",
                    "source": "plan",
                    "plan_id": None,
                    "plan_version": None,
                    "pool": _BUCKET,
                    "lots": [_BUCKET | _HOLDS],
                }
            ],
        }
    )

    fleet_id: str
    cycle: Cycle
    cycle_opened_at: Time | None = Field(description="null while charging has not opened the cycle")
    pools: list[Pool]


class _Line(BaseModel):
    plan_id: str
    plan_version: int
    plan_name: str
    device_id: str | None = Field(description="null on a line for all devices of the plan")
    devices: int = Field(description="how many devices it is for")
    amount: Decimals | None = Field(
        description="rounded; null where the plan rounds the total alone"
    )
    exact_amount: Decimals


class UsageLine(_Line):
    """One meter's use at one price of a plan version; only the overage has a price."""

    kind: Literal["usage"] = "usage"
    meter: str
    unit: Unit
    variant: int | None = Field(description="which of the meter's variants; null: its own price")
    records: int = Field(description="usage records")
    quantity: int = Field(description="what was used")
    billed_quantity: int = Field(
        description="what is charged of it: in_allowance + from_pool + overage"
    )
    in_allowance_quantity: int
    from_pool_quantity: int
    overage_quantity: int
    unit_price: Decimals | None = Field(
        description="the price of `unit_price_per` base units of overage; null where that is not all"
    )
    unit_price_per: int | None


class BaseLine(_Line):
    """What a price costs at no quantity at all."""

    kind: Literal["base"] = "base"
    meter: str
    variant: int | None = Field(description="which of the meter's variants; null: its own price")


class MinimumLine(_Line):
    """What brings the usage at a price up to its minimum."""

    kind: Literal["minimum"] = "minimum"
    meter: str
    variant: int | None = Field(description="which of the meter's variants; null: its own price")


class FeeLine(_Line):
    """A fee of one plan version, for the whole cycle as its subscriptions stand."""

    kind: Literal["fee"] = "fee"
    name: str
    shares: Decimals = Field(
        description="the devices' shares of the term, summed; 1 is a whole one"
    )
    term_start: Time | None = Field(description="null where the shares are of several terms")
    term_end: Time | None
    due_at: Time | None = Field(description="when the last part of it falls due")


class AdjustmentLine(_Line):
    """A discount, credit, commitment or maximum; a discount is negative."""

    kind: Literal["adjustment"] = "adjustment"
    name: str


class PeriodAdjustmentLine(BaseModel):
    """What a closed cycle owes since it closed (or since the bill before this), more or less."""

    kind: Literal["period_adjustment"] = "period_adjustment"
    cycle: Cycle = Field(description="the cycle that it corrects, whose own bill stays as it is")
    late_records: int = Field(
        description="usage records of it that came after it closed and are on no earlier bill"
    )
    currency: str = Field(description="ISO 4217")
    amount: Decimals
    exact_amount: Decimals


AnyLine = UsageLine | BaseLine | MinimumLine | FeeLine | AdjustmentLine | PeriodAdjustmentLine


class Bill(BaseModel):
    """The bill of a cycle; `total` is the sum of the lines' rounded amounts.

    A draft is as far as it is charged. A closed one never changes: what comes later is an adjustment in
    the bill of the cycle that closes next. Where the plan rounds the bill and not its lines, it is the
    rounded sum of their exact ones.
    """

    model_config = _example(
        {
            "fleet_id": "north",
            "state": "draft",
            "currency": "EUR",
            "cycle": _CYCLE,
            "as_of": "2026-04-15T12:00:00Z",
            "closed_at": None,
            "usage_complete": False,
            "usage_complete_to": "2026-04-15T11:40:00Z",
            "lines": [
                {
                    "kind": "usage",
                    "plan_id": "basic",
                    "plan_version": 1,
                    "plan_name": "Basic",
                    "device_id": None,
                    "devices": 2,
                    "amount": "0.12",
                    "exact_amount": "0.1234567",
                    "meter": "data",
                    "unit": "octet",
                    "variant": None,
                    "records": 18,
                    "quantity": 301234567,
                    "billed_quantity": 301234567,
                    "in_allowance_quantity": 0,
                    "from_pool_quantity": 300000000,
                    "overage_quantity": 1234567,
                    "unit_price": "0.10",
                    "unit_price_per": 1000000,
                },
                {
                    "kind": "fee",
                    "plan_id": "basic",
                    "plan_version": 1,
                    "plan_name": "Basic",
                    "device_id": None,
                    "devices": 3,
                    "amount": "13.33",
                    "exact_amount": "13.333333333333333333333333333333",
                    "name": "monthly_fee",
                    "shares": "2.666666666666666666666666666667",
                    "term_start": _CYCLE["start"],
                    "term_end": _CYCLE["end"],
                    "due_at": _CYCLE["end"],
                },
                {
                    "kind": "period_adjustment",
                    "cycle": {
                        "start": "2026-02-28T23:00:00Z",
                        "end": "2026-03-31T22:00:00Z",
                        "first_day": "2026-03-01",
                        "end_day": "2026-04-01",
                    },
                    "late_records": 2,
                    "currency": "EUR",
                    "amount": "0.40",
                    "exact_amount": "0.4",
                },
            ],
            "exact_total": "13.856790033333333333333333333333",
            "total": "13.85",
        }
    )

    fleet_id: str
    state: Literal["draft", "closed"]
    currency: str
    cycle: Cycle
    as_of: Time = Field(
        description="when this was read, or `known_at`: everything charged by then is in it, unless it is"
        " closed"
    )
    closed_at: Time | None = Field(description="null while it is a draft")
    usage_complete: bool | None = Field(
        description="whether all usage of the cycle is believed to be charged by now; null with"
        " `known_at`: what was believed of it then is not kept"
    )
    usage_complete_to: Time | None = Field(
        description="up to when the fleet's is; null: every device is silent, or `known_at` was given"
    )
    lines: list[Annotated[AnyLine, Field(discriminator="kind")]]
    exact_total: Decimals
    total: Decimals


class MeterUse(BaseModel):
    """The use of one meter in one span of time."""

    meter: str
    unit: Unit
    zone: str | None = Field(
        None,
        description="with `split=zone`: where, as plans that price the meter by zone call it; else null",
    )
    records: int = Field(description="usage records")
    quantity: int
    uplink_quantity: int = Field(description="the part of quantity that went up")
    overage_quantity: int


class UsagePoint(BaseModel):
    """The use in one hour, local day or local month, `[start, end)`."""

    start: Time
    end: Time
    meters: list[MeterUse]


class UsageSeries(BaseModel):
    """Use over time. A span without any usage is absent: no data is not 0."""

    model_config = _example(
        {
            "fleet_id": "north",
            "device_id": None,
            "bucket": "day",
            "time_zone": "Europe/Berlin",
            "start": "2026-03-28T23:00:00Z",
            "end": "2026-03-29T22:00:00Z",
            "points": [
                {
                    "start": "2026-03-28T23:00:00Z",
                    "end": "2026-03-29T22:00:00Z",
                    "meters": [
                        {
                            "meter": "data",
                            "unit": "octet",
                            "zone": None,
                            "records": 23,
                            "quantity": 23000,
                            "uplink_quantity": 2300,
                            "overage_quantity": 0,
                        }
                    ],
                }
            ],
        }
    )

    fleet_id: str
    device_id: str | None = Field(description="null in the series of a whole fleet")
    bucket: Literal["hour", "day", "month"]
    time_zone: str = Field(description="the zone whose days and months these are")
    start: Time = Field(description="`from`, moved to the start of its hour, day or month")
    end: Time = Field(description="`to`, moved to the end of its hour, day or month")
    points: list[UsagePoint]


class Subscription(BaseModel):
    """The plan version that a device has."""

    plan_id: str
    plan_version: int
    subscribed_from: Time
    subscribed_to: Time | None


class Device(BaseModel):
    """One device as it is now."""

    model_config = _example(_DEVICE)

    device_id: str
    fleet_id: str
    iccid: str | None
    imsi: str | None
    imei: str | None
    eid: str | None
    msisdn: str | None
    name: str | None
    tags: list[str] = Field(description="each once, ascending")
    labels: dict[str, str]
    state: Literal["inventory", "active", "suspended", "retired"] | None
    state_since: Time | None
    subscription: Subscription | None
    created_at: Time


class Devices(Page[Device]):
    """A page of devices, ascending by id."""

    model_config = _example({"items": [_DEVICE], "next_cursor": None})


class Gap(BaseModel):
    """Sequence numbers that are missing, both ends included."""

    first_seq: int
    last_seq: int


class Boot(BaseModel):
    """What arrived of one boot of a device: missing numbers are missing usage, never guessed."""

    boot_id: str
    first_seen_at: Time
    up_to_seq: int = Field(description="every reading from 1 to this one arrived")
    highest_seq: int
    missing_readings: int
    gaps: list[Gap] = Field(description="the first 32 gaps")


class Flood(BaseModel):
    """When a device last sent more than it may, and until when it is kept away for that."""

    held_from: Time
    held_until: Time
    messages: int = Field(description="how many of its messages came within `seconds`")
    octets: int
    seconds: float


class DeviceDetail(Device):
    """One device as it is now, and what arrived of it."""

    model_config = _example(
        {
            **_DEVICE,
            "last_boot": {
                "boot_id": "b1",
                "first_seen_at": "2026-04-01T00:00:00Z",
                "up_to_seq": 10,
                "highest_seq": 20,
                "missing_readings": 2,
                "gaps": [{"first_seq": 11, "last_seq": 12}],
            },
            "earlier_boots_with_gaps": [],
            "last_flood": {
                "held_from": "2026-04-02T10:00:00Z",
                "held_until": "2026-04-02T10:01:00Z",
                "messages": 2412,
                "octets": 410040,
                "seconds": 0.8,
            },
        }
    )

    last_boot: Boot | None
    earlier_boots_with_gaps: list[Boot] = Field(description="the newest 20")
    last_flood: Flood | None = Field(description="null: it never sent too much")


class NamedBucket(Lot):
    """One bucket that usage of a meter draws from: a lot of the subscription's own, or of a pool."""

    name: str
    kind: Literal["allowance", "pool"]
    source: Source


class MeterBalance(BaseModel):
    """What a subscription has left of one meter, and what it owes beyond."""

    meter: str
    unit: Unit
    plan_id: str
    plan_version: int
    subscribed_from: Time
    subscribed_to: Time | None
    allowance: Bucket | None = Field(
        description="the sum of the device's own, top-ups too; null: it has none"
    )
    pool: Bucket | None = Field(
        description="the sum of the pools and the fleet's top-ups that the device draws from"
    )
    buckets: list[NamedBucket] = Field(description="all that hold now, in the order they burn in")
    quantity: int = Field(description="used in this cycle, all told")
    uplink_quantity: int
    billed_quantity: int = Field(description="in_allowance + from_pool + overage")
    in_allowance_quantity: int
    from_pool_quantity: int
    overage_quantity: int
    overage: Money


class DeviceBalance(BaseModel):
    """What a device has left in this cycle, meter by meter, for each subscription in it."""

    model_config = _example(
        {
            "device_id": "meter-7",
            "fleet_id": "north",
            "cycle": _CYCLE,
            "cycle_opened_at": "2026-04-01T00:00:01Z",
            "meters": [
                {
                    "meter": "data",
                    "unit": "octet",
                    "plan_id": "basic",
                    "plan_version": 1,
                    "subscribed_from": "2026-01-01T00:00:00Z",
                    "subscribed_to": None,
                    "allowance": None,
                    "pool": _BUCKET,
                    "buckets": [
                        _BUCKET | _HOLDS | {"name": "pool", "kind": "pool", "source": "plan"}
                    ],
                    "quantity": 101234567,
                    "uplink_quantity": 1000,
                    "billed_quantity": 101234567,
                    "in_allowance_quantity": 0,
                    "from_pool_quantity": 100000000,
                    "overage_quantity": 1234567,
                    "overage": _MONEY,
                }
            ],
        }
    )

    device_id: str
    fleet_id: str
    cycle: Cycle
    cycle_opened_at: Time | None = Field(description="null while charging has not opened the cycle")
    meters: list[MeterBalance]


class Plan(BaseModel):
    """One plan, as its newest version describes it."""

    model_config = _example(_PLAN)

    plan_id: str
    newest_version: int
    name: str
    currency: str
    effective_from: Time
    ends_at: Time | None = Field(
        description="from when on nobody is subscribed to it any more; null: it has no end"
    )


class Plans(Page[Plan]):
    """A page of plans, ascending by id."""

    model_config = _example({"items": [_PLAN], "next_cursor": None})


class PlanVersion(BaseModel):
    """One version of a plan, which never changes."""

    model_config = _example(_PLAN_VERSION)

    version: int
    name: str
    effective_from: Time
    created_at: Time
    terms: PlanDocument


class PlanVersions(BaseModel):
    """All versions of a plan, newest first."""

    model_config = _example(
        {
            "plan_id": "basic",
            "ends_at": None,
            "versions": [_PLAN_VERSION],
        }
    )

    plan_id: str
    ends_at: Time | None
    versions: list[PlanVersion]


_REJECTED: JsonDict = {
    "rejected_no": 17,
    "device_id": "meter-7",
    "topic": "fm/v1/acme/meter-7/usage",
    "reason": "not_json",
    "field": None,
    "detail": "not JSON; send one JSON object",
    "boot_id": None,
    "seq": None,
    "content_base64": "aGVsbG8=",
    "content_preview": "hello",
    "times": 3,
    "first_received_at": "2026-04-01T00:00:00Z",
    "last_received_at": "2026-04-01T00:02:00Z",
}


class Rejected(BaseModel):
    """A message, or one reading of it, that was not admitted."""

    model_config = ConfigDict(json_schema_extra={"examples": [_REJECTED]})

    rejected_no: int
    device_id: str | None
    topic: str
    reason: str
    field: str | None
    detail: str
    boot_id: str | None
    seq: int | None
    content_base64: str = Field(description="the offending bytes, perhaps shortened")
    content_preview: str = Field(description="the same for reading: at most 200 characters")
    times: int = Field(description="how often the same bytes came")
    first_received_at: Time
    last_received_at: Time


class RejectedPage(Page[Rejected]):
    """A page of rejections, the last received first."""

    model_config = _example(
        {
            "items": [_REJECTED],
            "next_cursor": None,
        }
    )


_PARKED: JsonDict = {
    "reading_id": "17-3",
    "device_id": "meter-7",
    "fleet_id": "north",
    "boot_id": "b1",
    "seq": 3,
    "meter": "voice",
    "unit": "second",
    "reason": "no_price",
    "quantity": 60,
    "uplink_quantity": 0,
    "usage_from": "2026-04-01T00:00:00Z",
    "usage_to": "2026-04-01T00:01:00Z",
    "measured_at": "2026-04-01T00:01:00Z",
    "parked_at": "2026-04-01T00:01:01Z",
}


class Parked(BaseModel):
    """A reading's usage that cannot be charged yet."""

    model_config = ConfigDict(json_schema_extra={"examples": [_PARKED]})

    reading_id: str = Field(description="by which its message is found")
    device_id: str
    fleet_id: str
    boot_id: str
    seq: int
    meter: str | None = Field(description="null once the reading is past its retention")
    unit: str | None
    reason: str
    quantity: int
    uplink_quantity: int
    usage_from: Time
    usage_to: Time
    measured_at: Time
    parked_at: Time


class ParkedPage(Page[Parked]):
    """A page of parked usages, the last parked first."""

    model_config = _example(
        {
            "items": [_PARKED],
            "next_cursor": None,
        }
    )


class Anomaly(BaseModel):
    """Something odd that a reading revealed."""

    device_id: str
    fleet_id: str
    boot_id: str
    seq: int
    kind: str
    meter: str
    measured_at: Time
    recorded_at: Time


class AnomalyPage(Page[Anomaly]):
    """A page of anomalies, the last measured first."""

    model_config = _example(
        {
            "items": [
                {
                    "device_id": "meter-7",
                    "fleet_id": "north",
                    "boot_id": "b1",
                    "seq": 9,
                    "kind": "counter_reset",
                    "meter": "data",
                    "measured_at": "2026-04-01T00:01:00Z",
                    "recorded_at": "2026-04-01T00:01:01Z",
                }
            ],
            "next_cursor": None,
        }
    )


class Health(BaseModel):
    """The process lives."""

    model_config = _example({"status": "alive"})

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """The database answers with this release's schema."""

    model_config = _example({"status": "ready", "oldest_work_item_age_seconds": 0.4})

    status: Literal["ready"] = "ready"
    oldest_work_item_age_seconds: float | None = Field(
        description="how long the oldest readings have waited for charging; null: none wait"
    )
