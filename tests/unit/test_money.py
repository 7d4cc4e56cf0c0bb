"""Money: exact sums, and one rounding."""

import decimal
from decimal import Decimal
from fractions import Fraction

import pytest

from metering.errors import InvalidValue
from metering.money import MINOR_DIGITS, Money, decimal_text, minor_digits


def money(count: int, per_unit: int, currency: str = "EUR") -> Money:
    return Money(count=count, per_unit=per_unit, currency=currency)


@pytest.mark.parametrize(
    ("amount", "rounded"),
    [
        # EUR has two digits; the half goes away from zero.
        (money(1_004_999, 1_000_000), "1.00"),
        (money(1_005, 1_000), "1.01"),
        (money(-1_005, 1_000), "-1.01"),
        (money(1_015, 1_000), "1.02"),
        (money(-1_004_999, 1_000_000), "-1.00"),
        (money(-1, 1_000), "0.00"),
        (money(2, 3), "0.67"),  # 0.666…
        (money(1, 3), "0.33"),  # 0.333…
        (money(5, 1), "5.00"),
        # JPY has none: 0.5 is 1, 1.49 is 1.
        (money(1, 2, "JPY"), "1"),
        (money(149, 100, "JPY"), "1"),
        (money(-5, 2, "JPY"), "-3"),
        (money(123, 1, "JPY"), "123"),
        # KWD has three: 1.2345 is 1.235, 1.2344 is 1.234.
        (money(12_345, 10_000, "KWD"), "1.235"),
        (money(12_344, 10_000, "KWD"), "1.234"),
        (money(1, 1, "KWD"), "1.000"),
    ],
)
def test_rounding_is_half_up_to_the_minor_unit(amount: Money, rounded: str) -> None:
    assert str(amount.rounded()) == rounded


def test_rounding_does_not_depend_on_the_decimal_context() -> None:
    huge = money(10**40 + 1, 100)
    assert str(huge.rounded()) == "1" + "0" * 37 + "0.01"
    with decimal.localcontext() as context:
        context.prec = 3
        assert str(money(123_456, 100).rounded()) == "1234.56"


def test_sums_are_exact_whatever_the_sub_units() -> None:
    # 1/3 + 1/7 = 10/21, and nothing was rounded on the way.
    total = money(1, 3) + money(1, 7)
    assert (total.count, total.per_unit) == (10, 21)
    assert total.exact == Fraction(10, 21)
    assert (money(1, 3) + money(2, 3)).exact == 1
    assert sum([money(1, 10)] * 10, money(0, 1)).exact == 1


def test_two_currencies_do_not_add() -> None:
    with pytest.raises(InvalidValue, match="EUR and USD do not add") as caught:
        _ = money(1, 1) + money(1, 1, "USD")
    assert (caught.value.field, caught.value.fix) == ("currency", "add amounts of one currency")


def test_an_unknown_currency_is_refused_with_an_example() -> None:
    for wrong in ("EURO", "eur", "", "XXX"):
        with pytest.raises(InvalidValue, match="no ISO 4217 currency") as caught:
            minor_digits(wrong)
        assert caught.value.field == "currency"
        assert "EUR" in caught.value.fix


def test_minor_digits_are_those_of_iso_4217() -> None:
    assert [minor_digits(code) for code in ("EUR", "USD", "JPY", "KRW", "KWD", "BHD")] == [
        2, 2, 0, 0, 3, 3,
    ]  # fmt: skip
    assert all(len(code) == 3 and code.isupper() for code in MINOR_DIGITS)


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Fraction(0), "0"),
        (Fraction(5), "5"),
        (Fraction(100), "100"),
        (Fraction(1, 10), "0.1"),
        (Fraction(-1, 8), "-0.125"),
        (Fraction(1, 10**12), "0.000000000001"),
        (Fraction(1, 3), "0." + "3" * 30),
        (Fraction(2, 3), "0." + "6" * 29 + "7"),
        (Fraction(10**25 + 1, 10), "1" + "0" * 24 + ".1"),
        (Fraction(-1, 10**40), "0"),
    ],
)
def test_a_fraction_is_written_as_a_plain_decimal(amount: Fraction, text: str) -> None:
    assert decimal_text(amount) == text


def test_a_shortened_fraction_is_rounded_half_up() -> None:
    assert decimal_text(Fraction(15, 1000), digits_max=2) == "0.02"
    assert decimal_text(Fraction(25, 1000), digits_max=2) == "0.03"
    assert Decimal(decimal_text(Fraction(1, 7), digits_max=6)) == Decimal("0.142857")
