"""A carrier's usage records as a file of comma-separated values: its rows, as JSON has records. Pure.

Data streamers write such files to object storage. The columns are known by their names in the first row, of
which the streamers have more than one generation; columns that are not known are left out.
"""

import csv
import io
from collections.abc import Mapping

from metering.errors import InvalidValue

_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "start_timestamp": ("event_start_timestamp", "start_timestamp"),
    "end_timestamp": ("event_stop_timestamp", "end_timestamp"),
    "sim.iccid": ("iccid", "sim_iccid"),
    "imsi": ("imsi", "imsi_imsi"),
    "traffic_type.id": ("traffic_type_id",),
    "volume.total": ("volume", "volume_total"),
    "volume.tx": ("volume_tx",),
    "volume.rx": ("volume_rx",),
    "operator.mnc": ("operator_mncs", "operator_mnc"),
    "operator.country.mcc": ("country_mcc", "operator_country_mcc"),
    "tariff.ratezone.name": ("ratezone_name", "tariff_ratezone_name"),
    "endpoint.name": ("endpoint_name",),
}
"""Where a column's value stands in a record, and the names that the column may have."""
_NEEDED = ("id", "start_timestamp", "end_timestamp", "traffic_type.id", "volume.tx", "volume.rx")


def records_of(payload: bytes) -> list[object]:
    """Return the rows as records; one of another length than the first row as the list of its values.

    Raises `InvalidValue` where the file as a whole cannot be read.
    """
    try:
        text = payload.decode("utf-8-sig")
        header, *rows = [
            row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row
        ]
    except (ValueError, csv.Error) as error:
        raise InvalidValue("payload", f"no CSV with a first row: {error}"[:200], _FIX) from None
    places: dict[str, int] = {}
    for path, names in _COLUMNS.items():
        found = [header.index(name) for name in names if name in header]
        if found:
            places[path] = found[0]
        elif path in _NEEDED:
            raise InvalidValue("payload", f"no column {' or '.join(names)}", _FIX)
    return [_record(row, places) if len(row) == len(header) else row for row in rows]


_FIX = "send comma-separated values in UTF-8, the columns' names first"


def _record(row: list[str], places: Mapping[str, int]) -> dict[str, object]:
    record: dict[str, object] = {}
    for path, place in places.items():
        value = row[place].strip()
        if not value:
            continue
        *parents, name = path.split(".")
        inner = record
        for parent in parents:
            deeper = inner.setdefault(parent, {})
            assert isinstance(deeper, dict)  # noqa: S101 - no column's place is another's parent
            inner = deeper
        is_number = path == "traffic_type.id" and value.isascii() and value.isdigit()
        inner[name] = int(value) if is_number and len(value) < _DIGITS_MAX else value
    return record


_DIGITS_MAX = 10
