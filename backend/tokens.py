"""Label Studio's two kinds of token -> the Authorization header.

A legacy token is sent as it is. A personal access token is a JWT that only refreshes: it is exchanged for an
access token, which is valid for five minutes.
"""

from __future__ import annotations

import threading
import time

import httpx

from active_learning.ports import ToolUnavailableError
from model.errors import ELNetError

_KEEP_S = 240.0  # an access token lives 300 s


class TokenError(ELNetError):
    """Label Studio refuses the token."""


class Authorization:
    """The Authorization header of one user of one server. Safe under threads.

    Args:
        url: of the server, without trailing slash.
        token: legacy or personal access token.
        timeout_s: of the exchange.
    """

    def __init__(self, url: str, token: str, timeout_s: float = 30.0) -> None:
        self._url, self._token, self._timeout_s = url, token, timeout_s
        self._access: str | None = None
        self._until = 0.0
        self._lock = threading.Lock()

    @property
    def exchanged(self) -> bool:
        """Whether the token is a personal access token."""
        return self._token.count(".") == 2

    def header(self, *, fresh: bool = False) -> str:
        """The header's value.

        Args:
            fresh: exchange again although the access token should still be valid.

        Raises:
            TokenError: the server refuses the token.
            ToolUnavailableError: the server does not answer.
        """
        if not self.exchanged:
            return f"Token {self._token}"
        with self._lock:
            if fresh or self._access is None or time.monotonic() >= self._until:
                self._access = self._exchange()
                self._until = time.monotonic() + _KEEP_S
            return f"Bearer {self._access}"

    def _exchange(self) -> str:
        address = f"{self._url}/api/token/refresh/"
        try:
            answer = httpx.post(
                address, json={"refresh": self._token}, timeout=self._timeout_s, trust_env=False
            )
        except httpx.TransportError as error:
            raise ToolUnavailableError(f"Label Studio at {self._url} does not answer: {error}") from error
        if answer.status_code >= 500:
            raise ToolUnavailableError(f"Label Studio at {self._url} answered {answer.status_code}")
        try:
            access = answer.json()["access"]
        except (ValueError, KeyError, TypeError):
            raise TokenError(
                f"Label Studio at {self._url} refused the personal access token ({answer.status_code}): "
                "make a new one under Account & Settings and set ELNET_LABEL_STUDIO__TOKEN"
            ) from None
        return str(access)
