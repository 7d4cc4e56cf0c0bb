"""Limits that an agent obeys: by a hook program, kept on disk, brought about again."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from metering.agent import control as control_module
from metering.agent.control import Actor, Control, Hook
from metering.agent.state import StateFile
from metering.wire.command import Command, Limits


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    made = StateFile(tmp_path / "agent.db", tenant="t", device="d", kernel_boot="k")
    yield made
    made.close()


def hook(folder: Path, body: str) -> Hook:
    program = folder / "hook"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/told\n{body}\n')
    program.chmod(0o755)
    return Hook(program)


def told(folder: Path) -> list[str]:
    return (folder / "told").read_text().splitlines()


def obey(
    state: StateFile, actor: Actor | None, kind: str, number: int, **payload: object
) -> str | None:
    document = {"id": str(number), "number": number, "kind": kind, **payload}
    control = Control(state=state, actor=actor, say=lambda _: None)
    return asyncio.run(control.obey(Command.model_validate(document)))


def enforce(state: StateFile, actor: Actor) -> None:
    asyncio.run(Control(state=state, actor=actor, say=lambda _: None).enforce())


def test_a_hook_is_told_what_holds_whatever_the_order_of_commands(
    state: StateFile, tmp_path: Path
) -> None:
    program = hook(tmp_path, "")
    assert obey(state, program, "resume", 1) is None  # nothing was limited: nobody is told
    assert obey(state, program, "throttle", 2, octets_per_second=16_000) is None
    assert obey(state, program, "suspend", 4) is None
    assert obey(state, program, "resume", 3) is None  # late: the suspension came after it
    assert obey(state, program, "resume", 5) is None
    assert told(tmp_path) == ["throttle 16000", "suspend", "suspend", "resume"]


def test_limits_survive_the_agent_and_are_brought_about_again(
    state: StateFile, tmp_path: Path
) -> None:
    program = hook(tmp_path, "")
    enforce(state, program)
    assert not (tmp_path / "told").exists()
    obey(state, program, "suspend", 1)
    enforce(state, program)
    assert told(tmp_path) == ["suspend", "suspend"]
    state.close()
    again = StateFile(tmp_path / "agent.db", tenant="t", device="d", kernel_boot="k2")
    assert again.limits == Limits(suspended_by=1)
    again.close()


def test_a_hook_that_fails_refuses_and_nothing_holds(state: StateFile, tmp_path: Path) -> None:
    refused = obey(state, hook(tmp_path, "echo no such device >&2; exit 3"), "suspend", 1)
    assert refused == "the hook ended with 3: no such device"
    missing = obey(state, Hook(tmp_path / "none"), "suspend", 2)
    assert "cannot be run" in str(missing)
    assert state.limits == Limits()


def test_a_hook_that_hangs_is_ended(
    state: StateFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "HOOK_SECONDS_MAX", 0.05)
    refused = obey(state, hook(tmp_path, "exec sleep 1000"), "suspend", 1)
    assert "longer than" in str(refused)


def test_without_an_actor_limits_are_refused_and_a_balance_is_noted(state: StateFile) -> None:
    assert "only meters" in str(obey(state, None, "suspend", 1))
    assert "only meters" in str(obey(state, None, "grant", 2))
    assert obey(state, None, "balance", 3, left=5) is None
    assert state.limits == Limits()
