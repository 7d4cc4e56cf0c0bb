"""Holding a named thing until a transaction ends, where no row stands for it, or several do."""

from metering.store.connection import Connection


async def hold(connection: Connection, kind: str, name: str) -> None:
    """Wait until nobody else holds this, then hold it until the transaction ends."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{kind} {name}"]
    )
