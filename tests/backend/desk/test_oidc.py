"""Sign-in by OpenID Connect, against a small provider that signs real tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from werkzeug.test import TestResponse

from active_learning.ledger import Role
from backend import accounts
from backend.actions import Who, latest
from backend.app import create_app
from backend.desk.oidc import OidcError
from backend.settings import DeskSettings, Settings

pytest.importorskip("authlib", reason="sign-in by OpenID Connect: pip install 'elnet-loop[oidc]'")
from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT = {"client_id": "elnet", "client_secret": "the client's secret"}
USER = {"sub": "u-1", "preferred_username": "Eve", "groups": ["geo-leads"]}


@dataclass
class Provider:
    """The provider: a browser that comes gets a code for `USER`, and a code gets a token once."""

    server: Any
    claims: dict[str, Any] = field(default_factory=lambda: dict(USER))
    userinfo: dict[str, Any] | None = None
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "1", "use": "sig"}))
    signing: RSAKey | None = None  # another than it publishes
    codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {
            "issuer": self.server.url,
            "authorization_endpoint": f"{self.server.url}/authorize",
            "token_endpoint": f"{self.server.url}/token",
            "jwks_uri": f"{self.server.url}/keys",
            "id_token_signing_alg_values_supported": ["RS256"],
        }
        if self.userinfo is not None:
            known["userinfo_endpoint"] = f"{self.server.url}/userinfo"
        keys = {"keys": [self.key.as_dict(private=False)]}
        self.server.answers = {
            "/.well-known/openid-configuration": _json(known),
            "/keys": _json(keys),
            "/token": self.token,
            "/userinfo": lambda request: _json(self.userinfo),
        }

    def visit(self, address: str) -> str:
        """The browser comes with this address; where it is sent back to."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert address.startswith(f"{self.server.url}/authorize?")
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        code = f"code-{len(self.codes)}"
        self.codes[code] = asked
        return f"{asked['redirect_uri']}?code={code}&state={asked['state']}"

    def token(self, request: Any) -> Any:
        form = request.rfile.read(int(request.headers["Content-Length"])).decode()
        given = {name: values[0] for name, values in parse_qs(form).items()}
        asked = self.codes.pop(given.get("code", ""), None)
        basic = base64.b64encode(b"elnet:the client's secret").decode()
        verifier = hashlib.sha256(given["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if asked is None or challenge != asked["code_challenge"]:
            return _json({"error": "invalid_grant"}, 400)
        if (
            request.headers["Authorization"] != f"Basic {basic}"
            or given["redirect_uri"] != asked["redirect_uri"]
        ):
            return _json({"error": "invalid_client"}, 401)
        now = int(time.time())
        claims = {
            "iss": self.server.url,
            "aud": "elnet",
            "iat": now,
            "exp": now + 300,
            "nonce": asked["nonce"],
        }
        claims = {name: value for name, value in {**claims, **self.claims}.items() if value is not None}
        signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.signing or self.key)
        return _json({"access_token": "a", "token_type": "Bearer", "expires_in": 300, "id_token": signed})


def _json(what: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(what).encode()


class SignIn:
    """Takes a browser through the sign-in; keyword arguments are those of `OidcSettings`."""

    HERE = "http://elnet.example:9090"

    def __init__(self, provider: Provider, make_desk: Callable[..., Any], browse: Callable[..., Any]) -> None:
        self.provider, self.make_desk, self.browse = provider, make_desk, browse

    def __call__(
        self, browser: Any = None, wanted: str = "/desk/trial/viewer", **oidc: Any
    ) -> tuple[Any, TestResponse]:
        if browser is None:
            given = {"issuer": self.provider.server.url, **CLIENT, "default_role": "viewer", **oidc}
            self.site = self.make_desk(url=self.HERE, oidc=given)
            browser = self.browse(self.site)
        there = browser.get(f"/desk/oidc?next={wanted}")
        return browser, there if there.status_code != 302 else browser.get(self.back(there))

    def back(self, there: TestResponse) -> str:
        """Where the provider sends the browser that came to it."""
        address = self.provider.visit(there.location)
        assert address.startswith(f"{self.HERE}/desk/oidc/callback?")
        return address.removeprefix(self.HERE)


@pytest.fixture
def provider(server: Any) -> Provider:
    return Provider(server)


@pytest.fixture
def sign_in(provider: Provider, make_desk: Callable[..., Any], browse: Callable[..., Any]) -> SignIn:
    return SignIn(provider, make_desk, browse)


def test_whom_the_provider_knows_comes_in(sign_in, ledger):
    browser, answer = sign_in()
    assert (answer.status_code, answer.location) == (302, "/desk/trial/viewer")
    assert browser.get("/desk/trial/viewer").text == "eve viewer session"
    with ledger.session(write=False) as session:
        assert [(a.who, a.action) for a in latest(session, 9)] == [
            ("eve", "user.sign_in"),
            ("eve", "user.add"),
        ]
        assert accounts.find(session, "eve").password_hash is None
    assert "You have no password here" in browser.get("/desk/password").text


def test_the_sign_in_page_offers_it_only_where_it_is_set(sign_in, desk, browse):
    browser, _ = sign_in(label="Sign in with <Geo>")
    browser.client.delete_cookie("elnet")
    page = browser.get("/desk/sign-in?next=/desk/7").text
    assert 'href="/desk/oidc?next=/desk/7"' in page
    assert "Sign in with &lt;Geo&gt;" in page
    assert "/desk/oidc" not in browse(desk).get("/desk/sign-in").text
    assert browse(desk).get("/desk/oidc").status_code == 404
    assert browse(desk).get("/desk/oidc/callback").status_code == 404


def test_the_same_person_by_another_name_is_the_same_user(sign_in, provider, ledger):
    browser, _ = sign_in()
    provider.claims["preferred_username"] = "Eva"
    sign_in(browser)
    with ledger.session(write=False) as session:
        assert [user.name for user in accounts.users(session)] == ["eve"]


def test_another_person_by_a_known_name_is_refused(sign_in, provider, add_user):
    add_user("admin", Role.ADMIN)
    provider.claims["preferred_username"] = "admin"
    browser, answer = sign_in()
    assert answer.status_code == 403
    assert "signs in otherwise" in answer.text
    assert browser.get("/desk/trial/viewer").status_code == 302
    provider.claims["preferred_username"] = "eve"
    sign_in(browser)
    provider.claims["sub"] = "u-2"
    _, answer = sign_in(browser)
    assert answer.status_code == 403


def test_groups_have_roles(sign_in, provider):
    rules = {"roles": {"geo-leads": "lead", "ops": "admin"}, "default_role": None}
    browser, _ = sign_in(**rules)
    assert browser.get("/desk/trial/viewer").text == "eve lead session"
    provider.claims["groups"] = "ops"  # one, not in a list
    sign_in(browser)
    assert browser.get("/desk/trial/viewer").text == "eve admin session"
    provider.claims["groups"] = []
    _, answer = sign_in(browser)
    assert answer.status_code == 403
    assert "in no group" in answer.text
    assert browser.get("/desk/trial/viewer").status_code == 302


def test_what_the_token_leaves_out_is_asked_for(sign_in, server):
    provider = Provider(server, {"sub": "u-1"}, {"sub": "u-1", "email": "eve@x.org", "groups": ["geo-leads"]})
    sign_in.provider = provider
    browser, _ = sign_in(roles={"geo-leads": "lead"})
    assert browser.get("/desk/trial/viewer").text == "eve@x.org lead session"
    provider.userinfo = {"sub": "another", "email": "root@x.org", "groups": ["geo-leads"]}
    sign_in(browser)
    assert browser.get("/desk/trial/viewer").text == "eve@x.org viewer session"


@pytest.mark.parametrize(
    "claims",
    [
        {"nonce": "another"},
        {"nonce": None},
        {"aud": "another"},
        {"aud": "another", "azp": "elnet"},
        {"aud": None},
        {"iss": "http://another.example"},
        {"exp": 1},
        {"exp": None},
        {"sub": None},
    ],
)
def test_a_token_that_is_not_for_us_now(sign_in, provider, claims, ledger, caplog):
    provider.claims.update(claims)
    browser, answer = sign_in()
    assert answer.status_code == 400
    assert "Signing in there failed" in answer.text
    assert "signing in by http://127.0.0.1" in caplog.text
    assert browser.get("/desk/trial/viewer").status_code == 302
    with ledger.session(write=False) as session:
        assert accounts.users(session) == []


def test_a_token_that_somebody_else_signed(sign_in, provider):
    provider.signing = RSAKey.generate_key(2048, {"kid": "1"})
    _, answer = sign_in()
    assert answer.status_code == 400


def test_a_callback_that_this_browser_did_not_begin(sign_in, browse):
    """Whoever sends a victim the end of their own sign-in signs nobody in."""
    browser, _ = sign_in()
    other, back = browse(sign_in.site), sign_in.back(browser.get("/desk/oidc"))
    assert other.get(back).status_code == 400
    assert other.get("/desk/trial/viewer").status_code == 302
    assert browser.get(back).status_code == 302
    assert browser.get(back).status_code == 400  # once
    for odd in ("", "?state=x", "?code=x", "?error=access_denied&error_description=no"):
        assert browser.get(f"/desk/oidc/callback{odd}").status_code == 400


@pytest.mark.parametrize("wanted", ["https://evil.example/", "//evil.example", "/webhook"])
def test_one_comes_back_to_the_desk(sign_in, wanted):
    _, answer = sign_in(wanted=wanted)
    assert answer.location == "/desk/"


def test_nothing_of_the_session_before_stays(sign_in):
    browser, _ = sign_in()
    browser.client.delete_cookie("elnet")
    planted = browser.token()
    sign_in(browser)
    assert browser.post("/desk/sign-out", token=planted).status_code == 400


def test_the_disabled_stay_out(sign_in, ledger):
    browser, _ = sign_in()
    with ledger.session() as session:
        accounts.set_disabled(session, accounts.find(session, "eve"), True, Who("root"))
    assert browser.get("/desk/trial/viewer").status_code == 302
    _, answer = sign_in(browser)
    assert answer.status_code == 403


def test_a_provider_that_does_not_answer_as_one(sign_in, server):
    _, answer = sign_in(issuer="http://127.0.0.1:9")
    assert answer.status_code == 400
    for odd in (_json({}), (200, {}, b"<html>"), (500, {}, b"")):
        server.answers["/.well-known/openid-configuration"] = odd
        _, answer = sign_in()
        assert answer.status_code == 400


def test_a_provider_that_calls_itself_otherwise(sign_in, server, caplog):
    metadata = json.loads(server.answers["/.well-known/openid-configuration"][2])
    server.answers["/.well-known/openid-configuration"] = _json(
        {**metadata, "issuer": "http://another.example"}
    )
    _, answer = sign_in()
    assert answer.status_code == 400
    assert "let desk.oidc.issuer say so" in caplog.text


def test_without_authlib_the_application_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "authlib.integrations.flask_client", None)
    oidc = {"issuer": "https://login.example", **CLIENT, "default_role": "viewer"}
    with pytest.raises(OidcError, match=r"pip install 'elnet-loop\[oidc\]'"):
        create_app(Settings(state=tmp_path, desk=DeskSettings(oidc=oidc)))
    assert create_app(Settings(state=tmp_path)).url_map
