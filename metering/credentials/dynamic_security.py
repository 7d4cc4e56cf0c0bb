"""Mosquitto's dynamic security plugin: its file at the start, and its commands while it runs. Pure.

A device has a role of its own name. The plugin knows no patterns such as `%u`; and a role that names
the topics themselves leaves nothing to a pattern that a name could bend.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from metering.credentials.password import PasswordHash, hash_of
from metering.credentials.rights import PROCESS_TOPICS, PROCESS_USERNAME, Topics

CONTROL_TOPIC = "$CONTROL/dynamic-security/v1"
RESPONSE_TOPIC = "$CONTROL/dynamic-security/v1/response"

Command = dict[str, Any]

_PROCESS_ROLE = "process"
_WRITE, _RECEIVE, _LITERAL, _PATTERN = (
    "publishClientSend", "publishClientReceive", "subscribeLiteral", "subscribePattern",
)  # fmt: skip
_NOTHING_BY_DEFAULT = {_WRITE: False, _RECEIVE: False, "subscribe": False, "unsubscribe": True}


def first_document(process: PasswordHash) -> dict[str, Any]:
    """Return the plugin's file for a new broker: nobody but our own processes may do anything."""
    return {
        "defaultACLAccess": _NOTHING_BY_DEFAULT,
        "clients": [
            {
                "username": PROCESS_USERNAME,
                "roles": [{"rolename": _PROCESS_ROLE}],
                **process.as_dynamic_security(),
            }
        ],
        "groups": [],
        "roles": [
            {
                "rolename": _PROCESS_ROLE,
                "acls": [
                    _rule(kind, topic)
                    for kind in (_WRITE, _RECEIVE, _PATTERN)
                    for topic in PROCESS_TOPICS
                ],
            }
        ],
    }


def with_process_password(document: Mapping[str, Any], process: PasswordHash) -> dict[str, Any]:
    """Return the plugin's file with another password for our own processes; devices stay."""
    first = first_document(process)
    return {
        **document,
        "defaultACLAccess": _NOTHING_BY_DEFAULT,
        "clients": first["clients"] + _others(document, "clients", "username", PROCESS_USERNAME),
        "roles": first["roles"] + _others(document, "roles", "rolename", _PROCESS_ROLE),
    }


def _others(document: Mapping[str, Any], kind: str, key: str, name: str) -> list[Any]:
    return [each for each in document.get(kind, ()) if each[key] != name]


def let_in(username: str, topics: Topics, *, is_held: bool = False) -> list[Command]:
    """Return the commands that make a client known, or make it what it shall be if it is known.

    It keeps the password that it has; one that never had any gets in by certificate only.
    """
    role, client = _role_and_client(username, topics, password=None, client_id=None)
    roles = [{"rolename": username, "priority": 0}]
    return [
        {"command": "createRole", **role},
        {"command": "modifyRole", **role},
        {"command": "createClient", **client},
        {"command": "modifyClient", **client, "roles": roles},
        *(keep_away(username) if is_held else let_back(username)),
    ]


def make_anew(
    username: str,
    topics: Topics,
    *,
    password: str | None,
    client_id: str | None = None,
    is_held: bool = False,
) -> list[Command]:
    """Return the commands that make a client as `let_in` does, but with nothing of one of that name.

    One of no `password` gets in by certificate only. `client_id` is the only one under which it may connect;
    None: its name. For a name that was not known only three of the commands change anything: the plugin
    writes its file no oftener.
    """
    role, client = _role_and_client(username, topics, password=password, client_id=client_id)
    return [
        *shut_out(username),
        {"command": "createRole", **role},
        {"command": "createClient", **client},
        {"command": "addClientRole", "username": username, "rolename": username, "priority": 0},
        *(keep_away(username) if is_held else ()),
    ]


def _role_and_client(
    username: str, topics: Topics, *, password: str | None, client_id: str | None
) -> tuple[Command, Command]:
    """Return a role, and a client without it.

    A role that a client was created with, Mosquitto 2.0 does not know to have it: it deletes the role and
    leaves the client pointing to where it was, and crashes when the client publishes.
    """
    client: Command = {"username": username, "clientid": client_id or username}
    if password is not None:
        client["password"] = password
    return {"rolename": username, "acls": rules_of(topics)}, client


def allow(username: str, topics: Topics) -> list[Command]:
    """Return the commands that change what a client that is known may do."""
    return [{"command": "modifyRole", "rolename": username, "acls": rules_of(topics)}]


def keep_away(username: str) -> list[Command]:
    """Return the command that ends a client's connection and refuses it another one.

    What it sends is not acknowledged, as what it may not publish would be. A certificate still lets it
    connect: nobody asks the plugin of one.
    """
    return [{"command": "disableClient", "username": username}]


def let_back(username: str) -> list[Command]:
    """Return the command that lets a client connect that was kept away."""
    return [{"command": "enableClient", "username": username}]


def disconnect(username: str) -> list[Command]:
    """Return the command that ends a client's connection; it may come again.

    A change of nothing: the plugin writes its file once for it, and ends the connection.
    """
    return [{"command": "modifyClient", "username": username}]


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
            case "addClientRole":
                role = {"rolename": given["rolename"], "priority": given["priority"]}
                clients[username]["roles"] = [role]
            case "enableClient":
                clients[username].pop("disabled", None)
            case "disableClient" if username in clients:
                clients[username]["disabled"] = True
            case "deleteClient":
                clients.pop(username, None)
    return {**document, "clients": list(clients.values()), "roles": list(roles.values())}


def rules_of(topics: Topics) -> list[dict[str, object]]:
    """Return the rules of a role; to read is to subscribe by that very name, and to be sent it."""
    return [
        *(_rule(_WRITE, topic) for topic in topics.writes),
        *(_rule(kind, topic) for topic in topics.reads for kind in (_LITERAL, _RECEIVE)),
    ]


def _rule(kind: str, topic: str) -> dict[str, object]:
    return {"acltype": kind, "topic": topic, "priority": 0, "allow": True}


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
