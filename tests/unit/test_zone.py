"""Which zone a record was used in."""

from collections.abc import Mapping, Sequence

import pytest

from metering.errors import InvalidValue
from metering.rating.zone import ZoneTable

GROUPS: Mapping[str, Sequence[str]] = {
    "nordics": ["SE", "NO", "DK", "FI"],
    "islands": ["IS", "FO"],
    "north": ["nordics", "islands", "26203"],
}


def table(default: str | None = None, **zones: list[str]) -> ZoneTable:
    return ZoneTable.of(zones, GROUPS, default)


def zone_of(
    zones: ZoneTable,
    *,
    zone: str | None = None,
    network: str | None = None,
    country: str | None = None,
) -> str | None:
    return zones.zone_of(zone=zone, network=network, country=country)


@pytest.mark.parametrize(
    ("network", "country", "expected"),
    [
        ("26201", None, "partner"),  # the network itself
        ("26202", None, "home"),  # its MCC, listed
        ("262019", None, "lab"),  # 6 digits before 5
        ("262018", None, "partner"),  # else the 5 that begin it
        ("262", None, "home"),
        ("26202", "FR", "home"),  # a listed MCC before the country
        ("20801", None, "neighbours"),  # the MCC's country
        ("20801", "BE", "neighbours"),
        ("20801", "US", "far"),  # a given country before the MCC's
        (None, "FR", "neighbours"),
        (None, "fr", "neighbours"),
        (None, "XX", "far"),
        ("90128", None, "far"),  # no country: the world
        ("90128", "BE", "neighbours"),
        ("no digits", None, "far"),
        (None, None, "far"),
    ],
)
def test_the_longest_network_wins_then_the_country_then_the_world(
    network: str | None, country: str | None, expected: str
) -> None:
    zones = table(
        home=["262"],
        partner=["26201"],
        lab=["262019"],
        neighbours=["FR", "BE"],
        far=["world"],
    )
    for _ in range(2):  # the second answer is remembered
        assert zone_of(zones, network=network, country=country) == expected


@pytest.mark.parametrize(
    ("zone", "network", "country", "expected"),
    [
        ("home", "20801", "FR", "home"),  # a zone's name wins over everything
        ("FR", None, None, "abroad"),  # two letters: a country
        ("fr", None, None, "abroad"),
        ("FR", None, "DE", "home"),  # but not instead of what the record gives
        ("26201", None, None, "home"),  # digits: a network
        ("262", None, None, "home"),
        ("20801", "26201", None, "home"),
        ("Home", None, None, None),
        ("moon", None, None, None),  # unknown
        ("moon", "26201", None, "home"),
        ("moon", None, "FR", "abroad"),
        ("EU", None, None, None),  # no country
        ("", None, "FR", "abroad"),
        (None, "31041", None, None),
    ],
)
def test_a_records_own_word_is_a_zone_a_network_a_country_or_unknown(
    zone: str | None, network: str | None, country: str | None, expected: str | None
) -> None:
    zones = table(home=["DE"], abroad=["FR"])
    assert zone_of(zones, zone=zone, network=network, country=country) == expected


def test_what_no_zone_matches_has_the_default_or_is_elsewhere() -> None:
    assert zone_of(table(home=["DE"]), country="US") is None
    assert zone_of(table("home", home=["DE"], near=["FR"]), country="US") == "home"
    assert zone_of(table("home", home=["DE"], near=["FR"])) == "home"


def test_every_record_is_in_the_world_also_one_with_an_unknown_word() -> None:
    assert zone_of(table(home=["DE"]), zone="moon") is None
    assert zone_of(table("home", home=["DE"]), zone="moon") == "home"
    assert zone_of(table(home=["DE"], far=["world"]), zone="moon") == "far"
    assert zone_of(table("home", home=["DE"], far=["world"]), zone="moon") == "far"
    assert zone_of(table("home", home=["DE"], far=["world"]), zone="moon", country="US") == "far"
    assert zone_of(table("home", home=["DE"], far=["world"])) == "far"


def test_a_zone_may_hold_nothing_but_its_name() -> None:
    assert zone_of(table(roof=[]), zone="roof") == "roof"


def test_a_group_holds_groups() -> None:
    zones = table(north=["north"])
    assert [zone_of(zones, country=country) for country in ("SE", "IS", "DE")] == [
        "north",
        "north",
        None,
    ]
    assert zone_of(zones, network="26203") == "north"
    assert zone_of(zones, network="24001") == "north"  # 240 is Sweden's


@pytest.mark.parametrize("order", [["neighbours", "cold"], ["cold", "neighbours"]])
def test_an_entry_that_a_zone_lists_itself_wins_over_a_group(order: list[str]) -> None:
    lists: dict[str, list[str]] = {"cold": ["nordics"], "neighbours": ["DK", "PL"]}
    zones = ZoneTable.of({name: lists[name] for name in order}, GROUPS, None)
    assert zone_of(zones, country="DK") == "neighbours"
    assert zone_of(zones, country="SE") == "cold"


def test_two_groups_may_share_what_a_zone_lists_itself() -> None:
    zones = ZoneTable.of(
        {"a": ["one"], "b": ["two"], "c": ["CH"]},
        {"one": ["CH", "LI"], "two": ["CH", "AT"]},
        None,
    )
    assert [zone_of(zones, country=country) for country in ("CH", "LI", "AT")] == ["c", "a", "b"]


def test_an_entry_may_come_twice_in_one_zone() -> None:
    assert zone_of(table(north=["north", "nordics", "SE", "SE"]), country="SE") == "north"


@pytest.mark.parametrize(
    ("zones", "groups", "default", "message"),
    [
        ({"home": ["DE", "26"]}, {}, None, r"zones\.home\.1: '26' is no network, country or group"),
        ({"home": ["2620"]}, {}, None, r"zones\.home\.0: '2620' is no"),
        ({"home": ["٢٦٢"]}, {}, None, r"zones\.home\.0: '٢٦٢' is no"),
        ({"home": ["UK"]}, {}, None, r"zones\.home\.0: 'UK' is no .*; write an MCC \(3 digits\)"),
        ({"home": ["de"]}, {}, None, r"zones\.home\.0: 'de' is no .* two capital letters"),
        ({"home": ["nordic"]}, GROUPS, None, r"zones\.home\.0: 'nordic' is no"),
        ({}, {"nordics": ["Sweden"]}, None, r"groups\.nordics\.0: 'Sweden' is no"),
        ({"a": ["DE"], "b": ["FR", "DE"]}, {}, None, r"zones\.b\.1: 'DE' is in the zone 'a' too"),
        ({"a": ["world"], "b": ["world"]}, {}, None, r"zones\.b\.0: 'world' is in the zone 'a'"),
        (
            {"a": ["nordics"], "b": ["PL", "north"]},
            GROUPS,
            None,
            r"zones\.b\.1: 'DK' \(of the group 'north'\) is in the zone 'a' too; list it itself",
        ),
        ({"a": ["nordics"], "b": ["nordics"]}, GROUPS, None, r"zones\.b\.0: 'DK' \(of the group"),
        ({}, {"a": ["DE", "a"]}, None, r"groups\.a\.1: the groups hold each other .* \(a\)"),
        (
            {},
            {"a": ["b"], "b": ["c"], "c": ["FR", "a"]},
            None,
            r"groups\.\w\.[01]: the groups hold",
        ),
        ({}, {"DE": ["FR"]}, None, r"groups\.DE: 'DE' already means a place; give the group"),
        ({}, {"world": ["FR"]}, None, r"groups\.world: 'world' already means a place"),
        ({"elsewhere": ["DE"]}, {}, None, r"zones\.elsewhere: the name 'elsewhere' is reserved"),
        ({"world": ["world"]}, {}, None, r"zones\.world: the name 'world' is reserved"),
        ({"home": ["DE"]}, {}, "away", r"default_zone: 'away' is no zone of this plan; name one"),
        ({"home": ["DE"]}, {}, "elsewhere", r"default_zone: 'elsewhere' is no zone"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused_by_name(
    zones: Mapping[str, Sequence[str]],
    groups: Mapping[str, Sequence[str]],
    default: str | None,
    message: str,
) -> None:
    with pytest.raises(InvalidValue, match=message):
        ZoneTable.of(zones, groups, default)


def test_a_group_may_be_named_like_what_is_no_country() -> None:
    zones = ZoneTable.of({"eu": ["EU"]}, {"EU": ["DE", "FR"]}, None)
    assert zone_of(zones, country="FR") == "eu"


def test_groups_may_nest_as_deep_as_they_like() -> None:
    groups = {f"g{depth}": [f"g{depth + 1}"] for depth in range(5000)} | {"g5000": ["DE"]}
    assert zone_of(ZoneTable.of({"deep": ["g0"]}, groups, None), country="DE") == "deep"


def test_what_is_remembered_is_bounded() -> None:
    zones = table(home=["262"])
    for number in range(10_000):
        assert zone_of(zones, network=f"262{number % 1000:03}", zone=f"z{number}") == "home"
    assert len(zones._found) <= 4096
