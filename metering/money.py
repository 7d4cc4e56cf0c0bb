"""Money: an exact integer count of a stated sub-unit, and the one place where it is rounded."""

from dataclasses import dataclass
from decimal import Decimal
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
        return self.whole(amount.numerator, amount.denominator)

    def whole(self, numerator: int, denominator: int) -> int:
        """Round a fraction, given in parts that need not be its lowest, to a whole number."""
        count, rest = divmod(abs(numerator), denominator)
        count += _rounds_away(self.mode, count, rest, denominator)
        return count if numerator >= 0 else -count


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
        step, of = quantum.as_integer_ratio()
        exponent = quantum.as_tuple().exponent
        count = rounding.whole(self.count * of, self.per_unit * step)
        digits = int(quantum.scaleb(-int(exponent)))
        # Read from text, which is exact; arithmetic would round to the context's precision.
        return Decimal(f"{count * digits}E{exponent}")


def _rounds_away(mode: RoundingMode, whole: int, rest: int, of: int) -> bool:
    """Whether `whole` and `rest / of` goes to the next whole number."""
    match mode:
        case RoundingMode.HALF_UP:
            return 2 * rest >= of
        case RoundingMode.HALF_EVEN:
            return 2 * rest > of or (2 * rest == of and whole % 2 == 1)
        case RoundingMode.UP:
            return rest > 0
        case RoundingMode.DOWN:
            return False


def decimal_text(amount: Fraction, *, digits_max: int = 30) -> str:
    """Write a fraction as a plain decimal string, exactly where it terminates.

    One that does not terminate, or needs more than `digits_max` places, is rounded half-up there.
    """
    return ratio_text(amount.numerator, amount.denominator, digits_max=digits_max)


def ratio_text(numerator: int, denominator: int, *, digits_max: int = 30) -> str:
    """Do the same with a fraction's parts, which need not be its lowest."""
    count, rest = divmod(abs(numerator) * 10**digits_max, denominator)
    count += 2 * rest >= denominator
    digits = str(count).rjust(digits_max + 1, "0")
    point = len(digits) - digits_max
    places = digits[point:].rstrip("0")
    text = f"{digits[:point]}.{places}" if places else digits[:point]
    return f"-{text}" if numerator < 0 and count else text
