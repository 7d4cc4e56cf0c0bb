"""Columns of whole numbers, many values at a time: numpy's arrays, from and to PostgreSQL's binary forms.

A row of a result or of COPY costs the interpreter about as much as everything that is done with it where
values are the same for many rows. The forms are those of `metering.store.binary`.
"""

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.int64]
"""Whole numbers of up to 64 bits; instants are microseconds since the year 2000 (`instant_of`)."""
NEVER = -(2**63)
"""The instant '-infinity'."""

_HEAD_OCTETS = 20
"""Those before the values of an array of one dimension: dimensions, nulls, element, length, first index."""
_ELEMENTS = np.dtype([("octets", ">i4"), ("value", ">i8")])


def column_of(array: bytes | None) -> Column:
    """Return the values of a bigint[] or timestamptz[] without nulls, as `array_send` gives it."""
    if array is None:
        return np.zeros(0, np.int64)
    return np.frombuffer(array, _ELEMENTS, offset=_HEAD_OCTETS)["value"].astype(np.int64)
