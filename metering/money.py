"""Money: an exact integer count of a stated sub-unit, and the one place where it is rounded."""

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, localcontext
from enum import StrEnum
from fractions import Fraction
from math import lcm

from metering.errors import InvalidValue

_CURRENCIES_OF_TWO_DIGITS = (
    "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF "
    "CNY COP CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL "
    "HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT "
    "MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB "
    "SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH "
    "USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG"
)
MINOR_DIGITS: dict[str, int] = {
    **dict.fromkeys(_CURRENCIES_OF_TWO_DIGITS.split(), 2),
    **dict.fromkeys("BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF".split(), 0),
    **dict.fromkeys("BOV CHE CHW COU MXV USN".split(), 2),
    **dict.fromkeys("CLF UYW".split(), 4),
    "UYI": 0,
    **dict.fromkeys("BHD IQD JOD KWD LYD OMR TND".split(), 3),
}
"""ISO 4217 currency code → digits of its minor unit."""


def minor_digits(currency: str) -> int:
    """Return the digits of a currency's minor unit (ISO 4217); raise `InvalidValue` if unknown."""
    if currency not in MINOR_DIGITS:
        raise InvalidValue(
            "currency", f"{currency!r} is no ISO 4217 currency", "use a code such as 'EUR'"
        )
    return MINOR_DIGITS[currency]


class RoundingMode(StrEnum):
    """Which way an amount between two digits goes; a negative one as its positive twin."""

    HALF_UP = "half_up"
    """To the nearer; the half away from zero."""
    HALF_EVEN = "half_even"
    """To the nearer; the half to the even digit."""
    UP = "up"
    """Away from zero."""
    DOWN = "down"
    """Towards zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How an amount is rounded: the mode, and to what.

    To so many `digits` (None: the currency's, ISO 4217) or to multiples of `step`, such as 0.05.
    """

    mode: RoundingMode = RoundingMode.HALF_UP
    digits: int | None = None
    step: Decimal | None = None

    def quantum(self, currency: str) -> Decimal:
        """Return what every rounded amount is a multiple of."""
        if self.step is not None:
            return self.step
        digits = minor_digits(currency) if self.digits is None else self.digits
        return Decimal(1).scaleb(-digits)

    def multiples(self, amount: Fraction) -> int:
        """Round a count of quanta to a whole one."""
        whole, rest = divmod(abs(amount), 1)
        count = int(whole) + _rounds_away(self.mode, int(whole), rest)
        return count if amount >= 0 else -count


@dataclass(frozen=True, slots=True, kw_only=True)
class Money:
    """An exact amount: `count` sub-units, of which `per_unit` make one unit of `currency`.

    A plan states its own sub-unit, fine enough for each of its prices, so sums never round.
    """

    count: int
    per_unit: int
    currency: str

    def __add__(self, other: "Money") -> "Money":
        """Add exactly; raise `InvalidValue` when the currencies differ."""
        if self.currency != other.currency:
            raise InvalidValue(
                "currency",
                f"{self.currency} and {other.currency} do not add",
                "add amounts of one currency",
            )
        if self.per_unit == other.per_unit:
            return Money(
                count=self.count + other.count, per_unit=self.per_unit, currency=self.currency
            )
        common = lcm(self.per_unit, other.per_unit)
        count = self.count * (common // self.per_unit) + other.count * (common // other.per_unit)
        return Money(count=count, per_unit=common, currency=self.currency)

    @property
    def exact(self) -> Fraction:
        """The amount in units of the currency, exactly."""
        return Fraction(self.count, self.per_unit)

    def rounded(self, rounding: Rounding = Rounding()) -> Decimal:
        """Round to the currency's minor unit, half-up unless told otherwise.

        Only a bill line and a displayed amount may call this.
        """
        quantum = rounding.quantum(self.currency)
        _, digits, exponent = quantum.as_tuple()
        count = rounding.multiples(self.exact / Fraction(quantum))
        # Read from text, which is exact; arithmetic would round to the context's precision.
        return Decimal(f"{count * int(''.join(map(str, digits)))}E{exponent}")


def _rounds_away(mode: RoundingMode, whole: int, rest: Fraction) -> bool:
    half = Fraction(1, 2)
    match mode:
        case RoundingMode.HALF_UP:
            return rest >= half
        case RoundingMode.HALF_EVEN:
            return rest > half or (rest == half and whole % 2 == 1)
        case RoundingMode.UP:
            return rest > 0
        case RoundingMode.DOWN:
            return False


def decimal_text(amount: Fraction, *, digits_max: int = 30) -> str:
    """Write a fraction as a plain decimal string, exactly where it terminates.

    One that does not terminate, or needs more than `digits_max` places, is rounded half-up there.
    """
    with localcontext() as context:
        context.prec = 200
        value = Decimal(amount.numerator) / Decimal(amount.denominator)
        shortened = value.quantize(Decimal(1).scaleb(-digits_max), rounding=ROUND_HALF_UP)
        text = format(shortened, "f")
    shortest = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if shortest == "-0" else shortest
