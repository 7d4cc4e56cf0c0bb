"""What is wrong with a plan document, collected: one pass finds every error that it can."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal

from metering.errors import InvalidValue
from metering.plan_document.document import shown
from metering.units import parse_quantity
from metering.usage import QUANTITY_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class MeterUnit:
    """How a meter's quantities are written: its base unit, what kB is, and how many decimals."""

    base_unit: str
    octet_multiple: int = 1000
    decimals: int = 0


DEVICES = MeterUnit(base_unit="device")
"""What a fee's price counts."""


@dataclass(slots=True)
class Findings:
    """The errors found so far; a value that is refused is stood in for, so that reading goes on."""

    problems: list[InvalidValue] = field(default_factory=list)

    def refuse(self, path: str, problem: str, fix: str) -> None:
        """Note an error."""
        self.problems.append(InvalidValue(path, problem, fix))

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note the error that ends the block, if one does."""
        try:
            yield
        except InvalidValue as error:
            self.problems.append(error)

    def quantity(self, given: int | str, unit: MeterUnit, path: str, *, least: int = 0) -> int:
        """Return a quantity in base units; note it if it is none, too large, or less than `least`."""
        with self.noted():
            quantity = parse_quantity(
                given,
                unit.base_unit,
                path,
                octet_multiple=unit.octet_multiple,
                decimals=unit.decimals,
            )
            self.count(quantity, unit, path)
            if quantity >= least:
                return quantity
            self.refuse(path, "is 0", f"use at least one {unit.base_unit}")
        return least

    def count(self, quantity: int, unit: MeterUnit, path: str) -> None:
        """Note a count of base units that is too large."""
        if quantity > QUANTITY_MAX:
            self.refuse(path, f"is more than {QUANTITY_MAX} {unit.base_unit}s", "use less")

    def own_names(self, names: Sequence[str], paths: Sequence[str]) -> None:
        """Note each name that stands twice."""
        known: dict[str, str] = {}
        for name, path in zip(names, paths, strict=True):
            if name in known:
                self.refuse(
                    path, f"the name {shown(name)} is that of {known[name]} too", "use another name"
                )
            known.setdefault(name, path.removesuffix(".name"))

    def at_most(
        self, low: Decimal | None, high: Decimal | None, path: str, name_of_high: str
    ) -> None:
        """Note a lower limit, at `path`, that is above the upper one."""
        if low is not None and high is not None and low > high:
            self.refuse(path, f"{low} is more than the {name_of_high} of {high}", "use less")
