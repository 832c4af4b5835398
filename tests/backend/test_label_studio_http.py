"""Requests to Label Studio: what is retried, what is told, both kinds of token."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from active_learning.ports import ToolUnavailableError
from backend import label_studio_http as subject
from backend.label_studio_http import Connection, LabelStudioError
from backend.tokens import TokenError

OK = (200, {"Content-Type": "application/json"}, b'{"id": 7}')


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(subject, "_DELAYS_S", (0.0, 0.0, 0.0))


@pytest.fixture
def connect(server) -> Iterator[Callable[..., Connection]]:
    made: list[Connection] = []

    def make(url: str | None = None, token: str = "a" * 40) -> Connection:
        made.append(Connection(url or server.url, token, "ELNET_LABEL_STUDIO__TOKEN", timeout_s=5))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def then(*answers):
    """One answer after the other."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def test_a_legacy_token_goes_as_it_is(server, connect):
    server.answers["/api/x"] = OK
    assert connect().get("/api/x", project=3) == {"id": 7}
    path, headers = server.requests[0]
    assert path == "/api/x?project=3"
    assert headers["Authorization"] == "Token " + "a" * 40


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_passes_is_retried(server, connect, status):
    server.answers["/api/x"] = then((status, {}, b"busy"), (status, {}, b"busy"), OK)
    assert connect().get("/api/x") == {"id": 7}
    assert len(server.requests) == 3


def test_what_does_not_pass_is_told(server, connect):
    server.answers["/api/x"] = (502, {}, b"<html>bad gateway</html>")
    with pytest.raises(ToolUnavailableError, match=r"answered 502 \(GET /api/x\): <html>bad gateway"):
        connect().get("/api/x")
    assert len(server.requests) == 4


def test_a_post_is_repeated_only_where_that_does_no_harm(server, connect):
    server.answers["/api/x"] = then((502, {}, b""), OK)
    with pytest.raises(ToolUnavailableError):
        connect().post("/api/x", {})
    server.answers["/api/x"] = then((502, {}, b""), OK)
    assert connect().post("/api/x", {}, repeatable=True) == {"id": 7}
    server.answers["/api/x"] = then((503, {}, b""), OK)  # says that it did nothing
    assert connect().post("/api/x", {}) == {"id": 7}


def test_nobody_listens(connect):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ToolUnavailableError, match="does not answer"):
        connect(url).get("/api/x")


@pytest.fixture
def cut_off() -> Iterator[tuple[str, list[bytes]]]:
    """A server that takes requests and hangs up."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(65536))

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_connection_that_breaks_off(connect, cut_off):
    url, asked = cut_off
    with pytest.raises(ToolUnavailableError):
        connect(url).get("/api/x")
    assert len(asked) == 4
    with pytest.raises(ToolUnavailableError):
        connect(url).post("/api/x", {})
    assert len(asked) == 5  # perhaps it was done: not again


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_names_itself_and_the_cure(server, connect, status):
    server.answers["/api/x"] = (status, {}, b'{"detail": "Invalid token."}')
    with pytest.raises(
        TokenError, match=r"ELNET_LABEL_STUDIO__TOKEN: Invalid token\. Make a new one.*Personal Access"
    ):
        connect().get("/api/x")


def test_a_refused_address_is_no_refused_token(server, connect):
    detail = "URL resolves to a reserved network address (block: 127.0.0.0/8)"
    server.answers["/api/x"] = (403, {}, json.dumps({"detail": detail}).encode())
    with pytest.raises(LabelStudioError, match="reserved network address") as caught:
        connect().post("/api/x", {})
    assert caught.value.status == 403


def test_errors_of_validation_are_told_on_one_line(server, connect):
    body = {"detail": "Validation error", "validation_errors": {"title": ["too long", "taken"], "x": ["y"]}}
    server.answers["/api/x"] = (400, {}, json.dumps(body).encode())
    with pytest.raises(
        LabelStudioError, match=r"POST /api/x \(400\): title: too long taken; x: y$"
    ) as caught:
        connect().post("/api/x", {})
    assert caught.value.status == 400


def test_what_is_not_there(connect):
    with pytest.raises(LabelStudioError, match="404"):
        connect().get("/api/gone")


def test_a_redirect_is_not_followed(server, connect):
    server.answers["/api/x"] = (302, {"Location": "https://elsewhere/login"}, b"")
    with pytest.raises(LabelStudioError, match="redirected to https://elsewhere/login; check ELNET_LABEL"):
        connect().get("/api/x")


def test_nan_is_never_sent(server, connect):
    with pytest.raises(ValueError, match="not JSON compliant"):
        connect().post("/api/x", {"score": float("nan")})
    assert not server.requests


def jwt(expires: int, kind: str) -> str:
    import base64

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part({'exp': expires, 'token_type': kind})}.c2ln"


FAR = 4_000_000_000


def test_a_personal_token_is_exchanged_once_and_again_when_it_expires(server, connect):
    old, new = jwt(1, "access"), jwt(FAR, "access")
    answers = [json.dumps({"access": token}).encode() for token in (old, new)]
    server.answers["/api/token/refresh/"] = then(*((200, {}, body) for body in answers))
    server.answers["/api/x"] = OK
    connection = connect(token=jwt(FAR, "refresh"))
    for _ in range(3):
        connection.get("/api/x")
    sent = [headers["Authorization"] for path, headers in server.requests if path == "/api/x"]
    assert sent == [f"Bearer {old}", f"Bearer {new}", f"Bearer {new}"]
    assert sum(path == "/api/token/refresh/" for path, _ in server.requests) == 2


def test_clocks_that_differ(server, connect):
    bodies = [json.dumps({"access": jwt(FAR + i, "access")}).encode() for i in range(2)]
    server.answers["/api/token/refresh/"] = then(*((200, {}, body) for body in bodies))
    server.answers["/api/x"] = then((401, {}, b'{"detail": "Token is expired"}'), OK)
    assert connect(token=jwt(FAR, "refresh")).get("/api/x") == {"id": 7}
    assert [path for path, _ in server.requests] == ["/api/token/refresh/", "/api/x"] * 2


def test_a_revoked_personal_token(server, connect):
    server.answers["/api/token/refresh/"] = (401, {}, b'{"detail": "Token is blacklisted"}')
    with pytest.raises(TokenError, match="ELNET_LABEL_STUDIO__TOKEN: Token is blacklisted"):
        connect(token=jwt(FAR, "refresh")).get("/api/x")


def test_an_expired_personal_token(connect):
    with pytest.raises(TokenError, match="has expired"):
        connect(token=jwt(1, "refresh"))


def test_an_exchange_that_fails_for_now_is_retried(server, connect):
    body = json.dumps({"access": jwt(FAR, "access")}).encode()
    server.answers["/api/token/refresh/"] = then((503, {}, b'{"detail": "busy"}'), (200, {}, body))
    server.answers["/api/x"] = OK
    assert connect(token=jwt(FAR, "refresh")).get("/api/x") == {"id": 7}


def test_a_server_that_is_no_label_studio(server, connect):
    server.answers["/api/token/refresh/"] = (200, {}, b"<html>hello</html>")
    with pytest.raises(LabelStudioError, match="does not answer like Label Studio"):
        connect(token=jwt(FAR, "refresh")).get("/api/x")


def test_a_server_below_a_path(server, connect):
    body = json.dumps({"access": jwt(FAR, "access")}).encode()
    server.answers["/tools/ls/api/token/refresh/"] = (200, {}, body)
    server.answers["/tools/ls/api/x"] = OK
    assert connect(f"{server.url}/tools/ls", jwt(FAR, "refresh")).get("/api/x") == {"id": 7}
