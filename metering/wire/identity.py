"""What identifies a reading whose device does not number it. Pure.

A device of our own numbers its readings (boot and sequence). Other formats identify what they tell in one
of two ways, and the name of the boot under which we keep it says which. Both names hold a space, so that
no device's own boot can have them.

By time: a series has one value at an instant, and the instant, in microseconds since 1970, is its number.
Its numbers therefore ascend with the time of measuring, as a counter's growth needs it, whatever the order
in which they come; but they have gaps that mean nothing.

By id: each record has an id of its own. Records are numbered as they arrive, an id always the same way.
"""

from datetime import datetime
from hashlib import sha256

from metering.wire.sample import microseconds_of

BY_TIME = "by time: "
BY_ID = "by id: "
_NAME_LENGTH_MAX = 120


def boot_by_time(format_name: str, series: str) -> str:
    """Return the boot under which a series of a format is kept."""
    return f"{BY_TIME}{_short(f'{format_name}/{series}')}"


def boot_by_id(format_name: str, source: str) -> str:
    """Return the boot under which the records of a source are kept."""
    return f"{BY_ID}{_short(f'{format_name}/{source}')}"


def is_by_time(boot: str) -> bool:
    """Whether a boot's numbers are instants."""
    return boot.startswith(BY_TIME)


def is_by_id(boot: str) -> bool:
    """Whether a boot's readings are numbered as their ids arrive."""
    return boot.startswith(BY_ID)


def seq_by_time(at: datetime) -> int:
    """Return the number of what a series says of an instant; below 1 before 1970."""
    return microseconds_of(at)


def identity_of(name: str) -> str:
    """Return the form in which a record's id is kept: a long one's digest."""
    return _short(name)


def _short(name: str) -> str:
    """Return a name as it is, or its beginning and its digest if it is long or cannot be printed."""
    if len(name) <= _NAME_LENGTH_MAX and name.isprintable():
        return name
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    shown = "".join(letter if letter.isprintable() else "?" for letter in name[:60])
    return f"{shown}…{digest}"
