"""HTTP downloads that cannot be turned against the network they run in.

Task data is written by whoever can import tasks, so an address in it is not trusted: only hosts that were
named may be asked, at every hop of a redirect; the name is resolved here and the connection goes to the very
address that was checked (a second look-up could give another one); private addresses are refused unless they
were named themselves; the size is bounded while streaming.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import httpx

from active_learning.ports import ImageUnavailableError, ToolUnavailableError
from backend.tokens import Authorization, TokenError

_HOPS = 5
_CHUNK = 1 << 18
_SHOWN = 300
_AWAY = {429, 502, 503, 504}  # not 500: that is its answer to an upload that it does not know
_LONGEST_S = 600.0  # for one download, however slowly it drips

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolver = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """IP addresses of a host, in the system's order.

    Raises:
        OSError: there are none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def shown(uri: str) -> str:
    """An address as errors may name it: short, and without what signs a request."""
    if "/data/local-files/?" not in uri:
        uri = uri.partition("?")[0]
    return uri if len(uri) <= _SHOWN else f"{uri[:_SHOWN]}..."


def too_large(uri: str, max_bytes: int) -> ImageUnavailableError:
    """The error of a file beyond the limit."""
    return ImageUnavailableError(
        f"{shown(uri)}: larger than {max_bytes} bytes; cut it into tiles, or raise media.max_bytes "
        "(ELNET_MEDIA__MAX_BYTES)"
    )


class Fetcher:
    """Downloads from Label Studio and from named hosts.

    Args:
        label_studio_url: its server; may be on a private address, and alone gets the token.
        authorization: of a user of that server.
        allowed_hosts: names, addresses and networks; "*" for every public host.
        max_bytes: of one file.
        timeout_s: of connecting and of each read.
        resolver: name -> addresses.
    """

    def __init__(
        self,
        label_studio_url: str | None,
        authorization: Authorization | None,
        allowed_hosts: Iterable[str],
        max_bytes: int,
        timeout_s: float,
        resolver: Resolver = resolve,
    ) -> None:
        self._home = httpx.URL(label_studio_url) if label_studio_url else None
        self._authorization = authorization
        self._names, self._networks = _split(allowed_hosts)
        self._max_bytes = max_bytes
        self._resolve = resolver
        # Proxies of the environment would resolve names themselves, past the checks made here.
        # A connection is never kept: it is made to an address, and must not serve another name there.
        self._client = httpx.Client(
            timeout=timeout_s, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0)
        )

    @contextmanager
    def get(self, url: str) -> Iterator[Iterator[bytes]]:
        """Ask for a file and follow redirects, each checked; gives the chunks of its content.

        Raises:
            ImageUnavailableError: refused here, refused there, not found, or too large (while reading).
            ToolUnavailableError: Label Studio does not answer.
        """
        target, renewed = self._parse(url, shown(url)), False
        url = shown(url)
        for _ in range(_HOPS + 1):
            with self._ask(target, url, fresh=renewed) as answer:
                if answer.has_redirect_location:
                    target = self._parse(str(target.join(answer.headers["location"])), url)
                    continue
                if answer.status_code == 401 and self._is_home(target) and self._exchanges and not renewed:
                    renewed = True
                    continue
                self._check_status(answer, target, url)
                yield self._bounded(answer, url)
                return
        raise ImageUnavailableError(f"{url}: more than {_HOPS} redirects")

    @property
    def _exchanges(self) -> bool:
        return self._authorization is not None and self._authorization.exchanged

    def _is_home(self, url: httpx.URL) -> bool:
        return self._home is not None and _origin(url) == _origin(self._home)

    def _parse(self, text: str, url: str) -> httpx.URL:
        """An address that may be asked, as far as its name says."""
        try:
            target = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise ImageUnavailableError(f"{url}: not an address: {error}") from None
        if target.scheme not in {"http", "https"} or not target.host:
            raise ImageUnavailableError(f"{url}: leads to {shown(text)}, which is no http or https address")
        if not self._is_home(target) and not self._is_named(target.host):
            raise ImageUnavailableError(
                f"{url}: the host {target.host!r} is not allowed; add it to media.allowed_hosts "
                "(ELNET_MEDIA__ALLOWED_HOSTS) if its images may be fetched"
            )
        return target

    def _is_named(self, host: str) -> bool:
        if "*" in self._names or host.lower() in self._names:
            return True
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)

    def _address(self, target: httpx.URL, url: str) -> str:
        """The first address of the host that may be connected to."""
        try:
            found = self._resolve(target.host, _origin(target)[2])
        except (OSError, UnicodeError) as error:
            raise ImageUnavailableError(f"{url}: the host {target.host!r} has no address ({error})") from None
        if self._is_home(target):
            return found[0]
        for text in found:
            address = ipaddress.ip_address(text.partition("%")[0])
            if _is_public(address) or any(address in network for network in self._networks):
                return text
        raise ImageUnavailableError(
            f"{url}: the host {target.host!r} has the private address {found[0]}; if its images may be "
            f"fetched, add {found[0]} to media.allowed_hosts as well"
        )

    @contextmanager
    def _ask(self, target: httpx.URL, url: str, *, fresh: bool) -> Iterator[httpx.Response]:
        """One request to the checked address, with the name kept for TLS and for the Host header."""
        home = self._is_home(target)
        try:
            headers = {"Host": target.netloc.decode(), "Accept-Encoding": "identity"}
            if home and self._authorization:
                headers["Authorization"] = self._authorization.header(fresh=fresh)
            request = self._client.build_request(
                "GET",
                target.copy_with(host=self._address(target, url), username="", password=""),
                headers=headers,
                extensions={"sni_hostname": target.host},
            )
            answer = self._client.send(request, stream=True)
        except TokenError as error:  # no fault of the image: with another token it goes through
            raise ToolUnavailableError(str(error)) from error
        except httpx.TransportError as error:
            if home:
                raise ToolUnavailableError(f"Label Studio does not answer ({url}): {error}") from error
            raise ImageUnavailableError(f"{url}: {target.host} does not answer: {error}") from error
        try:
            yield answer
        finally:
            answer.close()

    def _check_status(self, answer: httpx.Response, target: httpx.URL, url: str) -> None:
        status = answer.status_code
        if answer.is_success:
            return
        if not self._is_home(target):
            raise ImageUnavailableError(f"{url}: {target.host} answered {status}")
        if status in _AWAY:
            raise ToolUnavailableError(f"Label Studio answered {status} ({url})")
        if status == 401:
            raise ToolUnavailableError(
                f"Label Studio refused the token ({url}): check ELNET_LABEL_STUDIO__TOKEN (elnet doctor)"
            )
        if status == 403:
            cure = "the user of ELNET_LABEL_STUDIO__TOKEN must be a member of the project (elnet doctor)"
        elif target.path.startswith("/data/local-files"):
            cure = "the file is gone, or no local storage of the project covers it (elnet doctor)"
        else:
            cure = "the file is gone; import it again or delete the task"
        raise ImageUnavailableError(f"{url}: Label Studio answered {status}: {cure}")

    def _bounded(self, answer: httpx.Response, url: str) -> Iterator[bytes]:
        """The content, until it is larger or slower than allowed."""
        declared = answer.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > self._max_bytes:
            raise too_large(url, self._max_bytes)
        size, end = 0, time.monotonic() + _LONGEST_S
        try:
            for chunk in answer.iter_bytes(_CHUNK):
                size += len(chunk)
                if size > self._max_bytes:
                    raise too_large(url, self._max_bytes)
                if time.monotonic() > end:
                    raise ImageUnavailableError(f"{url}: not complete after {_LONGEST_S:.0f} s")
                yield chunk
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise ImageUnavailableError(f"{url}: the download broke off: {error}; try again") from error


def _split(
    allowed: Iterable[str],
) -> tuple[set[str], list[ipaddress.IPv4Network | ipaddress.IPv6Network]]:
    """Names, and addresses or networks."""
    names, networks = set(), []
    for entry in allowed:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            names.add(entry.lower())
    return names, networks


def _is_public(address: Address) -> bool:
    """Whether an address is out in the world, also through the ways that IPv6 wraps an IPv4 address."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        if address.sixtofour or address.teredo or address in ipaddress.ip_network("64:ff9b::/32"):
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme, 0)
