"""ICCIDs: their form, their check digit, and what is said of those that cannot be taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import InvalidValue
from metering.iccid import checked_iccid, luhn_digit

BODIES = st.text("0123456789", min_size=16, max_size=17).map(lambda digits: "89" + digits)


@pytest.mark.parametrize(
    ("digits", "check"),
    [("7992739871", "3"), ("123456781234567", "0"), ("0", "0"), ("893144260000000000", "1")],
)
def test_the_check_digit_is_that_of_the_formula(digits: str, check: str) -> None:
    """Worked by hand: of 7992739871 every other digit doubled is 67 in all, and 3 makes it 70."""
    assert luhn_digit(digits) == check


@given(BODIES)
def test_a_number_with_and_without_its_check_digit_is_taken(body: str) -> None:
    whole = body + luhn_digit(body)
    assert checked_iccid(whole, "iccid") == whole
    assert checked_iccid(body, "iccid", check_digit_left_out=True) == body
    if len(body) == 18:
        assert checked_iccid(body, "iccid") == body


@given(BODIES, st.data())
def test_any_one_mistyped_digit_is_noticed(body: str, data: st.DataObject) -> None:
    whole = body + luhn_digit(body)
    if len(whole) == 18:
        whole = body + "0" + luhn_digit(body + "0")
    place = data.draw(st.integers(2, len(whole) - 1))
    other = data.draw(st.sampled_from([each for each in "0123456789" if each != whole[place]]))
    with pytest.raises(InvalidValue, match="check digit"):
        checked_iccid(whole[:place] + other + whole[place + 1 :], "iccid")


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ("8949 0000 0000 0000 0017", "other than digits", "without spaces"),
        ("8949000000000000001F", "other than digits", "filler F"),
        ("89490000000000000\u0661\u0662", "other than digits", "digits alone"),
        ("", "does not begin with 89", "printed on the SIM"),
        ("4949000000000000017", "does not begin with 89", "printed on the SIM"),
        ("89490000000000017", "has 17 digits", "18 to 20 digits"),
        ("894900000000000000178", "has 21 digits", "18 to 20 digits"),
        ("8949000000000000017", "is 7, its other digits give 8", "check_digit_left_out"),
        ("89490000000000000172", "is 2, its other digits give 1", "mistyped"),
    ],
)
def test_what_is_wrong_is_said_with_the_fix(text: str, problem: str, fix: str) -> None:
    with pytest.raises(InvalidValue) as raised:
        checked_iccid(text, "iccid")
    assert raised.value.field == "iccid"
    assert problem in raised.value.problem
    assert fix in raised.value.fix


def test_a_whole_number_whose_check_digit_were_left_out_is_too_long() -> None:
    with pytest.raises(InvalidValue, match="use 18 to 19 digits without a check digit"):
        checked_iccid("89490000000000000171", "iccid", check_digit_left_out=True)
