"""Amounts of money that somebody gives: above nothing, and no finer than their currency."""

from decimal import Decimal

from metering.errors import InvalidValue
from metering.money import minor_digits

_DIGITS_MAX = 12


def checked_amount(amount: Decimal, currency: str, field: str = "amount") -> Decimal:
    """Return an amount that is above 0, and whole in the currency's minor unit; raise `InvalidValue`."""
    digits = minor_digits(currency)
    if not amount.is_finite() or amount <= 0 or amount.adjusted() >= _DIGITS_MAX:
        raise InvalidValue(
            field, f"{amount} is not an amount", f"use one above 0, of {_DIGITS_MAX} digits at most"
        )
    if amount != round(amount, digits):
        raise InvalidValue(
            field,
            f"{amount} is finer than the minor unit of {currency}",
            f"use at most {digits} places",
        )
    return round(amount, digits)


def checked_currency(currency: str, of_fleet: str, field: str = "currency") -> None:
    """Raise `InvalidValue` when a currency is not the fleet's."""
    if currency != of_fleet:
        raise InvalidValue(
            field, f"{currency} is not the fleet's", f"use {of_fleet}; nothing is converted"
        )
