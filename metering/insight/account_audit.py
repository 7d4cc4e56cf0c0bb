"""The audit of fleets' accounts: the fold of the entries is what payments and documents say."""

from metering.store.connection import Connection
from metering.store.payment_audit import account_faults, expected_balance
from metering.store.payments import account_balances
from metering.store.registry import Fleet


async def account_differences(connection: Connection, fleet: Fleet) -> list[str]:
    """Return what is damaged of a fleet's account, each in words."""
    faults = [f"account: {each}" for each in await account_faults(connection, fleet.fleet_no)]
    held = await account_balances(connection, fleet.fleet_no)
    balance = held.credit + held.wallet - held.owed
    expected = await expected_balance(connection, fleet.fleet_no)
    if balance != expected:
        faults.append(
            f"account: holds {balance}, payments less documents and what went back are {expected}"
        )
    return faults
