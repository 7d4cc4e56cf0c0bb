"""What all simulated devices together have done, and whether it is as it should be."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from device_sim.mischief import Verdicts
from metering.uplink.dialogue import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far a simulation is. `oldest_seconds` is the age of the oldest reading that is pending."""

    at_seconds: float
    devices: int
    connected: int
    messages: int
    acknowledged: int
    pending: int
    oldest_seconds: float
    rejected: int
    commands: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was done in all; `faults` counts what the network was made to do, `verdicts` what was bad."""

    devices: int
    pending: int
    bad_pending: int
    traffic: Traffic
    faults: Counter[str]
    verdicts: Verdicts

    @property
    def is_clean(self) -> bool:
        """Whether all that is true is durable and not rejected, and all that is bad was refused."""
        return self.pending == 0 and not self.traffic.rejected and self.verdicts.all_refused

    @property
    def faults_left(self) -> list[str]:
        """Say what is not as it should be."""
        left: list[str] = []
        if self.pending or self.traffic.rejected:
            left.append("NOT everything is durable")
        if not self.verdicts.all_refused:
            left.append("NOT all that is bad was refused, and nothing else")
        return left

    def __str__(self) -> str:
        traffic, verdicts = self.traffic, self.verdicts
        parts = [
            f"messages {traffic.messages}",
            f"readings {traffic.readings}",
            f"resent {traffic.resent}",
            f"pending {self.pending}",
            f"acknowledged {traffic.acknowledged}",
        ]
        parts += _listed(
            (
                ("rejected", traffic.rejected),
                ("refused messages", traffic.refusals),
                ("obeyed", traffic.obeyed),
                ("not obeyed", traffic.disobeyed),
                ("faults", self.faults),
                ("bad messages made", verdicts.made),
                ("of these refused", verdicts.refused),
                ("of these ACCEPTED", verdicts.accepted),
            )
        )
        if traffic.repeated_commands:
            parts.append(f"commands that came again {traffic.repeated_commands}")
        return "  ".join(parts)


def _listed(named: Iterable[tuple[str, Counter[str]]]) -> list[str]:
    listed = (
        (name, [f"{key} {times}" for key, times in one.items() if times]) for name, one in named
    )
    return [f"{name}: {', '.join(counted)}" for name, counted in listed if counted]
