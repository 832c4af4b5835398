"""Downloads that try to leave the named hosts, the size, or the public addresses."""

from __future__ import annotations

import pytest

from active_learning.ports import ImageUnavailableError, ToolUnavailableError
from backend.fetching import Fetcher, resolve, shown
from backend.tokens import Authorization

NAMES = {"tiles.example": ["127.0.0.1"], "rebound.example": ["10.0.0.7"], "six.example": ["::ffff:127.0.0.1"]}


def look_up(host: str, port: int) -> list[str]:
    if host in NAMES:
        return NAMES[host]
    return resolve(host, port)


def fetcher(home: str | None = None, allowed: tuple[str, ...] = (), token: str = "", **changes) -> Fetcher:
    authorization = Authorization(home, token) if home and token else None
    options = {"max_bytes": 1000, "timeout_s": 5.0, "resolver": look_up, **changes}
    return Fetcher(home, authorization, allowed, **options)


def body(fetched: Fetcher, url: str) -> bytes:
    with fetched.get(url) as chunks:
        return b"".join(chunks)


def test_label_studio_may_be_private_and_gets_the_token(server):
    server.answers["/data/upload/1/a.png"] = (200, {}, b"png")
    assert body(fetcher(server.url, token="legacy"), f"{server.url}/data/upload/1/a.png") == b"png"
    assert server.requests[0][1]["Authorization"] == "Token legacy"


def test_a_named_host_on_a_named_private_address_is_asked_by_its_name_without_the_token(server):
    server.answers["/a.png"] = (200, {}, b"png")
    allowed = ("tiles.example", "127.0.0.0/8")
    url = f"http://user:secret@tiles.example:{server.port}/a.png"
    assert body(fetcher("http://127.0.0.1:9", allowed, "legacy"), url) == b"png"
    headers = server.requests[0][1]
    assert headers["Host"] == f"tiles.example:{server.port}"
    assert "Authorization" not in headers


@pytest.mark.parametrize("host", [*NAMES, "127.0.0.1", "localhost"])
def test_private_addresses_are_refused_although_every_host_is_allowed(server, host):
    server.answers["/a.png"] = (200, {}, b"secret")
    with pytest.raises(ImageUnavailableError, match="private address"):
        body(fetcher(allowed=("*",)), f"http://{host}:{server.port}/a.png")
    assert server.requests == []


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "10.1.2.3", "192.168.0.1", "100.64.0.1", "0.0.0.0", "224.0.0.1"),
        *("::1", "fe80::1%eth0", "fd00::1", "2002:7f00:1::1", "64:ff9b::7f00:1"),
    ],
)
def test_every_kind_of_private_address(address):
    with pytest.raises(ImageUnavailableError, match="private address"):
        body(fetcher(allowed=("*",), resolver=lambda *_: [address]), "http://any.example/a.png")


def test_a_host_that_was_not_named_is_refused_before_it_is_looked_up():
    def never(*_):
        pytest.fail("looked up")

    with pytest.raises(ImageUnavailableError, match=r"'evil\.example' is not allowed"):
        body(fetcher(allowed=("good.example",), resolver=never), "http://evil.example/a.png")


def test_redirects_are_checked_at_every_hop(server):
    port = server.port
    server.answers["/open"] = (302, {"Location": f"http://rebound.example:{port}/x"}, b"")
    server.answers["/other"] = (302, {"Location": "http://evil.example/x"}, b"")
    server.answers["/file"] = (302, {"Location": "file:///etc/passwd"}, b"")
    server.answers["/around"] = (302, {"Location": "/around"}, b"")
    server.answers["/good"] = (302, {"Location": f"http://tiles.example:{port}/a.png"}, b"")
    server.answers["/a.png"] = (200, {}, b"png")
    fetched = fetcher(server.url, ("tiles.example", "rebound.example", "127.0.0.1"), "legacy")
    with pytest.raises(ImageUnavailableError, match=r"private address 10\.0\.0\.7"):
        body(fetched, f"{server.url}/open")
    with pytest.raises(ImageUnavailableError, match=r"'evil\.example' is not allowed"):
        body(fetched, f"{server.url}/other")
    with pytest.raises(ImageUnavailableError, match="no http or https"):
        body(fetched, f"{server.url}/file")
    with pytest.raises(ImageUnavailableError, match="more than 5 redirects"):
        body(fetched, f"{server.url}/around")
    assert body(fetched, f"{server.url}/good") == b"png"
    assert "Authorization" not in server.requests[-1][1]


def test_size_is_bounded_declared_or_not(server):
    server.answers["/a"] = (200, {}, b"x" * 1001)
    server.answers["/b"] = (200, {"Content-Length": "5000000"}, b"")
    server.answers["/c"] = (200, {"Content-Length": ""}, b"x" * 5000)  # until the connection closes
    server.answers["/exact"] = (200, {}, b"x" * 1000)
    fetched = fetcher(server.url)
    for path in "abc":
        with pytest.raises(ImageUnavailableError, match="larger than 1000 bytes"):
            body(fetched, f"{server.url}/{path}")
    assert len(body(fetched, f"{server.url}/exact")) == 1000


def test_what_breaks_off_is_told(server):
    server.answers["/a"] = (200, {"Content-Length": "900"}, b"x" * 10)
    with pytest.raises(ImageUnavailableError, match="broke off"):
        body(fetcher(server.url), f"{server.url}/a")


@pytest.mark.parametrize(
    ("path", "status", "error", "message"),
    [
        ("/data/local-files/", 404, ImageUnavailableError, "no local storage"),
        ("/data/upload/a.png", 404, ImageUnavailableError, "import it again"),
        ("/data/upload/a.png", 500, ImageUnavailableError, "import it again"),
        ("/data/upload/a.png", 403, ImageUnavailableError, "member of the project"),
        ("/data/upload/a.png", 401, ToolUnavailableError, "ELNET_LABEL_STUDIO__TOKEN"),
        ("/data/upload/a.png", 503, ToolUnavailableError, "503"),
    ],
)
def test_label_studios_refusals_have_their_cures(server, path, status, error, message):
    server.answers[path] = (status, {}, b"")
    with pytest.raises(error, match=message):
        body(fetcher(server.url, token="legacy"), f"{server.url}{path}?d=a.png")


def test_an_access_token_that_ran_out_is_renewed_once(server):
    given = iter([b'{"access": "old"}', b'{"access": "new"}'])
    server.answers["/api/token/refresh/"] = lambda _: (200, {}, next(given))

    def image(request):
        return (200 if request.headers["Authorization"] == "Bearer new" else 401), {}, b"png"

    server.answers["/data/a.png"] = image
    assert body(fetcher(server.url, token="a.b.c"), f"{server.url}/data/a.png") == b"png"


def test_a_token_that_is_refused_is_no_fault_of_the_image(server):
    server.answers["/api/token/refresh/"] = (401, {}, b"{}")
    with pytest.raises(ToolUnavailableError, match="make a new one"):
        body(fetcher(server.url, token="a.b.c"), f"{server.url}/data/a.png")


def test_hosts_that_do_not_answer():
    with pytest.raises(ToolUnavailableError, match="does not answer"):
        body(fetcher("http://127.0.0.1:9"), "http://127.0.0.1:9/a.png")
    with pytest.raises(ImageUnavailableError, match="does not answer"):
        body(fetcher(allowed=("127.0.0.1",)), "http://127.0.0.1:9/a.png")
    with pytest.raises(ImageUnavailableError, match="has no address"):
        body(fetcher(allowed=("nowhere.invalid",)), "http://nowhere.invalid/a.png")


def test_errors_name_addresses_without_what_signs_them():
    assert shown("https://b.example/a.png?X-Amz-Signature=abc") == "https://b.example/a.png"
    assert shown("/data/local-files/?d=a/b.png") == "/data/local-files/?d=a/b.png"
    assert len(shown("data:image/png;base64," + "A" * 10_000)) < 400
