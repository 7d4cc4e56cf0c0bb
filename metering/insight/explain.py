"""A charge explained: what was recorded of it and of what it was before, and the words for that."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from metering.errors import NotFound
from metering.ids import TenantNo
from metering.money import decimal_text
from metering.period import BillCycle, zone_since
from metering.plan_document import stored_terms
from metering.rating.explanation import ChargeTold, DrawTold, FormerTold, explain
from metering.store.billed_lines import (
    LineOfCharge,
    Place,
    place_of_adjustment,
    place_of_charge,
    place_of_note,
)
from metering.store.charge_views import (
    Billing,
    BucketThen,
    ChargeCorrection,
    ChargeDetail,
    ChargeKey,
    billing_of_charge,
    buckets_before,
    charges_of_reading,
    corrections_of_reading,
    cycle_of_charge,
    former_charges,
)
from metering.store.connection import Connection
from metering.usage import METERS_BY_NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """A charge as it is stored, what it says, in words, and whose bill holds it.

    `former` are its former versions and `corrections` what made the next of each. `place` is the line of the
    bill or note that holds it, once that is final.
    """

    detail: ChargeDetail
    cycle: BillCycle
    told: ChargeTold
    words: Sequence[str]
    buckets: Sequence[BucketThen]
    corrections: Sequence[ChargeCorrection]
    billing: Billing
    place: Place | None


async def explained_reading(
    connection: Connection, tenant_no: TenantNo, *, boot_no: int, seq: int
) -> list[Explained]:
    """Return what a reading is charged now, explained part by part; nothing where it is not charged."""
    charges = await charges_of_reading(connection, tenant_no, boot_no=boot_no, seq=seq)
    former = await former_charges(connection, tenant_no, boot_no=boot_no, seq=seq)
    corrections = await corrections_of_reading(connection, tenant_no, boot_no=boot_no, seq=seq)
    return [
        await _explained(connection, tenant_no, charge, former, corrections) for charge in charges
    ]


async def explained_charge(
    connection: Connection, tenant_no: TenantNo, key: ChargeKey
) -> Explained:
    """Return one charge of a tenant that counts now, explained; raise `NotFound`."""
    boot_no, seq, part = key
    for each in await explained_reading(connection, tenant_no, boot_no=boot_no, seq=seq):
        if each.detail.part == part:
            return each
    raise NotFound("charge", "-".join(map(str, key)))


async def _explained(
    connection: Connection,
    tenant_no: TenantNo,
    charge: ChargeDetail,
    former: Sequence[ChargeDetail],
    corrections: Sequence[ChargeCorrection],
) -> Explained:
    buckets = await buckets_before(connection, tenant_no, charge) if charge.draw_buckets else {}
    own = [each for each in corrections if each.part == charge.part]
    told = _told(charge, buckets, [each for each in former if each.part == charge.part], own)
    billing = await billing_of_charge(connection, tenant_no, charge)
    return Explained(
        detail=charge,
        cycle=await cycle_of_charge(connection, tenant_no, charge),
        told=told,
        words=explain(told),
        buckets=[buckets[number] for number in charge.draw_buckets or ()],
        corrections=own,
        billing=billing,
        place=await _place(connection, charge, told, billing),
    )


async def _place(
    connection: Connection, charge: ChargeDetail, told: ChargeTold, billing: Billing
) -> Place | None:
    """Return the line of a final bill or note that holds a charge; None: none is final."""
    if billing.held_by == "note":
        return None if billing.note_no is None else await place_of_note(connection, billing.note_no)
    fleet_no, cycle_start = charge.fleet_no, charge.cycle_start
    if billing.held_by == "line":
        of = LineOfCharge(
            plan_id=charge.plan_id,
            plan_version=charge.plan_version,
            meter=told.meter,
            variant=told.of_meter.label(charge.variant),
            device_id=charge.device_id,
        )
        return await place_of_charge(connection, fleet_no=fleet_no, cycle_start=cycle_start, of=of)
    if billing.billed_in is None:
        return None
    return await place_of_adjustment(
        connection, fleet_no=fleet_no, cycle_start=cycle_start, billed_in=billing.billed_in
    )


def _told(
    charge: ChargeDetail,
    buckets: dict[int, BucketThen],
    former: Sequence[ChargeDetail],
    corrections: Sequence[ChargeCorrection],
) -> ChargeTold:
    drawn = zip(charge.draw_buckets or (), charge.draw_quantities or (), strict=True)
    attributes = {"rat": charge.rat, "apn": charge.apn}
    return ChargeTold(
        device=charge.device_id,
        boot=charge.boot_id,
        seq=charge.seq,
        part=charge.part,
        usage_from=charge.usage_from,
        usage_to=charge.usage_to,
        measured_at=charge.measured_at,
        received_at=charge.received_at,
        charged_at=charge.charged_at,
        terms=stored_terms(charge.terms, charge.subunits_per_unit),
        plan=charge.plan_id,
        plan_version=charge.plan_version,
        time_zone=zone_since(charge.time_zone, charge.earlier_zones),
        cycle_start=charge.cycle_start,
        meter=METERS_BY_NO[charge.meter_no].meter,
        variant=charge.variant,
        zone=charge.zone,
        band=charge.band,
        quantity=charge.quantity,
        uplink=charge.uplink,
        billed=charge.billed,
        draws=[
            DrawTold(
                bucket=buckets[number].name,
                kind="top-up" if buckets[number].source == "top_up" else buckets[number].kind,
                paid=paid,
                left_before=buckets[number].left_before,
            )
            for number, paid in drawn
        ],
        overage=charge.overage,
        priced_before=charge.priced_before,
        connection_fee=charge.connection_fee,
        amount=charge.amount,
        told_zone=charge.told_zone,
        attributes={name: value for name, value in attributes.items() if value is not None},
        packets=charge.packets or 0,
        last_part=charge.last_part,
        former=_former(former, corrections),
    )


def _former(
    former: Sequence[ChargeDetail], corrections: Sequence[ChargeCorrection]
) -> list[FormerTold]:
    """Return what the charge was before each change; nothing of what was parked before."""
    by_change = {each.superseded_by: each for each in former}
    found: list[FormerTold] = []
    for each in corrections:
        was = by_change.get(each.correction_no)
        if was is not None:
            found.append(
                FormerTold(
                    plan=f"{was.plan_id} version {was.plan_version}",
                    was=decimal_text(Fraction(was.amount, was.subunits_per_unit)),
                    cause=each.cause,
                    correction_no=each.correction_no,
                    effective_from=each.effective_from,
                    recorded_at=each.recorded_at,
                    difference=decimal_text(Fraction(each.amount, each.subunits_per_unit)),
                )
            )
    return found
