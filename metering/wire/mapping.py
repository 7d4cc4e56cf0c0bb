"""A tenant's mapping: which metric of a format is which meter; and from samples to readings. Pure.

A *series* is one meter of a device as a format tells it. Its name is a part of what identifies its
readings (`metering.wire.identity`), so it stays while its terms may change.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import ROUND_HALF_UP
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from metering.errors import InvalidValue
from metering.ids import ID_PATTERN
from metering.units import multiples_of
from metering.usage import (
    EPOCH_FROM_FIRST,
    METERS,
    QUANTITY_MAX,
    Meter,
    Reading,
    ReadingKind,
    Rejection,
    RejectReason,
)
from metering.wire.carrier import TARIFF_ZONE_LENGTH_MAX
from metering.wire.identity import (
    boot_by_id,
    boot_by_time,
    identity_of,
    is_by_id,
    is_by_time,
    seq_by_time,
)
from metering.wire.native import Label, explained, path_of
from metering.wire.sample import Sample, SeriesReadings, Translated, refused, rejected

MappedFormat = Literal["senml", "cloudevents", "thingsboard", "sparkplug"]
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
_SERIES_NAME = Annotated[str, Field(pattern=ID_PATTERN)]
_METRIC_LENGTH_MAX = 300
_Metric = Annotated[str, Field(min_length=1, max_length=_METRIC_LENGTH_MAX)]
_TariffZone = Annotated[str, Field(min_length=1, max_length=TARIFF_ZONE_LENGTH_MAX)]
_Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9._:*-]{1,64}$")]


class FromMetric(BaseModel):
    """A text that a message tells itself, by another metric of the same instant."""

    model_config = _STRICT

    metric: _Metric


_Told = Label | FromMetric


class MappedSeries(BaseModel):
    """One meter of a device, and the metrics that tell it.

    A metric's name matches exactly, or by its end where it begins with `*`; what stands before that end
    tells several such series of a device apart. With both `up` and `down`
    the two are one reading, so they must come together; a metric that comes by itself is a series of
    its own. `unit` is that of the metric, by default what the message says or else the meter's own.
    `width` is in bits of the counter as the metric tells it, in its unit.
    `first` says what a counter's first value is: usage since it began at zero, or where counting begins.
    """

    model_config = _STRICT

    meter: str
    up: _Metric | None = None
    down: _Metric | None = None
    quantity: _Metric | None = None
    kind: Literal["delta", "total"] = "delta"
    unit: str | None = None
    width: Annotated[int, Field(ge=8, le=64)] | None = None
    epoch: FromMetric | None = None
    first: Literal["usage", "baseline"] = "usage"
    zone: _Told | None = None
    rat: _Told | None = None
    apn: _Told | None = None
    session: _Told | None = None

    def metrics(self) -> dict[str, str]:
        """Return the metric of each role that it has: up, down or quantity, and what tells a text."""
        given = {role: getattr(self, role) for role in ("up", "down", "quantity", *_TEXT_ROLES)}
        return {
            role: each.metric if isinstance(each, FromMetric) else each
            for role, each in given.items()
            if isinstance(each, FromMetric) or (each is not None and role not in _TEXT_ROLES)
        }


_TEXT_ROLES = ("epoch", "zone", "rat", "apn", "session")
_VALUE_ROLES = ("up", "down", "quantity")


class CarrierRules(BaseModel):
    """Whose count of data and messages is charged, and who may hand in a carrier's over MQTT.

    `charged` holds for every device that `devices` does not name. `senders` are the ids under which
    carriers' records are published. `zones` says for tariff zones of carriers which zone it is; of a record
    in another one the zone is its network.
    """

    model_config = _STRICT

    charged: Literal["device", "carrier"] = "device"
    devices: dict[_SERIES_NAME, Literal["device", "carrier"]] = Field(default_factory=dict)
    senders: list[_SERIES_NAME] = Field(default_factory=list)
    zones: dict[_TariffZone, Label] = Field(default_factory=dict)


class MappingDocument(BaseModel):
    """A tenant's mapping as it is written.

    `gateways` names devices that may report for others, and for which: ids, or ids that begin alike
    and end in `*`.
    """

    model_config = _STRICT

    formats: dict[MappedFormat, dict[_SERIES_NAME, MappedSeries]] = Field(default_factory=dict)
    gateways: dict[_SERIES_NAME, list[_Pattern]] = Field(default_factory=dict)
    carrier: CarrierRules = CarrierRules()


_DOCUMENT = TypeAdapter(MappingDocument)

_LWM2M_CONNECTIVITY: Mapping[str, MappedSeries] = {
    "lwm2m-tx": MappedSeries(meter="data", up="*/7/0/2", kind="total", unit="kB"),
    "lwm2m-rx": MappedSeries(meter="data", down="*/7/0/3", kind="total", unit="kB"),
    "lwm2m-sms-tx": MappedSeries(meter="sms", quantity="*/7/0/0", kind="total"),
    "lwm2m-sms-rx": MappedSeries(meter="sms", quantity="*/7/0/1", kind="total"),
}
"""LwM2M object 7, Connectivity Statistics: messages and kilobytes since collection began."""

DEFAULT_DOCUMENT = MappingDocument(formats={"senml": dict(_LWM2M_CONNECTIVITY)})
"""What holds for a tenant that has set no mapping."""


def read_mapping(document: object) -> MappingDocument:
    """Check a mapping as people write it; raises `InvalidValue` for the first thing that is wrong."""
    mapping = kept_mapping(document)
    for format_name, series in mapping.formats.items():
        for name, each in series.items():
            path = f"formats.{format_name}.{name}"
            _check(each, path)
            if format_name == "sparkplug" and each.kind != "total":
                raise InvalidValue(
                    f"{path}.kind",
                    "a birth tells values again, so a delta would count twice",
                    "map a counter, with kind total",
                )
    return mapping


def kept_mapping(document: object) -> MappingDocument:
    """Return a mapping that was checked when it was set, perhaps by other rules than today's.

    Raises `InvalidValue` for what is none at all.
    """
    try:
        return _DOCUMENT.validate_python(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_path = path_of(first["loc"]) or "mapping"
        raise InvalidValue(field_path, explained(first["msg"]), "see docs/formats.md") from None


def _check(series: MappedSeries, path: str) -> None:
    meter = METERS.get(series.meter)
    if meter is None:
        raise InvalidValue(
            f"{path}.meter", f"{series.meter!r} is no meter", f"use one of {', '.join(METERS)}"
        )
    if meter.directed and (series.quantity is not None or not (series.up or series.down)):
        raise InvalidValue(path, f"{meter.meter} has directions", "name a metric for up or down")
    if not meter.directed and (series.quantity is None or series.up or series.down):
        raise InvalidValue(path, f"{meter.meter} has no directions", "name its metric as quantity")
    units = multiples_of(meter.unit)
    if series.unit is not None and series.unit not in units:
        raise InvalidValue(
            f"{path}.unit", f"{series.unit!r} is no unit of it", f"use one of {', '.join(units)}"
        )
    if series.kind == "delta" and (series.width is not None or series.epoch is not None):
        raise InvalidValue(
            path, "width and epoch describe a counter", "use kind total, or leave them out"
        )
    if (
        series.width is not None
        and series.unit is not None
        and _bits_of_range(series.width, units[series.unit]) is None
    ):
        raise InvalidValue(
            f"{path}.width",
            f"where a counter of {series.unit} wraps is no power of two of {meter.unit}s",
            "leave width out (a wrap is then taken for a restart), or map a unit such as B or KiB",
        )
    if series.first == "baseline" and (series.kind == "delta" or series.epoch is not None):
        raise InvalidValue(
            f"{path}.first",
            "only a counter without an epoch has a baseline; an epoch begins at zero",
            "use kind total without epoch, or first: usage",
        )
    values = [series.metrics().get(role) for role in _VALUE_ROLES]
    named = [each for each in values if each is not None]
    if len(set(named)) < len(named):
        raise InvalidValue(path, "up and down are the same metric", "name one metric for each")


@dataclass(slots=True)
class FormatMapping:
    """The series of one format, and which metric tells which of them what."""

    format_name: str
    series: Mapping[str, MappedSeries]
    _roles: dict[str, tuple[tuple[str, str, str], ...]] = field(default_factory=dict)

    def roles_of(self, metric: str) -> tuple[tuple[str, str, str], ...]:
        """Return (series, role, what stands before the part that matches) of a metric."""
        found = self._roles.get(metric)
        if found is None:
            found = tuple(
                (name, role, metric.removesuffix(pattern[1:]) if pattern != metric else "")
                for name, series in self.series.items()
                for role, pattern in series.metrics().items()
                if _matches(pattern, metric)
            )
            if len(self._roles) < _METRICS_REMEMBERED_MAX:
                self._roles[metric] = found
        return found


_METRICS_REMEMBERED_MAX = 10_000


@dataclass(slots=True)
class TenantMapping:
    """A tenant's mapping in the form in which it is used."""

    document: MappingDocument
    _formats: dict[str, FormatMapping] = field(default_factory=dict)

    def of_format(self, name: MappedFormat) -> FormatMapping:
        """Return the mapping of a format; where the tenant's says nothing of it, the usual one."""
        found = self._formats.get(name)
        if found is None:
            series = self.document.formats.get(name)
            if series is None:
                series = DEFAULT_DOCUMENT.formats.get(name, {})
            found = self._formats[name] = FormatMapping(name, series)
        return found

    def may_report(self, sender: str, device: str) -> bool:
        """Whether a sender may report for a device: itself, or one of those it is a gateway for."""
        if sender == device:
            return True
        return any(
            device == pattern or (pattern.endswith("*") and device.startswith(pattern[:-1]))
            for pattern in self.document.gateways.get(sender, ())
        )


def _matches(pattern: str, metric: str) -> bool:
    return metric.endswith(pattern[1:]) if pattern.startswith("*") else metric == pattern


_Cell = tuple[str, str, datetime]
"""A series, what stands before its metrics' names, and an instant."""


class EventIdentity(NamedTuple):
    """What identifies an event in a format whose events have ids: `id` is unique in `source`."""

    source: str
    id: str


def translate(
    samples: Iterable[Sample],
    mapping: FormatMapping,
    payload: bytes,
    *,
    device: str | None = None,
    event: EventIdentity | None = None,
) -> Translated:
    """Return the readings that a message's samples are by a mapping; other metrics are left out.

    A message of which no metric is mapped is refused: nobody would know why nothing is charged. With
    `event` the samples are those of one event; its deltas are known by its id, but counters by their
    instant as ever, because they grow in the order of time.
    """
    cells, names = _cells(samples, mapping)
    boots: dict[str, SeriesReadings] = {}
    for (name, prefix, at), cell in cells.items():
        series = mapping.series[name]
        full_name = f"{name}@{prefix}" if prefix else name
        boot = _boot(mapping.format_name, full_name, series, event)
        gathered = boots.setdefault(boot, SeriesReadings(boot, [], [], device, []))
        try:
            gathered.readings.append(_reading(series, at, cell))
        except InvalidValue as error:
            gathered.rejections.append(_rejected_cell(boot, at, cell, error))
        else:
            if event is not None and is_by_id(boot):
                gathered.identities.append(identity_of(f"{event.id}/{full_name}"))
    outcome = Translated(series=list(boots.values()))
    if names and not cells:
        shown = ", ".join(sorted(names)[:5])[:200]
        outcome.rejections.append(
            refused(
                payload,
                f"no metric of it is mapped to a meter (it has {shown}); map one:"
                " fleetmeter mapping set",
                reason=RejectReason.UNMAPPED,
            )
        )
    return outcome


def _cells(
    samples: Iterable[Sample], mapping: FormatMapping
) -> tuple[dict[_Cell, dict[str, Sample]], set[str]]:
    """Return what is told of each series at each instant, by role, and the names of all metrics."""
    cells: dict[_Cell, dict[str, Sample]] = {}
    names: set[str] = set()
    for sample in samples:
        names.add(sample.metric)
        for name, role, prefix in mapping.roles_of(sample.metric):
            if sample.is_sum and mapping.series[name].kind == "delta":
                continue
            cell = cells.setdefault((name, prefix, sample.at), {})
            before = cell.get(role)
            if before is None or sample.is_sum >= before.is_sum:
                cell[role] = sample
    told = {key: cell for key, cell in cells.items() if not cell.keys().isdisjoint(_VALUE_ROLES)}
    return told, names


def _boot(
    format_name: str, full_name: str, series: MappedSeries, event: EventIdentity | None
) -> str:
    if event is None:
        return boot_by_time(format_name, full_name)
    if series.kind == "total":
        return boot_by_time(format_name, f"{full_name} of {event.source}")
    return boot_by_id(format_name, event.source)


def _rejected_cell(
    boot: str, at: datetime, cell: Mapping[str, Sample], error: InvalidValue
) -> Rejection:
    seq = seq_by_time(at)
    return rejected(
        {role: each._asdict() for role, each in cell.items()},
        f"{error.problem}; {error.fix}",
        path=error.field,
        boot=boot,
        seq=seq if is_by_time(boot) and 1 <= seq <= QUANTITY_MAX else None,
    )


def _reading(series: MappedSeries, at: datetime, cell: Mapping[str, Sample]) -> Reading:
    meter = METERS[series.meter]
    values: dict[str, int] = {}
    widths: set[int | None] = set()
    for role, metric in series.metrics().items():
        if role not in _VALUE_ROLES:
            continue
        sample = cell.get(role)
        if sample is None:
            raise InvalidValue(
                metric, f"missing beside the other direction at {at.isoformat()}",
                "send both in one message, or map each as a series of its own",
            )  # fmt: skip
        values[role], width = _base_units(sample, meter, series)
        widths.add(width)
    if values.get("up", 0) + values.get("down", 0) > QUANTITY_MAX:
        raise InvalidValue("up", f"up and down together pass {QUANTITY_MAX}", "send less")
    seq = seq_by_time(at)
    if seq < 1:
        raise InvalidValue("time", f"{at.isoformat()} is before 1970", "set the device's clock")
    texts = {role: _text(role, series, at, cell) for role in _TEXT_ROLES}
    return Reading(
        seq=seq,
        at=at,
        meter=meter,
        kind=ReadingKind.TOTAL if series.kind == "total" else ReadingKind.DELTA,
        uplink=values.get("up", 0),
        downlink=values.get("down", 0),
        quantity=values.get("quantity", 0),
        epoch=EPOCH_FROM_FIRST if series.first == "baseline" else texts["epoch"],
        width=widths.pop() if len(widths) == 1 else None,
        zone=texts["zone"],
        rat=texts["rat"],
        apn=texts["apn"],
        session=texts["session"],
    )


_COUNT = "count"
"""SenML's unit of what is counted one by one."""


def _base_units(sample: Sample, meter: Meter, series: MappedSeries) -> tuple[int, int | None]:
    """Return a sample's value in the meter's base unit, to the nearest whole one, and its range in bits.

    The range is None where none is mapped, or where the unit that the message tells gives it no power of
    two: then a wrap is taken for a restart. Raises `InvalidValue` for what is no quantity, is of a unit
    that is not known, or does not fit the counter's width.
    """
    value = sample.value
    if isinstance(value, str):
        raise InvalidValue(sample.path, "a text, where a number is needed", "send a number")
    units = multiples_of(meter.unit)
    unit = series.unit if series.unit is not None else sample.unit
    factor = units.get(unit) if unit and unit != _COUNT else 1
    if factor is None:
        known = ", ".join(units)
        raise InvalidValue(
            sample.path, f"{unit!r} is no unit of it", f"use one of {known}, or map its unit"
        )
    if isinstance(value, int):
        counted = value * factor
    else:
        counted = int((value * factor).to_integral_value(ROUND_HALF_UP))
    if not 0 <= counted <= QUANTITY_MAX:
        raise InvalidValue(sample.path, f"not in 0 to {QUANTITY_MAX}", f"send {meter.unit}s used")
    if series.width is None:
        return counted, None
    if counted >= factor << series.width:
        raise InvalidValue(
            sample.path, f"does not fit a counter of {series.width} bits", "correct width"
        )
    return counted, _bits_of_range(series.width, factor)


_BITS_MAX = 64
"""Width of a counter that does not live to wrap."""


def _bits_of_range(width: int, factor: int) -> int | None:
    """Return in how many bits of base units a counter of `width` bits wraps, one of which is `factor`.

    None where that is no power of two.
    """
    if factor.bit_count() > 1:
        return None
    return min(width + factor.bit_length() - 1, _BITS_MAX)


_LABEL: TypeAdapter[str] = TypeAdapter(Label)


def _text(role: str, series: MappedSeries, at: datetime, cell: Mapping[str, Sample]) -> str | None:
    told: str | FromMetric | None = getattr(series, role)
    if not isinstance(told, FromMetric):
        return told
    sample = cell.get(role)
    if sample is None:
        raise InvalidValue(
            told.metric, f"missing at {at.isoformat()}, which should tell the {role}",
            "send it with each value",
        )  # fmt: skip
    try:
        return _LABEL.validate_python(str(sample.value))
    except ValidationError:
        raise InvalidValue(
            sample.path, f"no text for {role}", "send 1 to 64 printable characters without spaces"
        ) from None
