"""Sign-in by an OpenID Connect provider: authorization code flow with PKCE, state and nonce, by Authlib."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flask import Flask, current_app, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest, NotFound

from active_learning.ledger import User
from backend.desk.client import client_address
from backend.desk.roles import admit
from backend.services import services
from backend.settings import Settings
from model.errors import ELNetError

log = logging.getLogger(__name__)

_CLIENT = "elnet-oidc"
_TIMEOUT_S = 10.0


class OidcError(ELNetError):
    """Sign-in by OpenID Connect cannot be had here."""


def check_installed(settings: Settings) -> None:
    """Refuse settings that need Authlib where it is not installed.

    Raises:
        OidcError: with what to install.
    """
    if settings.desk.oidc.issuer is None:
        return
    try:
        import authlib.integrations.flask_client  # noqa: F401
    except ImportError as error:
        raise OidcError(
            "desk.oidc needs Authlib: run `pip install 'elnet-loop[oidc]'`, or unset ELNET_DESK__OIDC__ISSUER"
        ) from error


def install(app: Flask, settings: Settings) -> None:
    """Give an application its client, where a provider is set; that is asked for nothing yet.

    Raises:
        OidcError: Authlib is not installed.
    """
    oidc = settings.desk.oidc
    if oidc.issuer is None:
        return
    check_installed(settings)
    from authlib.integrations.flask_client import OAuth

    app.extensions[_CLIENT] = OAuth(app).register(
        "elnet_desk",
        client_id=oidc.client_id,
        client_secret=oidc.client_secret.get_secret_value() if oidc.client_secret else None,
        server_metadata_url=f"{oidc.issuer.rstrip('/')}/.well-known/openid-configuration",
        client_kwargs={
            "scope": oidc.scope,
            "code_challenge_method": "S256",
            "default_timeout": _TIMEOUT_S,
        },
    )


def leave() -> ResponseReturnValue:
    """Send the browser to the provider.

    Raises:
        NotFound: none is set.
        BadRequest: it does not answer.
    """
    client = _client()
    callback = services().settings.desk_url + url_for("desk_sign_in.oidc_callback")
    with _explained():
        answer: ResponseReturnValue = client.authorize_redirect(callback)
    return answer


def arrived() -> User:
    """The user whom the provider sends back.

    Raises:
        NotFound: no provider is set.
        BadRequest: what comes back was not asked for, or is not what the provider signed.
        Forbidden: they are not let in.
        LedgerError: the ledger cannot be had.
    """
    rules = services().settings.desk.oidc
    with _explained():
        claims = _claims(_client())
    name = claims.get(rules.name_claim) or claims.get("email") or claims["sub"]
    groups = claims.get(rules.roles_claim) or []
    return admit(
        services().ledger,
        rules,
        f"oidc:{claims['iss']}#{claims['sub']}",
        str(name),
        [groups] if isinstance(groups, str) else [str(group) for group in groups],
        client_address(),
    )


def _claims(client: Any) -> Mapping[str, Any]:
    """What the ID token says, and what it leaves out from the provider's userinfo."""
    rules, metadata = services().settings.desk.oidc, client.load_server_metadata()
    if metadata.get("issuer", "").rstrip("/") != (rules.issuer or "").rstrip("/"):
        raise ValueError(f"the provider calls itself {metadata.get('issuer')!r}: let desk.oidc.issuer say so")
    token = client.authorize_access_token(
        claims_options={
            "iss": {"essential": True, "value": metadata["issuer"]},
            "aud": {"essential": True, "value": rules.client_id},
        }
    )
    claims: dict[str, Any] = dict(token.get("userinfo") or {})
    if not claims.get("sub"):
        raise ValueError("the provider sent no ID token: the scope must hold openid")
    if not {rules.name_claim, rules.roles_claim} <= claims.keys() and "userinfo_endpoint" in metadata:
        more = client.userinfo(token=token)
        if more.get("sub") == claims["sub"]:
            claims = {**more, **claims}
    return claims


def _client() -> Any:
    client = current_app.extensions.get(_CLIENT)
    if client is None:
        raise NotFound("No identity provider is set: sign in by name and password.")
    return client


@contextmanager
def _explained() -> Iterator[None]:
    """The person learns that it failed, the log why."""
    from authlib.common.errors import AuthlibBaseError
    from joserfc.errors import JoseError
    from requests import RequestException

    try:
        yield
    except (AuthlibBaseError, JoseError, RequestException, ValueError, KeyError, RuntimeError) as error:
        log.warning("signing in by %s failed: %r", services().settings.desk.oidc.issuer, error)
        raise BadRequest("Signing in there failed. Try again; the backend's log tells why.") from error
