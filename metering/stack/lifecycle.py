"""Brings the two servers up and down, and says how they stand."""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
from pydantic import SecretStr

from metering.credentials.password import new_password
from metering.errors import StackError
from metering.settings import Settings
from metering.stack import compose, finder, mosquitto, postgres, probe, process, state
from metering.stack.broker_files import write_broker_files
from metering.stack.folders import create_stack_folder, server_folder, stack_folder
from metering.stack.locking import locked
from metering.stack.model import (
    SERVERS,
    Endpoints,
    Ports,
    Program,
    Progress,
    ServerName,
    ServerStatus,
    quiet,
)

Records = dict[ServerName, state.Record]

_START_ATTEMPTS = 3  # each on a port that was free a moment before
_MARKERS: dict[ServerName, Callable[[Path], Path]] = {
    "database": postgres.marker,
    "broker": mosquitto.marker,
}


def up(settings: Settings, *, progress: Progress = quiet) -> Endpoints:
    """Start what does not run, wait until it answers, and return where.

    A server whose address is in the settings is only asked whether it answers. Data, ports and the
    password of an earlier run are kept. Raises StackError, which says what to do.
    """
    needed = tuple(name for name in SERVERS if _given(settings, name) is None)
    for name in SERVERS:
        if (address := _given(settings, name)) is not None:
            _expect_answer(name, address)
    if needed:
        stack = create_stack_folder(settings)
        with locked(stack / "lock", waiting="another run holds the stack", progress=progress):
            run = _Run(
                settings=settings,
                stack=stack,
                records=state.load(stack),
                needed=needed,
                progress=progress,
            )
            for name in needed:
                _bring_up(run, name)
    return endpoints(settings)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One `up`, which holds the stack's lock. `records` is what the state file says, kept so."""

    settings: Settings
    stack: Path
    records: Records
    needed: tuple[ServerName, ...]
    progress: Progress

    def keep(self, name: ServerName, record: state.Record) -> None:
        """Write a record down before anything else can go wrong."""
        self.records[name] = record
        state.save(self.stack, self.records)

    def note(self, name: ServerName, server: psutil.Process) -> None:
        """Write down a server's process, so that a later run recognises it."""
        try:
            created = server.create_time()
        except psutil.NoSuchProcess:
            return
        self.keep(name, replace(self.records[name], pid=server.pid, created=created))


def _bring_up(run: _Run, name: ServerName) -> None:
    record = run.records.get(name)
    if record is not None and record.source == "compose":
        if _obstacle(name, record) is None:
            return
        program = Program(source="compose", executable=Path(record.program))
    else:
        folder = server_folder(run.settings, name)
        if (server := _process(name, record, folder)) is not None:
            if record is not None and _obstacle(name, record) is None:
                run.note(name, server)
                return
            run.progress(f"the {name} runs but does not answer as recorded: restarting it")
            _stop(name, server)
        program = _program(run, name, folder)
    run.progress(f"starting the {name} ({program.source})")
    for attempt in range(_START_ATTEMPTS):
        try:
            _start(run, name, program)
        except process.PortTakenError:
            if attempt == _START_ATTEMPTS - 1:
                raise
        else:
            return


def _start(run: _Run, name: ServerName, program: Program) -> None:
    if program.source == "compose":
        _start_container(run, name, program)
    elif name == "broker":
        _start_broker(run, program)
    else:
        _start_database(run, program)


def _program(run: _Run, name: ServerName, folder: Path) -> Program:
    """Return the program that ran the server before, if it is still there, else find one."""
    record = run.records.get(name)
    if record is not None and Path(record.program).exists():
        return Program(source=record.source, executable=Path(record.program))
    major = postgres.major_of_cluster(folder) if name == "database" else None
    ways = finder.ways(run.settings, name, major=major, missing=run.needed, progress=run.progress)
    return finder.find(name, ways)


def _record(run: _Run, name: ServerName, program: Program, folder: Path) -> state.Record:
    """Return the record of a server about to start: on its port of before, if that is free."""
    before = run.records.get(name)
    port = probe.free_port(before.port if before else None)
    if before is not None and before.port != port:
        run.progress(f"port {before.port} is taken: the {name} moves to {port}")
    return state.Record(
        source=program.source,
        port=port,
        program=str(program.executable),
        folder=str(folder),
        password=before.password if before else "",
    )


def _start_broker(run: _Run, program: Program) -> None:
    folder = server_folder(run.settings, "broker")
    record = _broker_record(run, program, folder)
    mosquitto.start(
        program.executable,
        folder,
        ports=ports_of(record),
        host=run.settings.device_listen_host,
        password=record.password,
        started=partial(run.note, "broker"),
    )


def _broker_record(run: _Run, program: Program, folder: Path) -> state.Record:
    """Return the record of a broker about to start, kept, with all that it reads in its folder."""
    record = _record(run, "broker", program, folder)
    before = run.records.get("broker")
    wanted = before.device_ports if before else None
    taken = {record.port}
    ports: list[int] = []
    for position in range(3):
        ports.append(probe.free_port(wanted[position] if wanted else None, besides=taken))
        taken.add(ports[-1])
    record = replace(
        record,
        password=record.password or new_password(),
        device_ports=(ports[0], ports[1], ports[2]),
    )
    run.keep("broker", record)
    write_broker_files(run.settings, folder, record.password)
    return record


def ports_of(record: state.Record) -> Ports:
    """Return the ports of a recorded broker."""
    passwords, certificates, claims = record.device_ports or (0, 0, 0)
    return Ports(
        processes=record.port, passwords=passwords, certificates=certificates, claims=claims
    )


def _start_database(run: _Run, program: Program) -> None:
    folder = server_folder(run.settings, "database")
    record = _record(run, "database", program, folder)
    if not record.password:
        record = replace(record, password=postgres.new_password())
        if postgres.marker(folder).is_dir():
            run.progress("the database's password was lost with the state file: setting a new one")
            postgres.reset_password(program.executable, folder, record.password)
    run.keep("database", record)
    postgres.create(program.executable, folder, record.password, run.progress)
    postgres.start(
        program.executable,
        folder,
        port=record.port,
        password=record.password,
        started=partial(run.note, "database"),
        progress=run.progress,
    )
    postgres.create_database(postgres.url(record.port, record.password, "postgres"))


def _start_container(run: _Run, name: ServerName, program: Program) -> None:
    if name == "broker":
        folder = server_folder(run.settings, "broker")
        record = _broker_record(run, program, folder)
        ports = ports_of(record)
        mosquitto.write_container_config(folder)
        compose.up_broker(run.stack, folder, ports, host=run.settings.device_listen_host)
        return
    record = _record(run, name, program, run.stack)
    if not record.password:
        record = replace(record, password=postgres.new_password())
    run.keep(name, record)
    compose.up_database(run.stack, port=record.port, password=record.password)


def down(settings: Settings, *, progress: Progress = quiet) -> None:
    """Stop what the stack started; data stays. A server named in the settings is left alone."""
    stack = stack_folder(settings)
    if not stack.is_dir():
        return
    stack = create_stack_folder(settings)
    with locked(stack / "lock", waiting="another run holds the stack", progress=progress):
        for name, record in state.load(stack).items():
            if record.source == "compose":
                progress(f"stopping the {name}")
                compose.down(stack, name)
            elif (server := _process(name, record, Path(record.folder))) is not None:
                progress(f"stopping the {name}")
                _stop(name, server)


def erase(settings: Settings, *, progress: Progress = quiet) -> None:
    """Stop what the stack started and delete its data, wherever it lies."""
    down(settings, progress=progress)
    stack = stack_folder(settings)
    if not stack.is_dir():
        return
    with locked(stack / "lock", waiting="another run holds the stack", progress=progress):
        for name, record in state.load(stack).items():
            progress(f"deleting the data of the {name}")
            if record.source == "compose":
                compose.erase(stack)
            elif (folder := Path(record.folder)) != stack:
                shutil.rmtree(folder)
                with suppress(OSError):  # not empty: the stack's own, or still the other server's
                    folder.parent.rmdir()
        shutil.rmtree(stack)


def _stop(name: ServerName, server: psutil.Process) -> None:
    if name == "database":
        postgres.stop(server)
    else:
        mosquitto.stop(server)


def reload_broker(settings: Settings) -> bool:
    """Have the stack's broker read its certificates and the list of revoked ones again.

    False when the stack runs none.
    """
    record = broker_record(settings)
    if record is None:
        return False
    if record.source == "compose":
        compose.reload_broker(stack_folder(settings))
        return True
    server = _process("broker", record, Path(record.folder))
    if server is not None:
        mosquitto.reload(server)
    return server is not None


def while_broker_is_stopped(
    settings: Settings, work: Callable[[Path], None], *, progress: Progress = quiet
) -> bool:
    """Stop the stack's broker, do something in its folder, and start it again whatever came of that.

    False, and nothing is done, when the stack runs none.
    """
    if broker_record(settings) is None:
        return False
    stack = create_stack_folder(settings)
    with locked(stack / "lock", waiting="another run holds the stack", progress=progress):
        run = _Run(
            settings=settings,
            stack=stack,
            records=state.load(stack),
            needed=("broker",),
            progress=progress,
        )
        record = run.records["broker"]
        folder = Path(record.folder)
        if record.source == "compose":
            compose.down(stack, "broker")
        elif (server := _process("broker", record, folder)) is not None:
            _stop("broker", server)
        else:
            return False
        try:
            work(folder)
        finally:
            _bring_up(run, "broker")
    return True


def broker_record(settings: Settings) -> state.Record | None:
    """Return what is recorded of the stack's broker; None if it has none, or the settings name another."""
    record = _load(settings).get("broker")
    if record is None or _given(settings, "broker") not in {None, _url("broker", record)}:
        return None
    return record


def status(settings: Settings) -> tuple[ServerStatus, ServerStatus]:
    """Return how database and broker stand, without starting or stopping anything."""
    records = _load(settings)
    return _status(settings, "database", records), _status(settings, "broker", records)


def _status(settings: Settings, name: ServerName, records: Records) -> ServerStatus:
    given = _given(settings, name)
    record = records.get(name)
    if given is not None:
        source, address, running = "settings", given, _answers(name, given) is None
    elif record is None:
        source, address, running = "none", "", False
    else:
        source, address = record.source, _url(name, record)
        running = _obstacle(name, record) is None
    server = None
    if given is None and record is not None and record.source != "compose":
        server = _process(name, record, Path(record.folder))
        running = running and server is not None
    return ServerStatus(
        name=name,
        source=source,
        running=running,
        address=_without_password(address),
        pid=server.pid if server else None,
        folder=Path(record.folder) if given is None and record else None,
    )


def endpoints(settings: Settings) -> Endpoints:
    """Return where the servers are, without starting them or asking whether they answer.

    Raises StackError when the settings name no address and the stack was never up.
    """
    records = _load(settings)
    found: dict[ServerName, str] = {}
    for name in SERVERS:
        address = _given(settings, name)
        if address is None and name in records:
            address = _url(name, records[name])
        if address is None:
            raise StackError(
                f"no {name} is known in {stack_folder(settings)}: run `fleetmeter stack up`, "
                f"or set FLEETMETER_{name.upper()}_URL"
            )
        found[name] = address
    return Endpoints(database_url=found["database"], broker_url=found["broker"])


def resolve(settings: Settings) -> Settings:
    """Return the settings with both addresses filled in. Raises as `endpoints` does."""
    found = endpoints(settings)
    return settings.model_copy(
        update={
            "database_url": SecretStr(found.database_url),
            "broker_url": SecretStr(found.broker_url),
        }
    )


def _obstacle(name: ServerName, record: state.Record) -> str | None:
    """Return None when the recorded server answers, else what stands against it."""
    if name == "broker" and record.device_ports is None:
        return "it was started by a release that lets anyone in"
    return _answers(name, _url(name, record))


def _answers(name: ServerName, address: str) -> str | None:
    if name == "database":
        return probe.database_answers(address)
    return probe.broker_answers(address)


def _expect_answer(name: ServerName, address: str) -> None:
    if (obstacle := _answers(name, address)) is not None:
        raise StackError(
            f"the {name} at {_without_password(address)} does not answer ({obstacle}): start it, "
            f"or correct FLEETMETER_{name.upper()}_URL"
        )


def _given(settings: Settings, name: ServerName) -> str | None:
    secret = settings.database_url if name == "database" else settings.broker_url
    return (secret.get_secret_value() or None) if secret is not None else None


def _url(name: ServerName, record: state.Record) -> str:
    if name == "database":
        return postgres.url(record.port, record.password)
    return mosquitto.url(record.port, record.password)


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    if parts.password is None:
        return address
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{host}"))


def _process(name: ServerName, record: state.Record | None, folder: Path) -> psutil.Process | None:
    pid, created = (record.pid, record.created) if record else (None, None)
    return process.recognise(pid, created, _MARKERS[name](folder))


def _load(settings: Settings) -> Records:
    stack = stack_folder(settings)
    try:
        return state.load(stack)
    except PermissionError as error:
        raise StackError(
            f"cannot read {stack}: it belongs to another user; set FLEETMETER_DATA_DIR to a "
            "folder of yours"
        ) from error
