"""Requests to one Label Studio server as one of its users.

The SDK knows both kinds of token and renews access tokens. What it would do besides is done here: its typed
answers do not fit every server version, and encoding long lists of integers its way takes seconds.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.client_wrapper import SyncClientWrapper

from active_learning.ports import ToolUnavailableError
from backend.tokens import TokenError
from model.errors import ELNetError

_DELAYS_S = (0.25, 0.5, 1.0, 2.0)
_LATER = frozenset({429, 500, 502, 503, 504})  # 500 is also what a locked SQLite gives
_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CUT = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)


class LabelStudioError(ELNetError):
    """Label Studio refused a request. `status` is its HTTP status, `detail` what it said."""

    def __init__(self, message: str, status: int, detail: str) -> None:
        super().__init__(message)
        self.status = status
        self.detail = detail


class Connection:
    """Requests as one user. Safe under threads.

    Args:
        url: of the server, without trailing slash.
        token: personal access token or legacy token.
        setting: the environment variable that the token comes from, for messages.
        timeout_s: of one request.
    """

    def __init__(self, url: str, token: str, setting: str, timeout_s: float = 60.0) -> None:
        self.url = url
        self._token = token
        self._setting = setting
        # A connection of its own for each request: Django's server sends headers and body apart, and over a
        # connection that is kept the second waits 40 ms for the acknowledgement of the first.
        keep = 0 if url.startswith("http://") else 8
        self._http = httpx.Client(
            timeout=timeout_s,
            trust_env=not url.startswith("http://"),
            limits=httpx.Limits(max_keepalive_connections=keep),
        )
        self._sdk = self._sign_in()

    def close(self) -> None:
        """Let go of what is open."""
        self._http.close()

    def get(self, path: str, **params: object) -> Any:
        """GET, decoded."""
        return self.request("GET", path, params=params)

    def post(self, path: str, body: object = None, *, repeatable: bool = False, **params: object) -> Any:
        """POST; `repeatable`: doing it twice does no harm, so it is retried after an uncertain end."""
        return self.request("POST", path, body, params=params, repeatable=repeatable)

    def patch(self, path: str, body: object) -> Any:
        """PATCH."""
        return self.request("PATCH", path, body)

    def delete(self, path: str) -> None:
        """DELETE; what is not there (any more) is deleted."""
        try:
            self.request("DELETE", path)
        except LabelStudioError as error:
            if error.status != 404:
                raise

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, object] | None = None,
        files: Sequence[tuple[str, Any]] | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """One request, repeated with growing pauses while the server is not to be had.

        Returns:
            The decoded JSON; None for an answer without content.

        Raises:
            ToolUnavailableError: the server does not answer, or says that it cannot now.
            TokenError: the token is refused, or its user may not do this.
            LabelStudioError: everything else that is not a success.
        """
        repeatable = method != "POST" if repeatable is None else repeatable
        for delay in (*_DELAYS_S, None):
            try:
                answer = self._send(method, path, body, params, files)
            except httpx.TransportError as error:
                again = isinstance(error, _UNSENT) or (repeatable and isinstance(error, _CUT))
                if delay is None or not again:
                    raise ToolUnavailableError(
                        f"Label Studio at {self.url} does not answer ({method} {path}): "
                        f"{error or type(error).__name__}"
                    ) from error
            else:
                if answer.status_code == httpx.codes.UNAUTHORIZED and self._token.count(".") == 2:
                    # Our clock and the server's may differ on how long an access token lives.
                    self._sdk = self._sign_in()
                    answer = self._send(method, path, body, params, files)
                if answer.status_code not in _LATER:
                    return self._result(answer, method, path)
                if delay is None or not (repeatable or answer.status_code in {429, 503}):
                    raise ToolUnavailableError(
                        f"Label Studio at {self.url} answered {answer.status_code} ({method} {path}): "
                        f"{_detail_of(answer)}"
                    )
            time.sleep(delay * random.uniform(0.5, 1.0))
        raise AssertionError("unreachable")

    def fetch(self, path: str) -> httpx.Response:
        """GET as it comes: the answer whatever its status, redirects not followed.

        Raises:
            ToolUnavailableError: the server does not answer.
        """
        try:
            return self._send("GET", path, None, None, None)
        except httpx.TransportError as error:
            raise ToolUnavailableError(f"Label Studio at {self.url} does not answer: {error}") from error

    def _sign_in(self) -> SyncClientWrapper:
        """The SDK's client, which holds no access token yet."""
        try:
            return SyncClientWrapper(
                api_key=self._token, base_url=f"{self.url}/", httpx_client=self._http, max_retries=0
            )
        except ApiError as error:
            raise self._refused(_detail(error.body)) from error

    def _send(
        self,
        method: str,
        path: str,
        body: object,
        params: Mapping[str, object] | None,
        files: Sequence[tuple[str, Any]] | None,
    ) -> httpx.Response:
        try:
            headers = self._sdk.get_headers()  # exchanges a personal token when need be
        except ApiError as error:
            if error.status_code in _LATER:
                return httpx.Response(error.status_code or 503, json={"detail": _detail(error.body)})
            raise self._refused(_detail(error.body)) from error
        except ValueError as error:  # the exchange was answered, but not with JSON
            raise LabelStudioError(
                f"{self.url} does not answer like Label Studio: {error}; check ELNET_LABEL_STUDIO__URL", 0, ""
            ) from error
        content = None
        if body is not None:
            content = json.dumps(body, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        return self._http.request(
            method,
            f"{self.url}{path}",
            params={key: str(value) for key, value in (params or {}).items()} or None,
            content=content,
            files=files,
            headers=headers,
        )

    def _result(self, answer: httpx.Response, method: str, path: str) -> Any:
        if answer.is_success:
            try:
                return answer.json() if answer.content else None
            except ValueError:
                return None
        detail = _detail_of(answer)
        if answer.status_code == 401 or (answer.status_code == 403 and "reserved network" not in detail):
            raise self._refused(detail)
        if answer.is_redirect:
            detail = f"redirected to {answer.headers.get('location')}; check ELNET_LABEL_STUDIO__URL"
        raise LabelStudioError(
            f"Label Studio at {self.url} refused {method} {path} ({answer.status_code}): {detail}",
            answer.status_code,
            detail,
        )

    def _refused(self, detail: str) -> TokenError:
        return TokenError(
            f"Label Studio at {self.url} refuses the token in {self._setting}: {detail.rstrip('.')}. Make a "
            "new one (sign in as its user, Account & Settings, Personal Access Token) and set it there; a "
            "legacy token works only if Organization, Access Token Settings allows it"
        )


def _detail_of(answer: httpx.Response) -> str:
    try:
        return _detail(answer.json())
    except ValueError:
        return answer.text.strip().splitlines()[0][:200] if answer.text.strip() else answer.reason_phrase


def _detail(body: object) -> str:
    """What Label Studio says of an error, on one line."""
    if not isinstance(body, Mapping):
        return str(body)[:500]
    said = [str(body.get("detail") or "")]
    errors = body.get("validation_errors")
    if isinstance(errors, Mapping):
        said += [f"{field}: {' '.join(map(str, texts))}" for field, texts in errors.items()]
    text = "; ".join(part for part in said if part and part != "Validation error")
    return (text or json.dumps(dict(body), default=str))[:500]
