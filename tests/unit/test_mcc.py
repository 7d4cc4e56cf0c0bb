"""Mobile country codes stand for the countries that ITU assigned them to."""

import pytest

from metering.mcc import COUNTRIES, country_of_mcc


@pytest.mark.parametrize(
    ("country", "codes"),
    [
        ("US", "310 311 312 313 314 315 316"),
        ("IN", "404 405 406"),
        ("AE", "424 430 431"),
        ("GB", "234 235"),
        ("JP", "440 441"),
        ("CN", "460 461"),
        ("DE", "262"),
        ("KR", "450"),
        ("KP", "467"),
        ("TJ", "436"),
        ("TK", "554"),
        ("XK", "221"),
        ("GF", "742"),
        ("BR", "724"),
    ],
)
def test_a_country_has_exactly_these_codes(country: str, codes: str) -> None:
    every = [f"{code:03}" for code in range(1000)]
    assert " ".join(code for code in every if country_of_mcc(code) == country) == codes


@pytest.mark.parametrize(
    "code", ["901", "902", "991", "999", "001", "289", "000", "", "26", "2620"]
)
def test_a_code_that_is_shared_reserved_or_not_assigned_has_no_country(code: str) -> None:
    assert country_of_mcc(code) is None


def test_237_codes_are_assigned_to_224_countries_and_territories() -> None:
    # 237 codes, of which US has 7, IN and AE 3, GB, JP and CN 2: 237 − 6 − 2 − 2 − 1 − 1 − 1 = 224.
    assigned = [country_of_mcc(f"{code:03}") for code in range(1000)]
    countries = [country for country in assigned if country]
    assert len(countries) == 237
    assert len(set(countries)) == 224


def test_the_countries_are_the_249_of_iso_3166_and_kosovo() -> None:
    assert len(COUNTRIES) == 250
    assert {"XK", "PS", "AQ", "GG", "DE"} <= COUNTRIES
    assert not {"UK", "EU", "EL", "AN", "XX"} & COUNTRIES
