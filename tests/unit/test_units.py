"""Quantities as people write them: exact, whole, or refused with what would be right."""

from decimal import Decimal

import pytest

from metering.errors import InvalidValue
from metering.units import MULTIPLES, parse_quantity


@pytest.mark.parametrize(
    ("text", "base_unit", "quantity"),
    [
        (0, "octet", 0),
        (500, "octet", 500),
        ("500", "octet", 500),
        ("500 B", "octet", 500),
        ("1 kB", "octet", 1_000),
        ("1 KiB", "octet", 1_024),
        ("1.5 GB", "octet", 1_500_000_000),
        ("1.5 GiB", "octet", 1_610_612_736),
        ("2TB", "octet", 2_000_000_000_000),
        ("  0.001 kB ", "octet", 1),
        ("90 s", "second", 90),
        ("1.5 min", "second", 90),
        ("2 hour", "second", 7_200),
        ("7 message", "message", 7),
        ("12", "litre", 12),
        ("12 litre", "litre", 12),
        ("1 KB", "octet", 1_000),
        ("1 million", "octet", 1_000_000),
        ("1.5 million", "message", 1_500_000),
        ("2 billion", "litre", 2_000_000_000),
        ("3 thousand kB", "octet", 3_000_000),
        ("0.5thousand litre", "litre", 500),
        (Decimal(500), "octet", 500),
        (Decimal("5E+2"), "octet", 500),
        (Decimal("7.0"), "message", 7),
    ],
)
def test_a_quantity_counts_base_units(
    text: int | str | Decimal, base_unit: str, quantity: int
) -> None:
    assert parse_quantity(text, base_unit, "allowance") == quantity


@pytest.mark.parametrize(
    ("text", "octet_multiple", "quantity"),
    [
        ("1 kB", 1000, 1000),
        ("1 kB", 1024, 1024),
        ("1 KB", 1024, 1024),
        ("1 MB", 1024, 1024**2),
        ("1.5 GB", 1024, 3 * 1024**3 // 2),
        ("1 TB", 1024, 1024**4),
        ("1 TiB", 1024, 1024**4),
        ("1 KiB", 1000, 1024),
        ("1 thousand B", 1024, 1000),
        ("1 octet", 1024, 1),
    ],
)
def test_a_plan_says_what_kilo_is_a_power_of(text: str, octet_multiple: int, quantity: int) -> None:
    assert parse_quantity(text, "octet", "x", octet_multiple=octet_multiple) == quantity


@pytest.mark.parametrize(
    ("text", "decimals", "quantity"),
    [
        (5, 3, 5_000),
        ("5", 3, 5_000),
        ("0.001 kWh", 3, 1),
        (Decimal("1.25"), 2, 125),
        ("1 million", 3, 10**9),
        ("7", 0, 7),
    ],
)
def test_a_meter_with_decimals_counts_its_last_place(
    text: int | str | Decimal, decimals: int, quantity: int
) -> None:
    assert parse_quantity(text, "kWh", "x", decimals=decimals) == quantity


def test_more_decimals_than_a_meter_has_are_refused() -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_quantity("0.0001 kWh", "kWh", "x", decimals=3)
    assert caught.value.problem == "'0.0001 kWh' has more than 3 decimals of kWh"


def test_kilo_is_a_power_of_1000_and_kibi_of_1024() -> None:
    octets = MULTIPLES["octet"]
    for power, letter in enumerate("KMGT", 1):
        assert octets[letter.replace("K", "k") + "B"] == 1000**power
        assert octets[letter + "iB"] == 1024**power


@pytest.mark.parametrize(
    ("text", "base_unit", "problem", "fix"),
    [
        (-1, "octet", "-1 is negative", "use 0 or more"),
        ("-1", "octet", "'-1' is not a quantity", "use a number and one of: octet, B, kB"),
        ("1 XB", "octet", "'1 XB' is not a quantity", "TiB"),
        ("1 mb", "octet", "'1 mb' is not a quantity", "MB"),
        ("1 GB", "message", "'1 GB' is not a quantity", "use a number and one of: message"),
        ("1e3", "octet", "'1e3' is not a quantity", "use a number"),
        ("", "octet", "'' is not a quantity", "use a number"),
        ("1 GB\n2", "octet", "is not a quantity", "use a number"),
        ("0.5", "octet", "'0.5' is not a whole number of octets", "use whole octets"),
        ("0.3 min x", "second", "is not a quantity", "use a number"),
        ("1 trillion", "message", "'1 trillion' is not a quantity", "thousand, million, billion"),
        ("1 million GB", "message", "is not a quantity", "use a number and one of: message"),
        ("million", "message", "'million' is not a quantity", "use a number"),
        (Decimal("0.5"), "octet", "'0.5' is not a whole number of octets", "use whole octets"),
        (Decimal(-1), "octet", "'-1' is not a quantity", "use a number"),
        (Decimal("NaN"), "octet", "'NaN' is not a quantity", "use a number"),
        (Decimal("1E+999999999"), "octet", "'1E+999999999' is not a quantity", "use a number"),
    ],
)
def test_what_is_no_quantity_says_what_would_be(
    text: int | str | Decimal, base_unit: str, problem: str, fix: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_quantity(text, base_unit, "meters.data.allowance")
    assert caught.value.field == "meters.data.allowance"
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_a_quantity_is_never_rounded_however_long_it_is() -> None:
    # More digits than a Decimal of the default context holds (28).
    assert parse_quantity("9" * 30, "octet", "x") == 10**30 - 1
    assert parse_quantity("9" * 30 + " kB", "octet", "x") == (10**30 - 1) * 1000
    with pytest.raises(InvalidValue, match="not a whole number of octets"):
        parse_quantity("1." + "0" * 35 + "1 GB", "octet", "x")


def test_a_quantity_of_thousands_of_digits_is_refused_in_few_words() -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_quantity("9" * 5000, "octet", "x")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["\u0661 GB", "\uff11 GB", "1\u00a0GB\u200b", "1 \u212aB"])
def test_digits_and_units_are_ascii(text: str) -> None:
    with pytest.raises(InvalidValue, match="not a quantity"):
        parse_quantity(text, "octet", "x")
