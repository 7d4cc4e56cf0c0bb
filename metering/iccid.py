"""Numbers of SIM cards: the ICCID's form and its check digit (ITU-T E.118, ETSI TS 102 221)."""

import re

from metering.errors import InvalidValue

_SHORTEST, _WHOLE, _LONGEST = 18, 19, 20
"""How many digits there are: without the check digit, as E.118 says, and as there is room for."""
_DIGITS = re.compile(r"[0-9]*\Z")


def checked_iccid(text: str, field: str, *, check_digit_left_out: bool = False) -> str:
    """Return `text` if it may be an ICCID; else raise `InvalidValue` naming `field`.

    Under E.118 it is `89`, the issuer and the account, and a check digit by the Luhn formula: at most 19
    digits. Cards have room for 20, and many bear as many. Lists of SIMs often leave the check digit out:
    18 digits then are never checked, 19 only if not `check_digit_left_out`, because they are 20 less one.
    """
    if not _DIGITS.match(text):
        raise InvalidValue(
            field,
            f"{text!r} holds something other than digits",
            "use the digits alone, without spaces, hyphens or the filler F",
        )
    if not text.startswith("89"):
        raise InvalidValue(
            field, f"{text!r} does not begin with 89", "use the number that is printed on the SIM"
        )
    longest = _WHOLE if check_digit_left_out else _LONGEST
    if not _SHORTEST <= len(text) <= longest:
        without = " without a check digit" if check_digit_left_out else ""
        raise InvalidValue(
            field,
            f"{text!r} has {len(text)} digits",
            f"use {_SHORTEST} to {longest} digits{without}",
        )
    if check_digit_left_out or len(text) == _SHORTEST:
        return text
    due = luhn_digit(text[:-1])
    if text[-1] != due:
        fix = "correct the mistyped digit"
        if len(text) == _WHOLE:
            fix += '; if its check digit is left out, say "check_digit_left_out": true'
        raise InvalidValue(
            field, f"the check digit of {text!r} is {text[-1]}, its other digits give {due}", fix
        )
    return text


def luhn_digit(digits: str) -> str:
    """Return the digit that follows some others under the Luhn formula (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (2 if place % 2 == 0 else 1)
        total += doubled // 10 + doubled % 10
    return str(-total % 10)
