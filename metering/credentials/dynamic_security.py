"""Mosquitto's dynamic security plugin: its file at the start, and its commands while it runs. Pure.

A device has a role of its own name, for the plugin knows no patterns such as `%u`. The plugin writes its
whole file after each command and serves nobody meanwhile, so a device's entry is as short as can be: what
holds for all of them is in one role that they share, which also says what of its branch no device writes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from metering.credentials.password import PasswordHash, hash_of
from metering.credentials.rights import (
    PROCESS_TOPICS,
    PROCESS_USERNAME,
    Right,
    Topics,
    device_topics,
)
from metering.wire import sparkplug
from metering.wire.topics import ack_topic, claim_answer_topic, claim_topic, command_topic

CONTROL_TOPIC = "$CONTROL/dynamic-security/v1"
RESPONSE_TOPIC = "$CONTROL/dynamic-security/v1/response"

Command = dict[str, Any]

_PROCESS_ROLE = "process"
_DEVICE_ROLE = "device"
"""What all devices share. No device's own role is called so: its name has a `/`."""
_WRITE, _RECEIVE, _LITERAL, _PATTERN = (
    "publishClientSend", "publishClientReceive", "subscribeLiteral", "subscribePattern",
)  # fmt: skip
_BY_DEFAULT = {_WRITE: False, _RECEIVE: True, "subscribe": False, "unsubscribe": True}
"""Nobody may do anything but be sent what it may subscribe to: that needs no rule of its own."""


class Rule(NamedTuple):
    """Whether something may be done on a topic; the kinds are the plugin's."""

    kind: str
    topic: str
    is_allowed: bool = True

    def as_dynamic_security(self) -> dict[str, object]:
        """Return it as the plugin has it."""
        return {
            "acltype": self.kind,
            "topic": self.topic,
            "priority": 0,
            "allow": self.is_allowed,
        }


def rules_of_all_devices(root: str) -> list[Rule]:
    """Return what holds for every device: what only the platform writes, and what all of them read.

    These rules are looked at before a device's own, which let it write the rest of its branch.
    """
    return [
        *(
            Rule(_WRITE, topic_of(root, "+", "+"), is_allowed=False)
            for topic_of in (ack_topic, command_topic, claim_topic, claim_answer_topic)
        ),
        Rule(_LITERAL, sparkplug.state_topic()),
    ]


def rules_of_device(
    root: str, tenant: str, device: str, right: Right, *, by_certificate: bool
) -> list[Rule]:
    """Return what is a device's own: its branch, beside `rules_of_all_devices`.

    Who is kept away keeps its rules, but for a suspended device with a `certificate`: of such a one the
    broker asks nobody whether it may connect, so where it does not have the list of certificates on hold,
    it comes in.
    """
    if right is Right.NONE:
        return []
    if right is Right.SUSPENDED and by_certificate:
        return [Rule(_RECEIVE, "#", is_allowed=False)]
    topics = device_topics(root, tenant, device)
    branch = f"{root}/{tenant}/{device}/"
    return [
        Rule(_WRITE, f"{branch}#"),
        *(Rule(_WRITE, topic) for topic in topics.writes if not topic.startswith(branch)),
        *(Rule(_LITERAL, topic) for topic in topics.reads if topic != sparkplug.state_topic()),
    ]


def rules_of_claim(topics: Topics) -> list[Rule]:
    """Return what somebody may do that claims a credential; to read is to subscribe by that very name."""
    return [
        *(Rule(_WRITE, topic) for topic in topics.writes),
        *(Rule(_LITERAL, topic) for topic in topics.reads),
    ]


def first_document(process: PasswordHash, root: str) -> dict[str, Any]:
    """Return the plugin's file for a new broker: nobody but our own processes may do anything."""
    return {
        "defaultACLAccess": _BY_DEFAULT,
        "clients": [
            {
                "username": PROCESS_USERNAME,
                "roles": [{"rolename": _PROCESS_ROLE}],
                **process.as_dynamic_security(),
            }
        ],
        "groups": [],
        "roles": [
            _role(
                _PROCESS_ROLE,
                [
                    Rule(kind, topic)
                    for kind in (_WRITE, _RECEIVE, _PATTERN)
                    for topic in PROCESS_TOPICS
                ],
            ),
            _role(_DEVICE_ROLE, rules_of_all_devices(root)),
        ],
    }


def brought_up_to_date(
    document: Mapping[str, Any], process: PasswordHash, root: str
) -> dict[str, Any]:
    """Return the plugin's file as this release has it, with another password for our own processes.

    Devices keep their passwords, and may do what they might. Who by an earlier release might no more than
    listen, for it was suspended, is kept away.
    """
    first = first_document(process, root)
    roles = {each["rolename"]: each for each in document.get("roles", ())}
    clients: dict[str, dict[str, Any]] = {}
    for known in document.get("clients", ()):
        name = known["username"]
        if name == PROCESS_USERNAME:
            continue
        clients[name] = known
        tenant, _, device = name.partition("/")
        if known.get("clientid") != name or name not in roles:
            continue  # it claims a credential, or may do nothing
        right = Right.PUBLISH if _may_publish(roles[name]) else Right.SUSPENDED
        by_certificate = "password" not in known
        rules = rules_of_device(root, tenant, device, right, by_certificate=by_certificate)
        roles[name] = _role(name, rules)
        kept_away = {"disabled": True} if right.is_kept_away else {}
        clients[name] = {**known, "roles": _roles_of_device(name), **kept_away}
    own = {each["rolename"]: each for each in first["roles"]}
    return {
        **document,
        "defaultACLAccess": _BY_DEFAULT,
        "clients": first["clients"] + list(clients.values()),
        "roles": list((roles | own).values()),
    }


def _may_publish(role: Mapping[str, Any]) -> bool:
    """Whether a device's role lets it publish usage: only then it writes below a level."""
    return any(
        each["acltype"] == _WRITE and each["allow"] and each["topic"].endswith("/#")
        for each in role.get("acls", ())
    )


def questions() -> list[Command]:
    """Return the commands that ask what `improvements` looks at; they change nothing."""
    return [
        {"command": "getDefaultACLAccess"},
        {"command": "getRole", "rolename": _DEVICE_ROLE},
    ]


def improvements(answers: Sequence[Mapping[str, Any]], root: str) -> list[Command]:
    """Return what a broker has to be told that an earlier release made, by its answers to `questions`."""
    told = {answer.get("command"): answer.get("data", {}) for answer in answers}
    rules = rules_of_all_devices(root)
    commands: list[Command] = []
    if rules_in(told.get("getRole", {}).get("role", {})) != set(rules):
        role = _role(_DEVICE_ROLE, rules)
        commands += [{"command": "createRole", **role}, {"command": "modifyRole", **role}]
    by_default = {
        each["acltype"]: each["allow"]
        for each in told.get("getDefaultACLAccess", {}).get("acls", ())
    }
    if by_default != _BY_DEFAULT:
        acls = [{"acltype": kind, "allow": allow} for kind, allow in _BY_DEFAULT.items()]
        commands.append({"command": "setDefaultACLAccess", "acls": acls})
    return commands


def rules_in(role: Mapping[str, Any]) -> set[Rule]:
    """Return the rules of a role as the plugin tells it."""
    return {
        Rule(str(each["acltype"]), str(each["topic"]), is_allowed=bool(each["allow"]))
        for each in role.get("acls", ())
    }


def _role(name: str, rules: Sequence[Rule]) -> dict[str, Any]:
    return {"rolename": name, "acls": [rule.as_dynamic_security() for rule in rules]}


def names_of_roles(name: str) -> tuple[str, ...]:
    """Return the names of a device's roles, the first that counts first."""
    return tuple(str(each["rolename"]) for each in _roles_of_device(name))


def _roles_of_device(name: str) -> list[dict[str, Any]]:
    """Return a device's roles, in the plugin's order: the higher priority comes first, and decides."""
    return [{"rolename": _DEVICE_ROLE, "priority": 1}, *_role_of_claim(name)]


def _role_of_claim(name: str) -> list[dict[str, Any]]:
    return [{"rolename": name, "priority": 0}]


def let_in(username: str, rules: Sequence[Rule], *, is_kept_away: bool = False) -> list[Command]:
    """Return the commands that make a device known, or make it what it shall be if it is known.

    It keeps the password that it has; one that never had any gets in by certificate only.
    """
    role, client = _role(username, rules), _client(username, password=None, client_id=None)
    return [
        {"command": "createRole", **role},
        {"command": "modifyRole", **role},
        {"command": "createClient", **client},
        {"command": "modifyClient", **client, "roles": _roles_of_device(username)},
        *(keep_away(username) if is_kept_away else let_back(username)),
    ]


def make_anew(
    username: str, rules: Sequence[Rule], *, password: str | None, is_kept_away: bool = False
) -> list[Command]:
    """Return the commands that make a device as `let_in` does, but with nothing of one of that name.

    One of no `password` gets in by certificate only. For a name that was not known only three of the
    commands change anything: the plugin writes its file no oftener.
    """
    made = _make_anew(username, rules, _roles_of_device(username), password, client_id=None)
    return made + (keep_away(username) if is_kept_away else [])


def make_claim(username: str, rules: Sequence[Rule], *, code: str, client_id: str) -> list[Command]:
    """Return the commands that let somebody claim a credential by a code, under one client id alone."""
    return _make_anew(username, rules, _role_of_claim(username), code, client_id=client_id)


def _make_anew(
    username: str,
    rules: Sequence[Rule],
    roles: list[dict[str, Any]],
    password: str | None,
    *,
    client_id: str | None,
) -> list[Command]:
    client = _client(username, password=password, client_id=client_id)
    return [
        *shut_out(username),
        {"command": "createRole", **_role(username, rules)},
        {"command": "createClient", **client},
        {"command": "modifyClient", "username": username, "roles": roles},
    ]


def _client(username: str, *, password: str | None, client_id: str | None) -> Command:
    """Return a client without its roles.

    A role that a client was created with, Mosquitto 2.0 does not know to have it: it deletes the role and
    leaves the client pointing to where it was, and crashes when the client publishes.
    """
    client: Command = {"username": username, "clientid": client_id or username}
    if password is not None:
        client["password"] = password
    return client


def change_rules(username: str, rules: Sequence[Rule]) -> list[Command]:
    """Return the command that changes what a client that is known may do."""
    return [{"command": "modifyRole", **_role(username, rules)}]


def keep_away(username: str) -> list[Command]:
    """Return the command that ends a client's connection and refuses it another one.

    What it sends is not acknowledged, as what it may not publish would be. A certificate still lets it
    connect, unless it is on hold by the list of revoked ones: nobody asks the plugin of one. The connection
    is ended before the plugin writes its file, also of one that was kept away before.
    """
    return [{"command": "disableClient", "username": username}]


def let_back(username: str) -> list[Command]:
    """Return the command that lets a client connect that was kept away."""
    return [{"command": "enableClient", "username": username}]


def shut_out(username: str) -> list[Command]:
    """Return the commands that end a client's connection, and let it do nothing again.

    Its role goes first: a certificate still lets it connect until the broker has a new list.
    """
    return [
        {"command": "deleteRole", "rolename": username},
        {"command": "disableClient", "username": username},
        {"command": "deleteClient", "username": username},
    ]


def hashed(commands: Sequence[Command]) -> list[Command]:
    """Return commands with what the plugin's file keeps of a password in the password's place."""
    return [
        {key: value for key, value in each.items() if key != "password"}
        | hash_of(each["password"]).as_dynamic_security()
        if "password" in each
        else each
        for each in commands
    ]


def with_commands(document: Mapping[str, Any], commands: Sequence[Command]) -> dict[str, Any]:
    """Return the plugin's file as it is after `hashed` commands of this module, for a stopped broker."""
    clients = {each["username"]: each for each in document.get("clients", ())}
    roles = {each["rolename"]: each for each in document.get("roles", ())}
    for command in commands:
        given = {key: value for key, value in command.items() if key != "command"}
        username = str(given.get("username"))
        match command["command"]:
            case "createRole" | "modifyRole":
                roles[given["rolename"]] = given
            case "deleteRole":
                roles.pop(given["rolename"], None)
            case "createClient" | "modifyClient":
                clients[username] = {**clients.get(username, {}), **given}
            case "enableClient":
                clients[username].pop("disabled", None)
            case "disableClient" if username in clients:
                clients[username]["disabled"] = True
            case "deleteClient":
                clients.pop(username, None)
    return {**document, "clients": list(clients.values()), "roles": list(roles.values())}


_EXPECTED = {
    "createRole": "Role already exists",
    "createClient": "Client already exists",
    "deleteRole": "Role not found",
    "deleteClient": "Client not found",
    "disableClient": "Client not found",
}
"""Answers that say that what a command asks for is so already."""


def refusals(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what the plugin refused, of answers to commands that may be given again."""
    return [
        f"{answer.get('command')}: {answer['error']}"
        for answer in answers
        if "error" in answer and answer["error"] != _EXPECTED.get(str(answer.get("command")))
    ]
