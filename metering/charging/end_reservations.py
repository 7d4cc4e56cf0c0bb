"""Ending reservations: what is still held is released, each reservation once."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from metering.event_kinds import EventKind
from metering.rating.reservation import ReservationState, ended_as
from metering.store.accounts import load_buckets, store_buckets
from metering.store.connection import Connection
from metering.store.outbox import NewEvent, record_events
from metering.store.reservations import (
    Ending,
    Reservation,
    held_in,
    holds_of,
    names_of_devices,
    store_endings,
    store_releases,
)
from metering.usage import METERS_BY_NO


async def end_reservations(
    connection: Connection,
    reservations: Sequence[Reservation],
    *,
    run_no: int,
    now: datetime,
    used: int | None = None,
    replaced: bool = False,
    cut: bool = False,
) -> list[Reservation]:
    """End active reservations in a charging run, and return them as they are then.

    `used` is what the device said, `replaced` whether the next grant follows, `cut` whether a cycle
    begins that takes what they are held in. The caller owns the fleets' shards.
    """
    holds = await holds_of(connection, [each.reservation_no for each in reservations])
    released: Mapping[int, int] = {}
    if holds:
        loaded = await load_buckets(
            connection,
            sorted({hold.bucket_no for hold in holds}),
            sorted({hold.subscription_no for hold in holds}),
            {},
        )
        given_back = [
            (hold, loaded.buckets[hold.bucket_no].release(hold.subscription_no)) for hold in holds
        ]
        await store_releases(connection, given_back, run_no=run_no, now=now)
        await store_buckets(connection, loaded)
        sums: dict[int, int] = {}
        for hold, quantity in given_back:
            sums[hold.reservation_no] = sums.get(hold.reservation_no, 0) + quantity
        released = sums
    ended = await store_endings(
        connection,
        [
            Ending(
                reservation_no=each.reservation_no,
                state=ended_as(
                    replaced=replaced,
                    used=used,
                    ended_at=now,
                    expires_at=each.expires_at,
                    cut=cut,
                ),
                used=used,
                released=released.get(each.reservation_no, 0),
            )
            for each in reservations
        ],
        run_no=run_no,
        now=now,
    )
    await _tell(connection, ended, now=now)
    return ended


async def end_where_cut(
    connection: Connection, bucket_nos: Sequence[int], *, run_no: int, now: datetime
) -> None:
    """End what is held in buckets that a beginning cycle cuts."""
    held = await held_in(connection, bucket_nos)
    if held:
        await end_reservations(connection, held, run_no=run_no, now=now, cut=True)


async def _tell(connection: Connection, ended: Sequence[Reservation], *, now: datetime) -> None:
    """Record an event of each reservation whose time was over."""
    expired = [each for each in ended if each.state == ReservationState.EXPIRED]
    if not expired:
        return
    names = await names_of_devices(connection, [each.device_no for each in expired])
    events = []
    for each in expired:
        tenant_no, device_id = names[each.device_no]
        events.append(
            NewEvent(
                tenant_no=tenant_no,
                fleet_no=each.fleet_no,
                device_no=each.device_no,
                kind=EventKind.RESERVATION_EXPIRED,
                payload={
                    "device_id": device_id,
                    "request": each.request_id,
                    "meter": METERS_BY_NO[each.meter_no].meter,
                    "granted": each.granted,
                    "drawn": each.drawn,
                },
                cause=f"reservation:{each.reservation_no}",
            )
        )
    await record_events(connection, events, now=now)
