"""Tenants are apart beneath the API as well: what its database role sees and may, by row-level security."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import TupleRow

from metering.store.connection import API_ROLE, api_url_of

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

_OF_NOBODY = {
    "charging_shard",
    "charging_worker",
    "work_item",
    "registry_version",
    "schema_migration",
    "provider_event",
    "stream_head",
    "request_window",
}
"""Tables that hold no tenant's rows: they are the deployment's."""

_BOUND = re.compile(r"tenant_no = api_tenant\(\)|EXISTS \( SELECT")
"""What the condition of a policy holds."""

Session = psycopg.Connection[TupleRow]


@contextmanager
def _as_api(
    owner_url: str, tenant: int | None = None, fleets: str = "", device: str = ""
) -> Iterator[Session]:
    with psycopg.connect(api_url_of(owner_url)) as connection:
        connection.execute(
            "SELECT set_config('fleetmeter.tenant_no', %s, true),"
            " set_config('fleetmeter.fleets', %s, true),"
            " set_config('fleetmeter.device_no', %s, true)",
            ["" if tenant is None else str(tenant), fleets, device],
        )
        yield connection
        connection.rollback()


def _tables(connection: Session) -> list[str]:
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        " ORDER BY relname"
    )
    return [name for (name,) in found.fetchall()]


def _count(connection: Session, table: str) -> int:
    # Of keys, not every column may be seen.
    what = sql.SQL("api_key_no" if table == "api_key" else "*")
    query = sql.SQL("SELECT count({}) FROM {}").format(what, sql.Identifier(table))
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def _tenants(owner: Session) -> dict[str, int]:
    return dict(owner.execute("SELECT tenant_id, tenant_no FROM tenant").fetchall())


def test_every_table_has_a_policy_or_is_nobodys(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        without = owner.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND"
            " relnamespace = 'public'::regnamespace AND NOT (relrowsecurity AND EXISTS ("
            "   SELECT FROM pg_policy WHERE polrelid = pg_class.oid"
            "   AND %s::regrole::oid = ANY (polroles)))",
            [API_ROLE],
        )
        assert {name for (name,) in without.fetchall()} == _OF_NOBODY
        # Each by its tenant, or by a row of another table that is, under that one's own policy.
        bound = owner.execute(
            "SELECT polrelid::regclass::text, pg_get_expr(expression, polrelid) FROM pg_policy,"
            " LATERAL (VALUES (polqual), (polwithcheck)) AS of (expression)"
            " WHERE expression IS NOT NULL AND %s::regrole::oid = ANY (polroles)",
            [API_ROLE],
        ).fetchall()
        assert len(bound) > 50
        loose = {name for name, expression in bound if not _BOUND.search(expression)}
        assert loose == set()
        # A view runs with its owner's rights, past every policy, unless it says otherwise.
        views = owner.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('v', 'm')"
            " AND relnamespace = 'public'::regnamespace AND has_table_privilege(%s, oid, 'SELECT')"
            " AND NOT coalesce('security_invoker=true' = ANY (reloptions), false)",
            [API_ROLE],
        )
        assert views.fetchall() == []


def test_the_role_cannot_get_past_the_policies(database_url: str) -> None:
    with psycopg.connect(database_url) as owner:
        role = owner.execute(
            "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication FROM pg_roles"
            " WHERE rolname = %s",
            [API_ROLE],
        ).fetchone()
        assert role == (False,) * 5
        owned = owner.execute(
            "SELECT count(*) FROM pg_class WHERE relowner = %s::regrole", [API_ROLE]
        ).fetchone()
        member = owner.execute(
            "SELECT count(*) FROM pg_auth_members WHERE member = %s::regrole", [API_ROLE]
        ).fetchone()
        assert (owned, member) == ((0,), (0,))
        owner_name = owner.info.user
    for attempt in (
        f"SET ROLE {owner_name}",
        f"SET SESSION AUTHORIZATION {owner_name}",
        "ALTER TABLE fleet DISABLE ROW LEVEL SECURITY",
        "DROP POLICY a_tenant_reaches_its_own ON fleet",
        "SELECT key_hash FROM api_key",
        "DELETE FROM audit_entry",
        "INSERT INTO audit_change (entry_no, relation) VALUES (1, 'x')",
        "SET LOCAL row_security = off; SELECT * FROM fleet",
    ):
        with _as_api(database_url, 1) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(attempt.encode())
        assert isinstance(refused.value, psycopg.errors.InsufficientPrivilege), attempt


def test_without_a_tenant_nothing_is_seen(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as owner:
        filled = {table for table in _tables(owner) if _count(owner, table)} - _OF_NOBODY
    assert {"reading", "charge", "bill", "bucket", "api_key", "event", "alert"} <= filled
    with _as_api(api.database_url) as connection:
        assert {table: _count(connection, table) for table in filled} == dict.fromkeys(filled, 0)


def test_tenants_see_each_row_once_between_them(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as owner:
        tables = [table for table in _tables(owner) if table not in _OF_NOBODY]
        total = {table: _count(owner, table) for table in tables}
        tenants = _tenants(owner)
    seen = dict.fromkeys(tables, 0)
    own = {}
    for name, tenant in tenants.items():
        with _as_api(api.database_url, tenant) as connection:
            own[name] = {table: _count(connection, table) for table in tables}
            seen = {table: seen[table] + own[name][table] for table in tables}
            devices = connection.execute("SELECT device_id FROM device").fetchall()
            assert devices
            assert all(device_id.startswith(f"{name}-") for (device_id,) in devices)
    assert seen == total
    assert own["acme"] == own["rival"]  # they were built alike


def test_a_caller_of_some_fleets_sees_no_others(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as owner:
        tenant = _tenants(owner)["acme"]
        fleets: dict[str, int] = dict(
            owner.execute(
                "SELECT fleet_id, fleet_no FROM fleet WHERE tenant_no = %s", [tenant]
            ).fetchall()
        )
        tables = [table for table in _tables(owner) if table not in _OF_NOBODY]
    of_tenant = {"tenant", "api_key", "plan", "tax_rule", "number_series", "number_counter"}
    of_tenant |= {"tenant_billing", "billing_said", "webhook_endpoint", "billing_operation"}
    with _as_api(api.database_url, tenant, "{%d}" % fleets["acme-empty"]) as connection:  # noqa: UP031
        seen = {table for table in tables if _count(connection, table)}
        # A batch may hold messages of several fleets: the route shows those of its caller's alone.
        assert seen - of_tenant == {"fleet", "message_batch"}
        assert connection.execute("SELECT fleet_id FROM fleet").fetchall() == [("acme-empty",)]
    with _as_api(api.database_url, tenant, "{%d}" % fleets["acme-north"]) as connection:  # noqa: UP031
        assert _count(connection, "charge")
        assert _count(connection, "reading")


def test_a_device_sees_itself_and_none_of_its_siblings(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as owner:
        tenant = _tenants(owner)["acme"]
        numbers = owner.execute(
            "SELECT device_no, fleet_no FROM device WHERE device_id IN ('acme-1', 'acme-2')"
            " ORDER BY device_id"
        ).fetchall()
        by_device = [
            name
            for (name,) in owner.execute(
                "SELECT polrelid::regclass::text FROM pg_policy WHERE %s::regrole::oid = ANY (polroles)"
                " AND pg_get_expr(polqual, polrelid) ~ 'FROM device .* EXISTS|device.device_no = '"
                " AND EXISTS (SELECT FROM pg_attribute WHERE attrelid = polrelid"
                "   AND attname = 'device_no' AND NOT attisdropped)",
                [API_ROLE],
            ).fetchall()
        ]
    (one, fleet), (sibling, same) = numbers
    assert fleet == same
    assert {"reading", "counter", "device_move"} <= set(by_device)
    with _as_api(api.database_url, tenant, "{%d}" % fleet, str(one)) as connection:  # noqa: UP031
        assert connection.execute("SELECT device_no FROM device").fetchall() == [(one,)]
        for table in by_device:
            found = connection.execute(
                sql.SQL("SELECT DISTINCT device_no FROM {}").format(sql.Identifier(table))
            )
            assert {number for (number,) in found.fetchall()} <= {one}, table
        assert _count(connection, "reading")
        changed = connection.execute("UPDATE device SET created_at = created_at")
        assert changed.rowcount == 1
        found = connection.execute("SELECT FROM device WHERE device_no = %s", [sibling])
        assert found.fetchall() == []


def test_nothing_is_written_for_another_tenant(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as owner:
        tenants = _tenants(owner)
        (fleet_no,) = owner.execute(
            "SELECT fleet_no FROM fleet WHERE fleet_id = 'rival-north'"
        ).fetchone() or (0,)
        (device_no,) = owner.execute(
            "SELECT device_no FROM device WHERE device_id = 'rival-1'"
        ).fetchone() or (0,)
        owner.rollback()
        charges = _count(owner, "charge")
    with _as_api(api.database_url, tenants["acme"]) as connection:
        for table in ("charge", "reading", "fleet_billing", "bill"):
            changed = connection.execute(
                sql.SQL("DELETE FROM {} WHERE {} = %s").format(
                    sql.Identifier(table),
                    sql.Identifier("device_no" if table == "reading" else "fleet_no"),
                ),
                [device_no if table == "reading" else fleet_no],
            )
            assert changed.rowcount == 0
    endpoint = (
        "INSERT INTO webhook_endpoint (tenant_no, endpoint_id, cause, url, secret, created_at)"
        " VALUES (%s, gen_random_uuid(), 'x', 'https://x', 'x', now())"
    )
    boot = "INSERT INTO boot (device_no, boot_id, up_to, first_seen_at) VALUES (%s, 'x', 0, now())"
    reading = (
        "INSERT INTO reading (measured_at, received_at, batch_no, boot_no, seq, device_no, shard_no,"
        " meter_no, kind, uplink, downlink, quantity)"
        " VALUES (now(), now(), 1, 1, 1, %s, 0, 1, 1, 0, 0, 1)"
    )
    for statement, given in ((endpoint, tenants["rival"]), (boot, device_no), (reading, device_no)):
        with (
            _as_api(api.database_url, tenants["acme"]) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
        ):
            connection.execute(statement.encode(), [given])
    with psycopg.connect(api.database_url) as owner:
        assert _count(owner, "charge") == charges


def test_no_chunk_can_be_named(api: "ApiUnderTest") -> None:
    """A chunk has the rights of its hypertable, but none of its policies; one made later, too."""
    with psycopg.connect(api.database_url) as owner:
        for name in ("reading", "charge"):
            columns = sql.SQL(", ").join(
                sql.Identifier(column)
                for (column,) in owner.execute(
                    "SELECT column_name FROM information_schema.columns"
                    " WHERE table_name = %s AND column_name <> 'measured_at'",
                    [name],
                ).fetchall()
            )
            owner.execute(
                sql.SQL(
                    "INSERT INTO {0} (measured_at, {1})"
                    " SELECT measured_at + interval '1 year', {1} FROM {0} LIMIT 1"
                ).format(sql.Identifier(name), columns)
            )
        owner.commit()
        chunks = owner.execute(
            "SELECT chunk_schema, chunk_name FROM timescaledb_information.chunks"
        ).fetchall()
    assert len(chunks) >= 4
    for schema, name in chunks:
        query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(schema, name))
        with (
            _as_api(api.database_url, 1) as connection,
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema chunk"),
        ):
            connection.execute(query)


def test_the_role_can_neither_write_the_log_nor_read_statistics(api: "ApiUnderTest") -> None:
    with _as_api(api.database_url, 1) as connection:
        connection.execute("CREATE TEMP TABLE forged (a integer)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="note_change"):
            connection.execute(
                "CREATE TRIGGER forging AFTER INSERT ON forged FOR EACH ROW EXECUTE FUNCTION note_change()"
            )
    with (
        _as_api(api.database_url, 1) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="pg_stats"),
    ):
        connection.execute("SELECT most_common_vals FROM pg_stats")


def test_a_device_is_in_a_fleet_of_its_own_tenant(api: "ApiUnderTest") -> None:
    with psycopg.connect(api.database_url) as owner:
        found = owner.execute(
            "SELECT one.tenant_no, other.fleet_no FROM device AS one"
            " JOIN fleet AS other ON other.tenant_no <> one.tenant_no LIMIT 1"
        )
        ((own, foreign),) = found.fetchall()
    with (
        _as_api(api.database_url, own) as connection,
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
    ):
        connection.execute("UPDATE device SET fleet_no = %s", [foreign])
