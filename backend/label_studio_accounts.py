"""The two users of an embedded Label Studio, and their tokens: the lead's, and the machine's.

Label Studio has no API that makes users, so this goes the way of a person with a browser: sign in, or sign up
by the organization's invitation link.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import httpx

from active_learning.ports import ToolUnavailableError
from backend.credentials import Credentials
from model.errors import ELNetError

MACHINE_EMAIL = "machine@elnet.local"
_MACHINE_NAME = {"first_name": "ELNet", "last_name": "(machine)"}
_TIMEOUT_S = 30.0


class AccountError(ELNetError):
    """A user of the embedded Label Studio cannot be signed in or made."""


@dataclass(frozen=True, slots=True)
class Accounts:
    """The users of one server.

    Attributes:
        url: of the server, without trailing slash.
        username: the lead's email address.
    """

    url: str
    username: str

    def settle(self, credentials: Credentials) -> Credentials:
        """Make both tokens work: legacy tokens allowed, the machine user there.

        Returns:
            The same credentials with the tokens that are in force.

        Raises:
            AccountError: a password is refused.
            ToolUnavailableError: the server does not answer.
        """
        try:
            token, machine_token = credentials.token, credentials.machine_token
            if not self._works(token):
                with closing(self._sign_in(self.username, credentials.password)) as session:
                    self._allow_legacy_tokens(session)
                    token = self._token(session)
            if machine_token is None or not self._works(machine_token):
                with closing(self._machine(token, credentials.machine_password)) as session:
                    machine_token = self._token(session)
                    self._rename(session)
        except httpx.TransportError as error:
            raise ToolUnavailableError(f"Label Studio at {self.url} does not answer: {error}") from error
        return credentials.with_tokens(token=token, machine_token=machine_token)

    def _works(self, token: str) -> bool:
        with self._client(token) as client:
            return client.get("/api/current-user/whoami").is_success

    def _client(self, token: str | None = None) -> httpx.Client:
        headers = {"Authorization": f"Token {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)

    def _sign_in(self, email: str, password: str) -> httpx.Client:
        """A session of this user."""
        session = self._client()
        answer = self._post_form(session, "/user/login/", email=email, password=password)
        if answer.status_code != 302:
            session.close()
            raise AccountError(
                f"Label Studio at {self.url} refuses the password of {email} that is in secrets.json"
            )
        return session

    def _machine(self, lead_token: str, password: str) -> httpx.Client:
        """A session of the machine user, who is made if need be."""
        try:
            return self._sign_in(MACHINE_EMAIL, password)
        except AccountError:
            pass  # not there yet
        with self._client(lead_token) as lead:
            invitation = str(lead.get("/api/invite").raise_for_status().json()["token"])
        session = self._client()
        path = f"/user/signup/?token={invitation}"
        answer = self._post_form(session, path, email=MACHINE_EMAIL, password=password)
        if answer.status_code != 302:
            session.close()
            raise AccountError(
                f"Label Studio at {self.url} has a user {MACHINE_EMAIL} with another password than the one "
                "in secrets.json"
            )
        return session

    def _post_form(self, session: httpx.Client, path: str, **fields: str) -> httpx.Response:
        session.get(path)  # sets the CSRF cookie
        fields["csrfmiddlewaretoken"] = session.cookies.get("csrftoken") or ""
        return session.post(path, data=fields, headers={"Referer": self.url})

    def _allow_legacy_tokens(self, session: httpx.Client) -> None:
        """Also on a database that was made without them: the token in POST /setup is one."""
        session.post(
            "/api/jwt/settings",
            json={"api_tokens_enabled": True, "legacy_api_tokens_enabled": True},
            headers=self._csrf(session),
        ).raise_for_status()

    def _token(self, session: httpx.Client) -> str:
        return str(session.get("/api/current-user/token").raise_for_status().json()["token"])

    def _rename(self, session: httpx.Client) -> None:
        """The name under which people see who accepted a mask."""
        user = session.get("/api/current-user/whoami").raise_for_status().json()["id"]
        session.patch(f"/api/users/{user}", json=_MACHINE_NAME, headers=self._csrf(session))

    def _csrf(self, session: httpx.Client) -> dict[str, str]:
        return {"X-CSRFToken": session.cookies.get("csrftoken") or "", "Referer": self.url}
