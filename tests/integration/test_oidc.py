"""Tokens of OpenID Connect, over the API, from a real issuer on this machine: real keys, real HTTP."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import RSAAlgorithm

from api.app import create_app
from metering.access import Role
from metering.cli import main
from metering.ids import TenantNo
from metering.settings import Settings
from metering.stack.probe import free_port
from metering.store.connection import Connection
from metering.store.registry import tenant_no
from metering.store.users import insert_user
from tests.integration.conftest import NOW, serving

if TYPE_CHECKING:
    from tests.integration.conftest import ApiUnderTest

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


def _rsa() -> Key:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class LocalIssuer:
    """An issuer with an RSA and an EC key, that can change them and stop answering."""

    def __init__(self) -> None:
        self.keys: dict[str, Key] = {"r1": _rsa(), "e1": ec.generate_private_key(ec.SECP256R1())}
        self.asked: list[str] = []
        self.is_away = False
        self.calls_itself: str | None = None
        self.keys_at = ""
        self.use = "sig"
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                issuer.asked.append(self.path)
                if issuer.is_away:
                    self.send_error(503)
                    return
                if self.path.endswith("/moved/keys"):
                    self.send_response(302)
                    self.send_header("Location", f"{issuer.url}/keys")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = json.dumps(issuer.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - its own
                del format, args

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/realm"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def answer(self, path: str) -> dict[str, Any]:
        if path.endswith("/openid-configuration"):
            return {
                "issuer": self.calls_itself or self.url,
                "jwks_uri": f"{self.url}{self.keys_at}/keys",
            }
        return {"keys": [self._public(name, key) for name, key in self.keys.items()]}

    def _public(self, name: str, key: Key) -> dict[str, Any]:
        algorithm = "RSA" if isinstance(key, rsa.RSAPrivateKey) else "EC"
        maker: Any = (
            jwt.algorithms.RSAAlgorithm if algorithm == "RSA" else jwt.algorithms.ECAlgorithm
        )
        public: dict[str, Any] = maker.to_jwk(key.public_key(), as_dict=True)
        return public | {"kid": name, "use": self.use}

    def token(self, kid: str = "r1", *, signed_by: Key | None = None, **claims: Any) -> str:  # noqa: ANN401
        key = signed_by or self.keys[kid]
        algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
        return jwt.encode(self.claims(**claims), key, algorithm=algorithm, headers={"kid": kid})

    def claims(self, **other: Any) -> dict[str, Any]:  # noqa: ANN401 - any claim
        now = int(time.time())
        given = {"iss": self.url, "sub": "ada", "aud": "fleetmeter", "iat": now, "exp": now + 600}
        return {name: value for name, value in (given | other).items() if value is not None}


@pytest.fixture
def issuer() -> Iterator[LocalIssuer]:
    made = LocalIssuer()
    made.thread.start()
    try:
        yield made
    finally:
        made.server.shutdown()
        made.thread.join()
        made.server.server_close()


@pytest.fixture
def client(api: "ApiUnderTest", issuer: LocalIssuer) -> Iterator[httpx.Client]:
    async def let_in(connection: Connection) -> None:
        tenant: TenantNo = await tenant_no(connection, "acme")
        for subject, role in (("ada", Role.TENANT_ADMIN), ("bob", Role.READ_ONLY)):
            await insert_user(
                connection, tenant=tenant, issuer=issuer.url, subject=subject, name=subject,
                role=role, fleets=None, now=NOW,
            )  # fmt: skip

    api.execute(let_in)
    app = create_app(
        Settings(
            database_url=api.database_url,
            oidc_issuer=issuer.url,
            # Counted with what the other application asks, whose limits are others.
            api_requests_a_minute_of_tenant=0,
        ),
        now=lambda: NOW,
    )
    app.state.fleetmeter.issuer._again_seconds = 0.0
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as made:
        yield made


def _get(client: httpx.Client, token: str, path: str = "/v1/fleets") -> httpx.Response:
    return client.get(path, headers={"Authorization": f"Bearer {token}"})


def _unsigned(claims: dict[str, Any]) -> str:
    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'none', 'typ': 'JWT', 'kid': 'r1'})}.{part(claims)}."


def test_a_users_token_opens_what_its_role_may(
    api: "ApiUnderTest", client: httpx.Client, issuer: LocalIssuer
) -> None:
    for kid in ("r1", "e1"):
        answer = _get(client, issuer.token(kid))
        assert answer.status_code == 200, answer.text
        assert "acme-north" in answer.text
        assert "rival" not in answer.text
    assert len([path for path in issuer.asked if path.endswith("/keys")]) == 1
    bob = {"Authorization": f"Bearer {issuer.token(sub='bob')}"}
    assert client.get("/v1/fleets", headers=bob).status_code == 200
    assert client.get("/v1/api-keys", headers=bob).status_code == 403
    # A key goes on working beside, and what a user changes is logged as the user's.
    assert _get(client, api.acme_key).status_code == 200
    ada = {"Authorization": f"Bearer {issuer.token()}"}
    new = {"label": "by ada", "role": "read_only"}
    keyed = ada | {"Idempotency-Key": "ada"}
    assert client.post("/v1/api-keys", headers=keyed, json=new).status_code == 201
    (entry,) = client.get("/v1/audit-log", headers=ada).json()["items"]
    assert (entry["operation"], entry["api_key_no"]) == ("post_api_key", None)
    assert entry["user_no"]


def test_a_token_that_is_not_good_opens_nothing(client: httpx.Client, issuer: LocalIssuer) -> None:
    assert _get(client, issuer.token()).status_code == 200
    past = int(time.time()) - 3600
    forger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = (
        jwt.PyJWK(issuer.answer("/keys")["keys"][0]).key.public_numbers().n.to_bytes(256, "big")
    )
    bad = {
        "expired": issuer.token(exp=past, iat=past - 60),
        "not yet": issuer.token(nbf=int(time.time()) + 3600),
        "another audience": issuer.token(aud="somebody-else"),
        "no audience": issuer.token(aud=None),
        "another issuer": issuer.token(iss="http://127.0.0.1/elsewhere"),
        "no issuer": issuer.token(iss=None),
        "no end": issuer.token(exp=None),
        "no time of issue": issuer.token(iat=None),
        "issued ahead": issuer.token(iat=int(time.time()) + 3600),
        "over for longer than clocks differ": issuer.token(exp=int(time.time()) - 90, iat=past),
        "no subject": issuer.token(sub=None),
        "nobody": issuer.token(sub="eve"),
        "a forged signature": issuer.token(signed_by=_rsa()),
        "a key of another kind": issuer.token("e1", signed_by=issuer.keys["r1"]),
        "an unknown key": issuer.token("r9", signed_by=_rsa()),
        "unsigned": _unsigned(issuer.claims()),
        "signed with a public key as a secret": jwt.encode(
            issuer.claims(), public, algorithm="HS256", headers={"kid": "r1"}
        ),
        "no key named, of two": jwt.encode(issuer.claims(), issuer.keys["r1"], algorithm="RS256"),
        "a key named by no text": jwt.encode(
            issuer.claims(), issuer.keys["r1"], algorithm="RS256", headers={"kid": "../r1\x00"}
        ),
        "a key that it brings along": jwt.encode(
            issuer.claims(),
            forger,
            algorithm="RS256",
            headers={
                "kid": "r9",
                "jwk": RSAAlgorithm.to_jwk(forger.public_key(), as_dict=True),
                "jku": f"{issuer.url}/elsewhere",
                "x5u": f"{issuer.url}/elsewhere",
            },
        ),
        "cut short": issuer.token()[:-10],
        "no token": "a.b.c",
    }
    for why, token in bad.items():
        answer = _get(client, token)
        assert answer.status_code == 401, (why, answer.text)
        assert "invalid_token" in answer.headers["www-authenticate"], why
    assert not [path for path in issuer.asked if "elsewhere" in path]


def test_clocks_may_differ_a_little(client: httpx.Client, issuer: LocalIssuer) -> None:
    now = int(time.time())
    assert _get(client, issuer.token(iat=now + 15, nbf=now + 15)).status_code == 200


@pytest.mark.parametrize("keys_at", [".example", "0", "/moved"])
def test_keys_are_taken_from_no_other_place(
    client: httpx.Client, issuer: LocalIssuer, keys_at: str
) -> None:
    """Beginning like the issuer's address is not being of it; and no redirection is followed."""
    issuer.keys_at = keys_at
    assert _get(client, issuer.token()).status_code == 503
    assert not [path for path in issuer.asked if path.endswith("/realm/keys")]
    assert not [path for path in issuer.asked if "moved" not in path and path.endswith("/keys")]


def test_a_key_that_is_not_for_signing_signs_nothing(
    client: httpx.Client, issuer: LocalIssuer
) -> None:
    issuer.use = "enc"
    assert _get(client, issuer.token()).status_code == 401


def test_a_key_that_the_issuer_withdrew_is_forgotten(
    client: httpx.Client, issuer: LocalIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is good for as long as keys are kept, also where nobody brings another."""
    token = issuer.token()
    assert _get(client, token).status_code == 200
    issuer.keys = {"r2": _rsa()}
    assert _get(client, token).status_code == 200
    monkeypatch.setattr("api.oidc._KEYS_KEPT_SECONDS", 0.0)
    assert _get(client, token).status_code == 401


def test_the_issuer_may_change_its_keys(client: httpx.Client, issuer: LocalIssuer) -> None:
    old = issuer.token()
    assert _get(client, old).status_code == 200
    issuer.keys = {"r2": _rsa()}
    assert _get(client, issuer.token("r2")).status_code == 200
    assert _get(client, old).status_code == 401


def test_while_the_issuer_is_away_known_keys_go_on(
    client: httpx.Client, issuer: LocalIssuer
) -> None:
    issuer.is_away = True
    answer = _get(client, issuer.token())
    assert answer.status_code == 503
    issuer.is_away = False
    assert _get(client, issuer.token()).status_code == 200
    issuer.is_away = True
    assert _get(client, issuer.token()).status_code == 200


def test_unknown_keys_make_nobody_ask_the_issuer_all_the_time(
    api: "ApiUnderTest", issuer: LocalIssuer
) -> None:
    settings = Settings(database_url=api.database_url, oidc_issuer=issuer.url)
    app = create_app(settings, now=lambda: NOW)
    app.state.fleetmeter.issuer._again_seconds = 3600.0
    with serving(app) as url, httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(3):
            assert _get(client, issuer.token("r9", signed_by=_rsa())).status_code == 401
    assert len(issuer.asked) == 2


def test_an_issuer_of_another_name_is_not_believed(
    client: httpx.Client, issuer: LocalIssuer
) -> None:
    issuer.calls_itself = "https://login.example.com"
    assert _get(client, issuer.token()).status_code == 503


def test_a_disabled_user_is_let_in_no_more(client: httpx.Client, issuer: LocalIssuer) -> None:
    ada = {"Authorization": f"Bearer {issuer.token()}"}
    bob = issuer.token(sub="bob")
    (number,) = [
        user["user_no"]
        for user in client.get("/v1/users", headers=ada).json()["items"]
        if user["subject"] == "bob"
    ]
    assert _get(client, bob).status_code == 200
    assert client.delete(f"/v1/users/{number}", headers=ada).status_code == 204
    assert _get(client, bob).status_code == 401


def _invite(api: "ApiUnderTest", tenant: str, issuer: LocalIssuer, subject: str) -> httpx.Response:
    user = {"issuer": issuer.url, "subject": subject, "name": subject, "role": "tenant_admin"}
    inviting = api.acme if tenant == "acme" else api.rival
    return inviting.post("/v1/users", json=user, headers={"Idempotency-Key": f"{tenant}-{subject}"})


def test_nobody_keeps_a_person_from_another_tenant(
    api: "ApiUnderTest", client: httpx.Client, issuer: LocalIssuer
) -> None:
    """Whom a tenant calls its user is a user of those for which they came, whatever it says."""

    def asked(subject: str, tenant: str | None = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {issuer.token(sub=subject)}"}
        if tenant is not None:
            headers["Fleetmeter-Tenant"] = tenant
        return client.get("/v1/me", headers=headers)

    # A tenant that took a name first keeps no other from it, and learns nothing of others.
    assert _invite(api, "rival", issuer, "cleo").status_code == 201
    assert _invite(api, "acme", issuer, "cleo").status_code == 201
    users = api.acme.get("/v1/users").json()["items"]
    assert [each["came_at"] for each in users if each["subject"] == "cleo"] == [None]
    (number,) = [each["user_no"] for each in users if each["subject"] == "cleo"]
    tag = api.acme.get(f"/v1/users/{number}").headers["ETag"]
    unclear = asked("cleo")
    assert unclear.status_code == 422
    assert unclear.json()["errors"][0]["fix"] == "name one of acme, rival"
    named = asked("cleo", "acme")
    assert named.status_code == 200, named.text
    assert named.json()["tenant_id"] == "acme"
    assert api.acme.get(f"/v1/users/{number}").json()["came_at"] is not None
    assert api.acme.get(f"/v1/users/{number}").headers["ETag"] == tag
    # From then on it is clear.
    assert asked("cleo").json()["tenant_id"] == "acme"
    assert asked("cleo", "nobody").status_code == 403
    # Ada came for acme, and goes on as before, whoever calls her its own.
    assert asked("ada").json()["tenant_id"] == "acme"
    assert _invite(api, "rival", issuer, "ada").status_code == 201
    assert asked("ada").json()["tenant_id"] == "acme"
    assert asked("ada", "rival").json()["tenant_id"] == "rival"
    assert asked("ada").status_code == 422
    # In one tenant a subject is one user.
    again = _invite(api, "acme", issuer, "ada")
    assert again.status_code == 422
    assert again.json()["errors"][0]["field"] == "subject"


def test_an_operator_of_the_platform_is_no_tenants_user(
    api: "ApiUnderTest",
    client: httpx.Client,
    issuer: LocalIssuer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", api.database_url)
    monkeypatch.setenv("FLEETMETER_OIDC_ISSUER", issuer.url)
    assert main(["user", "create", "--platform", "--subject", "otto", "--name", "Otto"]) == 0
    assert _invite(api, "rival", issuer, "otto").status_code == 201
    me = _get(client, issuer.token(sub="otto"), "/v1/me").json()
    assert (me["role"], me["tenant_id"]) == ("platform_operator", None)
    in_rival = {
        "Authorization": f"Bearer {issuer.token(sub='otto')}",
        "Fleetmeter-Tenant": "rival",
    }
    assert client.get("/v1/me", headers=in_rival).json()["role"] == "platform_operator"


def test_users_are_let_in_by_command(
    api: "ApiUnderTest",
    client: httpx.Client,
    issuer: LocalIssuer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FLEETMETER_DATABASE_URL", api.database_url)

    def user(*arguments: str) -> tuple[int, str]:
        code = main(["user", *arguments])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    def me(subject: str) -> httpx.Response:
        return _get(client, issuer.token(sub=subject), "/v1/me")

    otto = ["--platform", "--subject", "otto"]
    code, said = user("create", *otto, "--name", "Otto")
    assert (code, said) == (
        1,
        "fleetmeter user: issuer: is not given; give --issuer or FLEETMETER_OIDC_ISSUER\n",
    )
    otto += ["--issuer", issuer.url]
    assert me("otto").status_code == 401
    assert user("create", *otto, "--name", "Otto")[0] == 0
    assert me("otto").json()["role"] == "platform_operator"
    assert user("create", *otto, "--name", "Otto")[0] == 1  # is one already
    assert user("disable", *otto)[0] == 0
    assert me("otto").status_code == 401
    (line,) = user("list", "--platform")[1].splitlines()
    assert line.split("\t")[1:] == ["platform_operator", "disabled", issuer.url, "otto", "Otto"]
    assert user("enable", *otto)[0] == 0
    assert me("otto").status_code == 200
    # Of a tenant: its administrator unless said otherwise, and nobody of another.
    of_rival = ["--tenant", "rival", "--issuer", issuer.url]
    assert user("create", *of_rival, "--subject", "rita", "--name", "Rita")[0] == 0
    assert (me("rita").json()["tenant_id"], me("rita").json()["role"]) == ("rival", "tenant_admin")
    ned = [*of_rival, "--subject", "ned", "--name", "Ned", "--role", "fleet_manager"]
    assert user("create", *ned, "--fleet", "acme-north")[0] == 1
    assert user("create", *ned, "--fleet", "rival-north")[0] == 0
    assert me("ned").json()["fleet_ids"] == ["rival-north"]
    assert user("disable", "--tenant", "acme", "--issuer", issuer.url, "--subject", "ned")[0] == 1
    assert me("ned").status_code == 200
    assert len(user("list", "--tenant", "rival")[1].splitlines()) == 2
    # The platform's reach has no limit: a command that gives one is refused, and makes nothing.
    assert user("create", "--platform", "--issuer", issuer.url, "--subject", "olga", "--name", "Olga",
                "--fleet", "acme-north")[0] == 1  # fmt: skip
    assert me("olga").status_code == 401
    limited = ["apikey", "create", "--platform", "--label", "limited", "--fleet", "acme-north"]
    assert main(limited) == 1
    assert "fmk_" not in capsys.readouterr().out
