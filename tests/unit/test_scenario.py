"""Scenario files, and what is made of them: the truth in the ledger, the bills, the refusals."""

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from device_sim.profile import SHAPES, Kind
from device_sim.scenario import command
from device_sim.scenario.definition import Scenario
from device_sim.scenario.document import scenario_schema_text
from device_sim.scenario.generate import Made, make
from device_sim.scenario.output import expectation
from device_sim.scenario.publish import Pace
from device_sim.scenario.reading import read_scenario
from device_sim.scenario.run import check_formats, check_may_publish, check_takes
from metering.cli import main
from metering.errors import InvalidValue
from metering.plan_document.file import parse_documents
from metering.settings import Settings
from metering.usage import Reading, Rejection
from metering.wire import native
from metering.wire.ledger import LedgerLine, read_ledger

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "scenario.schema.json"
SHIPPED = {path.stem: path for path in command.shipped_files()}
GOLDEN = {
    "dst-autumn": "daa91fac499931af3f984218d98ddd13385ed4b4e1e47550627b9d356ba0b7da",
    "dst-spring": "93713ab843ceebaa5b6999def783072398b7520627bfad5d53d26819549bccb5",
    "everything": "e8a53b6f76e2b8a1ba6b3cd874d674d6ab850672a646aabaa30c5451590c8d3d",
    "formats": "39424cd783326cf36652121d8451ed8abe32698a873f9bc8ff431bbefb5e0a7c",
    "firmware-storm": "c53ba51633525cb24f117d9a69fa1c5a9966d7a5ff95a8a4bd3090a6922a3fc0",
    "leap-day": "507c884949c8d4a69081dd17ddd29491674531fd79266f9091c2b7148a757e1b",
    "month-end": "ca20391658ab16c591591b7f8a52609c75d9774e5504ac885c494b7c5bb5c58b",
    "roaming-storm": "ea61bd3a4b86858a553aab1dcc4ff36b9ffdcabda00473ecf65669d85fa63ad1",
    "runaway": "40372386b762c5993c9fb63ec95eed0498da59df1d182b519dda4e03e9fdf1a4",
}
"""Scenario → the digest of all of its files, in the order of their names."""

PLAN: dict[str, Any] = {
    "plan": "flat",
    "currency": "EUR",
    "monthly_fee": "1.00",
    "meters": {
        "data": {"price": {"amount": "0.10", "per": "1 MB"}},
        "messages": {"price": {"amount": "0.001"}},
        "sms": {"price": {"amount": "0.05"}},
        "voice": {"price": {"amount": "0.05", "per": 60}},
    },
}


def document(**group: object) -> dict[str, Any]:
    """Return a scenario of two days and one group, as a file would hold it."""
    devices = {"name": "d", "count": 3, "profile": "meter", "plan": "flat"} | group
    return {
        "scenario": "s",
        "seed": 4,
        "from": "2026-04-29T00:00",
        "to": "2026-05-03T00:00",
        "plans": [PLAN],
        "fleets": [
            {"id": "f", "currency": "EUR", "time_zone": "Europe/Berlin", "groups": [devices]}
        ],
    }


def shares(**faults: str) -> dict[str, Decimal]:
    return {name: Decimal(share) for name, share in faults.items()}


def scenario_of(given: object) -> Scenario:
    return read_scenario(given, folder=ROOT)


def made_of(**group: object) -> Made:
    return make(scenario_of(document(**group)))


def sums(lines: list[LedgerLine]) -> Counter[tuple[str, str]]:
    """Return what was truly used, by device and meter, both directions together."""
    found: Counter[tuple[str, str]] = Counter()
    for line in lines:
        found[line.device, line.meter] += (
            (line.used_up or 0) + (line.used_down or 0) + (line.used or 0)
        )
    return found


def digest(folder: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


# Files


@pytest.mark.parametrize("name", SHIPPED)
def test_a_seed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    assert main(["scenario", "make", name, "--out", str(tmp_path)]) == 0
    assert digest(tmp_path) == GOLDEN[name]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_so_it_does_in_every_process(hash_seed: str, tmp_path: Path) -> None:
    subprocess.run(
        [*(sys.executable, "-m", "metering.cli"), "scenario", "make", "month-end", "--out", "made"],
        check=True, capture_output=True, cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )  # fmt: skip
    assert digest(tmp_path / "made") == GOLDEN["month-end"]


def test_another_seed_gives_others(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        assert (
            main(["scenario", "make", "runaway", "--seed", seed, "--out", str(tmp_path / seed)])
            == 0
        )
    assert digest(tmp_path / "1") != digest(tmp_path / "2")


def test_the_rating_command_says_of_the_files_what_the_bill_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scenario", "make", "month-end", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    fleet = tmp_path / "thirty-first"
    plans = [
        argument for path in sorted(fleet.glob("plans/*")) for argument in ("--plan", str(path))
    ]
    given = ["--usage", str(fleet / "usage.jsonl"), "--state", str(fleet / "state.json"), "--json"]
    expected = json.loads((tmp_path / "expected.json").read_text())
    period = ["--from", expected["from"], "--to", expected["to"]]
    assert main(["rate", *plans, *given, *period]) == 0
    rated = json.loads(capsys.readouterr().out)
    bill = json.loads((fleet / "bill.json").read_text())
    assert [each["total"] for each in rated["periods"]] == [
        each["total"] for each in bill["cycles"]
    ]


def test_the_ledger_is_one(tmp_path: Path) -> None:
    assert main(["scenario", "make", "runaway", "--out", str(tmp_path)]) == 0
    with (tmp_path / "ledger.jsonl").open() as file:
        lines = list(read_ledger(file))
    assert len(lines) == json.loads((tmp_path / "expected.json").read_text())["readings"]


# Refused files


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (document(count=0), "fleets.0.groups.0.count: is too small; use 1 or more"),
        (document(profile="toaster"), "fleets.0.groups.0.profile: is not allowed; use "),
        (document(plan="none"), "fleets.0.groups.0.plan: 'none' is no plan; use one of flat"),
        (document(explodes="2026-05-01"), "fleets.0.groups.0.explodes: is not for a meter; "),
        (document(profile="runaway"), "fleets.0.groups.0.explodes: is missing; "),
        (document(profile="firmware_storm"), "fleets.0.groups.0.storm: is missing; "),
        (document(format="morse"), "fleets.0.groups.0.format: is not allowed; use 'json', 'cbor', "),
        (document(faults={"skew": 2}), "fleets.0.groups.0.faults.skew: is not a share; "),
        (document(faults={"skew_by": "1 week"}), "fleets.0.groups.0.faults.skew_by: is no duration; "),
        (document(faults={"lightning": 1}), "fleets.0.groups.0.faults.lightning: is no field here; "),
        (document(begins="2026-06-01"), "fleets.0.groups.0.begins: is not before the end; "),
        (
            document(changes=[{"at": "2026-05-01", "plan": "flat", "sim": "new"}]),
            "fleets.0.groups.0.changes.0: is not one change; ",
        ),
        (
            document(changes=[{"at": "2026-05-01", "devices": [4], "state": "suspended"}]),
            "fleets.0.groups.0.changes.0.devices: 4 is no device of the group; use numbers from 1 to 3",
        ),
        (
            document(roaming=[{"at": "2026-05-01"}, {"at": "2026-04-30"}]),
            "fleets.0.groups.0.roaming.1.at: is before the one above; ",
        ),
        (document() | {"to": "2026-04-01"}, "to: is not after from; "),
        (document() | {"to": "morning"}, "to: 'morning' is no time; "),
        (document() | {"step": "1 s"}, "step: makes 345600 steps of the period; "),
        (document() | {"tenant": "a/b"}, "tenant: "),
        (document() | {"plans": [PLAN, PLAN]}, "plan: 'flat' is the id of two plans; "),
        (document() | {"plans": [PLAN | {"currency": "euro"}]}, "plans.0.currency: "),
        (document() | {"plans": [PLAN | {"currency": "USD"}]}, "fleets.0.currency: is EUR, "),
        (
            document() | {"plans": [PLAN | {"meters": {"sms": PLAN["meters"]["sms"]}}]},
            "fleets.0.groups.0.plan: 'flat' has no price for data, which a meter uses; ",
        ),
        ([], "scenario: is not an object with fields; "),
    ],
)  # fmt: skip
def test_a_file_that_is_wrong_is_told_path_problem_and_fix(given: object, told: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        scenario_of(given)
    assert str(refused.value).startswith(told)


def test_plans_may_stand_in_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "flat.yaml").write_text(json.dumps(PLAN), "utf-8")
    scenario = read_scenario(document() | {"plans": [{"file": "flat.yaml"}]}, folder=tmp_path)
    assert list(scenario.plans) == ["flat"]


def test_the_published_schema_is_the_generated_one_and_takes_what_is_shipped() -> None:
    assert PUBLISHED.read_text("utf-8") == scenario_schema_text()
    plan_schema = json.loads((ROOT / "docs" / "plan.schema.json").read_text("utf-8"))
    registry: Registry[Any] = Registry().with_resources(
        [("plan.schema.json", Resource.from_contents(plan_schema))]
    )
    schema = Draft202012Validator(json.loads(scenario_schema_text()), registry=registry)
    for path in SHIPPED.values():
        [given] = parse_documents(path.read_bytes())
        schema.validate(json.loads(json.dumps(given, default=float)))
    assert not schema.is_valid(document(count=0))
    assert not schema.is_valid(document(faults={"skew": 2}))


# What is made


@pytest.mark.parametrize(
    "kind", [kind for kind in Kind if kind not in {Kind.FIRMWARE_STORM, Kind.RUNAWAY}]
)
def test_a_kind_uses_about_what_its_shape_says(kind: Kind) -> None:
    made = make(
        scenario_of(document(profile=kind.value) | {"to": "2026-05-06T00:00", "step": "10 min"})
    )
    of_meter: Counter[str] = Counter()
    for (_, meter), used in sums(list(made.ledger)).items():
        of_meter[meter] += used
    for use in SHAPES[kind].uses:
        weekdays, weekend = 5, 2
        percent = (
            sum(SHAPES[kind].hours)
            / 24
            * (weekdays + weekend * SHAPES[kind].weekend_percent / 100)
            / 7
        )
        usual = use.per_hour * percent / 100 * 7 * 24 * 3
        assert 0.8 * usual < of_meter[use.meter.meter] < 1.2 * usual
    assert set(of_meter) == {use.meter.meter for use in SHAPES[kind].uses}
    kinds = {"total"} if SHAPES[kind].cumulative else {"delta"}
    assert {line.kind for line in made.ledger} == kinds


def test_in_a_storm_each_device_fetches_the_image_once_within_the_hour() -> None:
    begins = datetime(2026, 4, 30, 2, tzinfo=UTC)
    storm = {"at": "2026-04-30T02:00Z", "within": "1 h", "image": "5 MB"}
    made = made_of(profile="firmware_storm", storm=storm)
    fetched = [line for line in made.ledger if (line.used_down or 0) >= 5_000_000]
    assert sorted(line.device for line in fetched) == ["d-0001", "d-0002", "d-0003"]
    assert all(begins < line.at < begins + timedelta(hours=2) for line in fetched)


def test_a_runaway_doubles_every_hour() -> None:
    made = made_of(profile="runaway", explodes="2026-05-01T08:00Z", count=1)
    used = [
        (line.used_up or 0) + (line.used_down or 0)
        for line in made.ledger
        if line.meter == "data" and line.at > datetime(2026, 5, 1, 8, tzinfo=UTC)
    ]
    assert 2**5 < used[6] / used[0] < 2**7


def test_what_is_suspended_or_retired_uses_nothing() -> None:
    made = made_of(
        changes=[
            {"at": "2026-04-30T12:00Z", "devices": [1], "state": "suspended"},
            {"at": "2026-05-01T12:00Z", "devices": [1], "state": "active"},
            {"at": "2026-05-01T12:00Z", "devices": [2], "state": "retired"},
        ]
    )
    instants = {
        device: [line.at for line in made.ledger if line.device == device]
        for device in ("d-0001", "d-0002", "d-0003")
    }
    begins, ends = datetime(2026, 4, 30, 12, tzinfo=UTC), datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert not [at for at in instants["d-0001"] if begins <= at < ends]
    assert max(instants["d-0001"]) > ends
    resumed = next(line for line in made.ledger if line.device == "d-0001" and line.at > ends)
    assert 0 < (resumed.used_up or 0) < 2 * SHAPES[Kind.METER].uses[0].per_hour
    assert max(instants["d-0002"]) < ends < max(instants["d-0003"])


def test_places_and_sims_change_when_they_are_said_to() -> None:
    swapped = datetime(2026, 5, 1, 12, tzinfo=UTC)
    made = made_of(
        count=1,
        roaming=[
            {"at": "2026-04-30T00:00Z", "network": "26201", "rat": "LTE"},
            {"at": "2026-05-01T00:00Z", "zone": "sea", "apn": "ferry"},
        ],
        changes=[{"at": "2026-05-01T12:00Z", "sim": "new"}],
    )
    told = {(each.zone, each.rat, each.apn) for each in made.usage["f"]}
    assert told == {(None, None, None), ("26201", "LTE", None), ("sea", None, "ferry")}
    epochs = {line.epoch: line.at < swapped for line in made.ledger}
    assert sorted(epochs.values()) == [False, True]


def test_devices_that_are_offline_publish_hours_late() -> None:
    made = made_of(faults={"offline": Decimal("0.05"), "offline_for": "6 h"})
    late = Counter(
        message.at - reading.at > timedelta(hours=3)
        for message in made.messages
        for reading in decoded(message.payload)
    )
    assert 0.1 < late[True] / late.total() < 0.5


def decoded(payload: bytes) -> list[Reading]:
    message = native.decode(payload, payload_octets_max=10**6, readings_max=5000)
    assert not isinstance(message, Rejection)
    return message.readings


def test_what_is_lost_on_its_way_comes_later_and_in_its_order() -> None:
    sound, lossy = made_of(), made_of(faults=shares(drop="0.3"))
    assert lossy.ledger == sound.ledger
    assert lossy.usage.keys() == sound.usage.keys()
    late = []
    for device in {each.device for each in sound.messages}:
        first, again = (
            [each for each in made.messages if each.device == device] for made in (sound, lossy)
        )
        assert [each.seqs for each in again] == [each.seqs for each in first]
        late += [other.at - one.at for one, other in zip(first, again, strict=True)]
    assert timedelta() == min(late) < max(late) < timedelta(minutes=1)
    assert 0.1 < sum(map(bool, late)) / len(late) < 0.5


def test_what_is_malformed_is_refused_for_the_reason_that_is_expected() -> None:
    made = made_of(faults=shares(malformed="0.5"), count=5)
    refused: Counter[str] = Counter()
    for message in made.messages:
        found = native.decode(message.payload, payload_octets_max=10**6, readings_max=5000)
        if isinstance(found, Rejection):
            refused[found.reason] += 1
    assert refused == made.rejected
    assert len(refused) == 3


def test_a_forged_id_is_nobodys() -> None:
    made = made_of(faults=shares(forged_id="0.2", clock_lost="0.3"))
    forged = [each for each in made.messages if each.topic.endswith("-forged/usage")]
    assert made.rejected["unknown_device"] == len(forged) > 0
    years = {reading.at.year for message in forged for reading in decoded(message.payload)}
    assert years == {2026}


def test_some_messages_come_again_and_some_after_the_next_one() -> None:
    made = made_of(faults=shares(duplicate="0.2", reorder="0.2"), count=4)
    keys = [(each.device, each.boot, each.seqs) for each in made.messages]
    assert 0.1 < len(keys) / len(set(keys)) - 1 < 0.3
    first = list(dict.fromkeys(keys))
    for device in {key[0] for key in keys}:
        seqs = [seq for key in first if key[0] == device for seq in key[2]]
        assert sorted(seqs) == list(range(1, len(seqs) + 1))
        assert seqs != sorted(seqs)


def test_a_counters_messages_keep_their_order_around_a_cycles_boundary() -> None:
    made = made_of(faults=shares(reorder="1"), count=10)
    cut = datetime(2026, 4, 30, 22, tzinfo=UTC)  # when May begins in Berlin
    arrived: dict[str, list[Reading]] = {}
    for message in made.messages:
        arrived.setdefault(message.device, []).extend(decoded(message.payload))
    for readings in arrived.values():
        late = [(one, other) for one, other in pairwise(readings) if other.seq < one.seq]
        assert len(late) > 10
        at = {reading.seq: reading.at for reading in readings}
        for one, other in late:
            around = [at[seq] for seq in range(other.seq - 1, one.seq + 2) if seq in at]
            assert not min(around) < cut <= max(around)


def test_a_skewed_clock_never_leaves_the_time_of_the_devices_plan() -> None:
    retires = {"at": "2026-05-01T12:00Z", "devices": [1, 2, 3], "state": "retired"}
    made = made_of(count=20, faults={"skew": Decimal("0.8"), "skew_by": "6 h"}, changes=[retires])
    begins, retired, ends = (
        datetime(2026, month, day, hour, tzinfo=UTC)
        for month, day, hour in ((4, 28, 22), (5, 1, 12), (5, 2, 22))
    )
    for line in made.ledger:
        gone = retired if line.device in {"d-0001", "d-0002", "d-0003"} else ends
        assert begins <= line.at < gone
    sent = {each.at - line.at for each in made.messages for line in decoded(each.payload)}
    assert min(sent) < timedelta(hours=-5)
    assert max(sent) > timedelta(hours=5)


def test_counters_fall_where_they_wrap_or_reset_and_the_platform_can_tell() -> None:
    made = made_of(faults=shares(wrap="1", reset="0.1"), count=4)
    falls = 0
    before: dict[str, LedgerLine] = {}
    for line in made.ledger:
        was = before.get(line.device)
        falls += was is not None and (line.up or 0) < (was.up or 0)
        before[line.device] = line
    assert falls > 10
    assert {line.width for line in made.ledger} <= set(range(8, 33))


def test_the_order_of_charging_never_decides_an_expected_bill() -> None:
    meters = PLAN["meters"] | {
        "data": {
            "allowance": "1 MB",
            "variants": [{"zones": ["sea"], "price": {"amount": "9"}}],
            "price": {"amount": "1", "per": "1 MB"},
        }
    }
    plan = PLAN | {"zones": {"sea": ["90118"]}, "meters": meters}
    given = document(
        profile="tracker", roaming=[{"at": "2026-05-01T12:00", "network": "90118"}]
    ) | {"plans": [plan]}  # fmt: skip
    scenario = scenario_of(given)
    with pytest.raises(InvalidValue, match="depends on the order in which usage is charged"):
        expectation(scenario, make(scenario))


# What can be run

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_what_the_platform_takes_is_told_before_it_is_run() -> None:
    settings = Settings(clock_behind_days_max=40)
    check_takes(scenario_of(document()), settings, now=NOW)
    with pytest.raises(InvalidValue, match="is in the future"):
        check_takes(scenario_of(document()), settings, now=datetime(2026, 5, 2, tzinfo=UTC))
    with pytest.raises(InvalidValue, match="FLEETMETER_CLOCK_BEHIND_DAYS_MAX=42"):
        check_takes(scenario_of(document()), settings, now=NOW + timedelta(days=7))
    data = {"allowances": [{"name": "a", "quantity": 5, "rollover": {}}], "price": {"amount": "1"}}
    plan = PLAN | {"meters": {"data": data}}
    with pytest.raises(InvalidValue, match="rolls over"):
        check_takes(scenario_of(document() | {"plans": [plan]}), settings, now=NOW)


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ({"format": "carrier"}, "is of data and SMS"),
        ({"format": "carrier", "profile": "kiosk"}, "is of data and SMS"),
        ({"format": "carrier", "profile": "alarm", "faults": shares(skew="0.1")}, "faults.skew"),
        ({"format": "senml", "faults": shares(skew="0.1")}, "faults.skew"),
        ({"format": "thingsboard", "faults": shares(clock_lost="0.1")}, "faults.clock_lost"),
        ({"format": "senml-cbor", "faults": shares(wrap="0.1")}, "faults.wrap"),
        ({"format": "sparkplug", "faults": shares(reorder="0.1")}, "faults.reorder"),
        ({"format": "sparkplug", "profile": "tracker"}, "is of counters"),
        ({"format": "senml", "roaming": [{"at": "2026-05-01", "zone": "eu"}]}, "cannot be told"),
    ],
)
def test_what_a_format_cannot_tell_is_refused(group: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidValue, match=problem):
        scenario_of(document(**group))


def test_a_format_needs_what_it_takes() -> None:
    binary = scenario_of(document(format="cloudevents-binary"))
    check_formats(binary, Settings())
    with pytest.raises(InvalidValue, match="needs MQTT 5"):
        check_formats(binary, Settings(mqtt_version="3.1.1"))
    edge = scenario_of(document(format="sparkplug"))
    check_formats(edge, Settings(ingest_sparkplug=True))
    with pytest.raises(InvalidValue, match="FLEETMETER_INGEST_SPARKPLUG"):
        check_formats(edge, Settings())


def test_who_may_not_publish_at_the_end_cannot_be_run_with_credentials() -> None:
    changes = [{"at": "2026-05-01T12:00", "devices": [2], "state": "suspended"}]
    with pytest.raises(InvalidValue, match="d-0002 ends suspended"):
        check_may_publish(scenario_of(document(changes=changes)))
    changes.append({"at": "2026-05-02T12:00", "devices": [2], "state": "active"})
    check_may_publish(scenario_of(document(changes=changes)))


def test_no_device_of_a_scenario_floods() -> None:
    """However much it has to send: in no window is it more than the platform lets it."""
    settings = Settings()
    pace, now, sent = Pace(settings), 100.0, []
    for _ in range(10_000):
        now += pace.wait_seconds("a", now)
        sent.append(now)
    assert pace.wait_seconds("b", now) == 0
    most = settings.device_messages_per_second_max * settings.flood_window_seconds
    for first, last in zip(sent, sent[int(most) :], strict=False):
        assert last - first >= settings.flood_window_seconds * 0.99
