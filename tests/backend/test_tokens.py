"""Both kinds of token, and a server that refuses or is away."""

from __future__ import annotations

import json

import pytest

from active_learning.ports import ToolUnavailableError
from backend.tokens import Authorization, TokenError

PAT = "aaa.bbb.ccc"


def test_a_legacy_token_is_sent_as_it_is():
    assert Authorization("http://127.0.0.1:9", "0123abcd").header() == "Token 0123abcd"


def test_a_personal_token_is_exchanged_once_and_again_when_asked(server):
    given = iter(["one", "two"])

    def refresh(request):
        length = int(request.headers["Content-Length"])
        assert json.loads(request.rfile.read(length)) == {"refresh": PAT}
        return 200, {}, json.dumps({"access": next(given)}).encode()

    server.answers["/api/token/refresh/"] = refresh
    authorization = Authorization(server.url, PAT)
    assert [authorization.header(), authorization.header()] == ["Bearer one"] * 2
    assert authorization.header(fresh=True) == "Bearer two"


@pytest.mark.parametrize("answer", [(401, {}, b'{"detail": "no"}'), (200, {}, b"<html>"), (200, {}, b"[]")])
def test_a_refused_token_is_named_with_its_cure(server, answer):
    server.answers["/api/token/refresh/"] = answer
    with pytest.raises(TokenError, match="make a new one"):
        Authorization(server.url, PAT).header()


def test_a_server_that_is_away_may_be_asked_again(server):
    server.answers["/api/token/refresh/"] = (503, {}, b"")
    with pytest.raises(ToolUnavailableError, match="503"):
        Authorization(server.url, PAT).header()
    with pytest.raises(ToolUnavailableError, match="does not answer"):
        Authorization("http://127.0.0.1:9", PAT).header()
