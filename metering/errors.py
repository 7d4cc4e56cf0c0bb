"""Every exception that fleetmeter raises on purpose.

    FleetmeterError
    ├── InvalidValue            a value breaks a rule; names the field and the fix
    ├── SettingsError           the configuration cannot work as it stands
    ├── StackError              TimescaleDB or Mosquitto cannot be found, started or stopped
    ├── MigrationError          the schema is newer than, or differs from, this release
    ├── NotFound                a named thing does not exist
    ├── Conflict                a command contradicts what was done before
    ├── ScopeGrew               a change of terms may be tried again (metering/charging/make_change.py)
    ├── ShardBusy               a run may be tried again (metering/charging/charge_usage.py)
    ├── BrokerRefused           the broker does not do what it is told
    ├── TaxServiceFailed        an external tax service gives no answer
    │   └── TaxServiceRefused   it answers, and finds no tax for this document
    ├── ProcessEnded            a process of ours ended that should be running
    ├── NotRun                  a scenario was not brought to its end (device_sim/scenario/run.py)
    └── RunFailed               claimed work could not be charged (metering/charging/charge_usage.py)

Expected outcomes (a duplicate, an exhausted pool, a rejected message) are returned values, not
exceptions.
"""


class FleetmeterError(Exception):
    """Base of every exception that fleetmeter raises on purpose."""


class InvalidValue(FleetmeterError, ValueError):
    """A value breaks a rule.

    `field` is the path of the offending field, `problem` what is wrong, `fix` what would be right.
    """

    def __init__(self, field: str, problem: str, fix: str) -> None:
        super().__init__(f"{field}: {problem}; {fix}")
        self.field = field
        self.problem = problem
        self.fix = fix


class SettingsError(FleetmeterError):
    """The configuration cannot work as it stands; the text names the setting and the fix."""


class StackError(FleetmeterError):
    """TimescaleDB or Mosquitto cannot be found, started or stopped; the text says what to do."""


class MigrationError(FleetmeterError):
    """The schema is newer than this release, or an applied migration was changed."""


class NotFound(FleetmeterError):
    """A named thing does not exist."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} {name!r}")
        self.kind = kind
        self.name = name


class Conflict(InvalidValue):
    """A command contradicts what was done before, such as another one under the same key."""


class BrokerRefused(FleetmeterError):
    """The broker does not do what it is told; the text says why, in its words where it has any."""


class TaxServiceFailed(FleetmeterError):
    """An external tax service gives no answer in time; the text says why."""


class TaxServiceRefused(TaxServiceFailed):
    """An external tax service refuses a document, or its answer cannot be read; others may go on."""


class ProcessEnded(FleetmeterError):
    """A process of ours ended that should be running; the text names its log."""
