"""Why a charge costs what it costs, in words: examples that a reader can follow."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from metering.plan_document import read_plan, terms_of
from metering.rating.explanation import ChargeTold, DrawTold, FormerTold, explain, skipped

PLAN: dict[str, Any] = {
    "plan": "iot",
    "currency": "EUR",
    "zones": {"home": ["DE"], "nordics": ["SE", "DK"]},
    "bands": {"night": [{"from": "22:00", "to": "06:00"}]},
    "meters": {
        "data": {
            "price": {"model": "graduated", "per": "1 kB", "tiers": [
                {"up_to": "30 kB", "amount": "0.03", "flat": "0.10"},
                {"up_to": "90 kB", "amount": "0.02"},
                {"amount": "0.007", "flat": "0.50"},
            ]},
            "increment": {"step": "1 kB", "scope": "session"},
            "overhead": {"per_record": 40, "per_packet": 28},
            "variants": [
                {"zones": ["home"], "bands": ["night"],
                 "price": {"amount": "0.05", "per": "1 kB", "connection_fee": "0.01"}},
                {"from": "2026-06-01", "zones": ["nordics"],
                 "price": {"amount": "0.09", "per": "1 kB"}},
            ],
            "allowances": [{"name": "bundle", "quantity": "4 kB"}],
        },
        "sms": {"price": {"model": "volume", "tiers": [
            {"up_to": 10, "amount": "0.10"}, {"amount": "0.04"}]}, "allowance": 3},
        "voice": {"price": {"model": "package", "amount": "0.25", "size": "10 min"}},
        "messages": {"price": {"amount": "0.003"}},
    },
    "rounding": {"at": "record", "step": "0.005"},
}  # fmt: skip
TERMS = terms_of(read_plan({**PLAN, "rounding": {"at": "line"}}))
ROUNDED = terms_of(read_plan(PLAN))


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-03-{text}").replace(tzinfo=UTC)


def charge(**given: Any) -> ChargeTold:  # noqa: ANN401 - its fields
    """Return a charge of a message that one device sent; `given` says what is otherwise."""
    told: dict[str, Any] = {
        "device": "van-1",
        "boot": "boot-1",
        "seq": 7,
        "part": 0,
        "usage_from": at("05T12:00:00"),
        "usage_to": at("05T12:00:00"),
        "measured_at": at("05T12:00:00"),
        "received_at": at("05T12:00:01"),
        "charged_at": at("05T12:00:02"),
        "terms": TERMS,
        "plan": "iot",
        "plan_version": 2,
        "time_zone": "Europe/Berlin",
        "cycle_start": datetime(2026, 2, 28, 23, tzinfo=UTC),
        "meter": "sms",
        "variant": 0,
        "zone": None,
        "band": None,
        "quantity": 1,
        "uplink": 0,
        "billed": 1,
        "draws": [],
        "overage": 1,
        "priced_before": 0,
        "connection_fee": 0,
        "amount": int(TERMS.subunits_per_unit / 10),
    } | given
    return ChargeTold(**told)


def subunits(text: str) -> int:
    whole = float(text) * TERMS.subunits_per_unit
    assert whole == int(whole)
    return int(whole)


def test_what_buckets_pay_and_what_is_priced() -> None:
    told = charge(
        quantity=12, billed=12, overage=9, priced_before=4, amount=subunits("0.12"),
        draws=[DrawTold(bucket="allowance", kind="allowance", paid=3, left_before=3)],
    )  # fmt: skip
    # 4 messages at 0.10 were 0.40; 13 at 0.04 are 0.52: the step takes the 0.40 back.
    assert explain(told) == [
        (
            "Device van-1 told in reading 7 of boot boot-1 what it used (measured 2026-03-05T12:00:00Z,"
            " received 2026-03-05T12:00:01Z, charged 2026-03-05T12:00:02Z)."
        ),
        "That is 12 messages of sms at 2026-03-05T12:00:00Z.",
        "Plan iot version 2 prices it, in the bill cycle from 2026-03-01.",
        "Its zone is elsewhere.",
        "Its time band is outside of all.",
        "Bucket allowance (allowance) had 3 messages left and pays 3; 0 remain.",
        "9 messages are priced, as 4 to 13 of what this price counts together.",
        "Tier 2: 13 at 0.04/1 = 0.52.",
        "Before: 4 = -0.4.",
        "It costs 0.12 EUR.",
    ]


def test_which_price_and_why_not_another() -> None:
    told = charge(
        meter="data", variant=2, zone="nordics", told_zone="SE", band="night", quantity=31_000,
        uplink=1000, packets=10, billed=32_000, overage=32_000, amount=subunits("1.04"),
        usage_from=at("05T11:00:00"), attributes={"rat": "NB-IoT"},
    )  # fmt: skip
    assert skipped(told) == [
        "variant 0: zone nordics is none of home",
        "variant 1: it holds from 2026-06-01",
    ]
    words = explain(told)
    assert words[1:] == [
        (
            "That is 31000 octets of data (1000 of them up) from 2026-03-05T11:00:00Z to"
            " 2026-03-05T12:00:00Z."
        ),
        "Plan iot version 2 prices it, in the bill cycle from 2026-03-01.",
        "Its zone is nordics (told: SE).",
        "Its time band is night.",
        "Not variant 0: zone nordics is none of home.",
        "Not variant 1: it holds from 2026-06-01.",
        "The first price that holds is the meter's own price.",
        "320 octets of overhead are added to it.",
        "It is rounded up to steps of 1000 octets, together with its session: 32000 octets are billed.",
        "No bucket that holds for it has anything left.",
        "32000 octets are priced, as 0 to 32000 of what this price counts together.",
        "Tier 1: 30000 at 0.03/1000 + 0.1 = 1.",
        "Tier 2: 2000 at 0.02/1000 = 0.04.",
        "It costs 1.04 EUR.",
    ]


def test_a_connection_fee_and_a_part_that_goes_on() -> None:
    told = charge(
        meter="data", variant=0, zone="home", band="night", quantity=2000, billed=2000,
        overage=2000, connection_fee=subunits("0.01"), amount=subunits("0.11"), part=1,
        last_part=False,
    )  # fmt: skip
    words = explain(told)
    assert words[1].endswith("at 2026-03-05T12:00:00Z, part 2 of it.")
    assert "The first price that holds is variant 0." in words
    assert words[-3:] == [
        "Unit: 2000 at 0.05/1000 = 0.1.",
        "The connection fee is 0.01.",
        "It costs 0.11 EUR.",
    ]


def test_all_paid_rounded_records_and_nothing_used() -> None:
    paid = charge(
        overage=0, amount=0,
        draws=[
            DrawTold(bucket="allowance", kind="allowance", paid=1, left_before=2),
        ],
    )  # fmt: skip
    assert explain(paid)[-2:] == ["Buckets pay all of it.", "It costs 0 EUR."]
    rounded = charge(terms=ROUNDED, meter="messages", amount=ROUNDED.subunits_per_unit // 200)
    assert explain(rounded)[-3:] == [
        "Unit: 1 at 0.003/1 = 0.003.",
        "The plan rounds each record, which adds 0.002.",
        "It costs 0.005 EUR.",
    ]
    nothing = charge(quantity=0, billed=0, overage=0, amount=0)
    assert explain(nothing)[-1] == "It costs 0 EUR."


def test_what_it_was_before_terms_changed() -> None:
    told = charge(
        former=[
            FormerTold(
                plan="van version 1", was="0.3", cause="plan_change", correction_no=12,
                effective_from=at("01T00:00:00"), recorded_at=at("20T09:00:00"),
                difference="-0.2",
            )
        ]
    )  # fmt: skip
    assert explain(told)[-1] == (
        "Until 2026-03-20T09:00:00Z it cost 0.3 EUR under van version 1: plan change 12, which holds"
        " from 2026-03-01T00:00:00Z, added -0.2."
    )
    assert explain(replace(told, former=())) == explain(told)[:-1]
