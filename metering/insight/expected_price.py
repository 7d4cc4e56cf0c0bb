"""What usage that was not charged would cost: at its plan's own price, after what was used already."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from metering.ids import TenantNo
from metering.period import BillCycle
from metering.plan_document import stored_terms
from metering.rating.plan import PlanTerms
from metering.store.assurance_views import PricedUse, plans_of_devices, priced_uses
from metering.store.bill_views import billed_plans
from metering.store.connection import Connection
from metering.usage import METERS


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedPrices:
    """The plans that devices are on last in a cycle, and what each used at its price."""

    plan_of: Mapping[str, int]
    terms: Mapping[int, PlanTerms]
    uses: Sequence[PricedUse]

    def of(self, device_id: str, meter: str, quantity: int) -> Fraction | None:
        """Return what so much more would cost, exactly, without allowances and other variants of the price.

        None where it is of no plan, or the meter has no price of its own. Below 0 where `quantity` is.
        """
        plan_no = self.plan_of.get(device_id)
        if plan_no is None:
            return None
        terms = self.terms[plan_no]
        of_meter = terms.meters.get(meter)
        if of_meter is None or not of_meter.has_own_price:
            return None
        position = len(of_meter.variants) - 1
        price = of_meter.variants[position].price
        before = (
            0
            if price.counts_alone
            else sum(
                use.overage
                for use in self.uses
                if (use.plan_no, use.meter_no, use.variant)
                == (plan_no, METERS[meter].meter_no, position)
                and (price.fleet_wide or use.device_id == device_id)
            )
        )
        amount = price.compiled(terms.subunits_per_unit).increment(before, abs(quantity))
        return terms.money(amount if quantity >= 0 else -amount).exact


async def expected_prices(
    connection: Connection,
    tenant_no: TenantNo,
    *,
    fleet_no: int,
    cycle: BillCycle,
    device_ids: Sequence[str],
) -> ExpectedPrices:
    """Load what is needed to price usage of some devices."""
    plans = await plans_of_devices(
        connection, tenant_no, fleet_no=fleet_no, cycle=cycle, device_ids=device_ids
    )
    plan_of = {each.device_id: each.plan_no for each in plans}
    numbers = sorted(set(plan_of.values()))
    return ExpectedPrices(
        plan_of=plan_of,
        terms={
            plan.plan_no: stored_terms(plan.terms, plan.subunits_per_unit)
            for plan in await billed_plans(connection, tenant_no, plan_nos=numbers)
        },
        uses=await priced_uses(
            connection, tenant_no, fleet_no=fleet_no, cycle=cycle, plan_nos=numbers
        ),
    )
