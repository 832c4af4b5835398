"""One file over HTTP, whole or not at all: resumed after an interruption, refused on a wrong checksum."""

from __future__ import annotations

import errno
import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from model.errors import ELNetError

Progress = Callable[[str, int, int], None]  # what, bytes done, bytes in all (0: unknown)

CONNECT_TIMEOUT_S: Final = 5.0  # a machine without a network should not wait
READ_TIMEOUT_S: Final = 30.0
ATTEMPTS: Final = 4
RETRY_S: Final = 0.2  # then four times as long, and so on
_CHUNK: Final = 2**20


class DownloadError(ELNetError):
    """A download failed; the text says why."""


class ChecksumError(DownloadError):
    """A file is not the one that was meant."""


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty folder for work in progress; what a killed predecessor left there goes first."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def download(url: str, target: Path, sha256: str, *, progress: Progress | None = None) -> None:
    """Fetch a file, going on where an earlier attempt stopped.

    What has come so far lies in `<target>.part`; the target appears only when it is complete and its
    checksum right. The caller keeps two processes from fetching the same target at once. Proxies are taken
    from the environment (HTTPS_PROXY, NO_PROXY).

    Raises:
        ChecksumError: the server's file is another one; it is removed.
        DownloadError: no connection, an HTTP error, or no space.
    """
    if target.exists() and sha256_of(target) == sha256:  # left by a predecessor killed before it used it
        return
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    resumed = part.exists() and part.stat().st_size > 0
    _fetch(url, part, progress)
    if resumed and sha256_of(part) != sha256:  # what was left over may be of another file: once more, whole
        part.unlink()
        _fetch(url, part, progress)
    actual = sha256_of(part)
    if actual != sha256:
        part.unlink()
        raise ChecksumError(f"{url} has sha256 {actual}, expected {sha256}: refused and removed")
    part.replace(target)


def _fetch(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` until the server has no more, connecting again after a break that follows progress."""
    for attempt in range(ATTEMPTS):
        size = part.stat().st_size if part.exists() else 0
        try:
            if _append(url, part, size, progress):
                return
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code != http.client.TOO_MANY_REQUESTS:
                raise DownloadError(f"{url} answered {error.code} {error.reason}") from error
            reason = f"the server answered {error.code}"
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if not part.exists() or part.stat().st_size <= size:  # out of reach: waiting would only cost time
                raise DownloadError(f"{url} cannot be reached: {reason}") from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                part.unlink(missing_ok=True)
                raise DownloadError(f"no space left in {part.parent} for {url}") from error
            raise DownloadError(f"{part} cannot be written: {error}") from error
        if attempt + 1 < ATTEMPTS:
            time.sleep(RETRY_S * 4**attempt)
    raise DownloadError(f"{url} broke off {ATTEMPTS} times ({reason}); what came is kept, try again later")


def _append(url: str, part: Path, size: int, progress: Progress | None) -> bool:
    """One request. Returns whether everything has come."""
    request = urllib.request.Request(url, headers={"User-Agent": "elnet-loop"})  # noqa: S310 - see _OPENER
    if size:
        request.add_header("Range", f"bytes={size}-")
    try:
        response = _OPENER.open(request, timeout=CONNECT_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{size}":
            return True  # it had been complete already
        part.unlink()
        return False
    with response, part.open("ab" if response.status == http.client.PARTIAL_CONTENT else "wb") as file:
        done = file.tell()
        length = int(response.headers.get("Content-Length") or 0)
        if length > shutil.disk_usage(part.parent).free:
            raise OSError(errno.ENOSPC, "no space left on device")
        return _copy(response, file, done, done + length if length else 0, part.name, progress)


def _copy(
    response: http.client.HTTPResponse,
    file: IO[bytes],
    done: int,
    total: int,
    name: str,
    progress: Progress | None,
) -> bool:
    while chunk := response.read(_CHUNK):
        file.write(chunk)
        done += len(chunk)
        if progress:
            progress(f"downloading {name.removesuffix('.part')}", done, total)
    return total == 0 or done == total


class _PatientConnection(http.client.HTTPConnection):
    """Short patience while connecting, more while reading."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _PatientSecureConnection(http.client.HTTPSConnection):
    """The same over TLS."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(READ_TIMEOUT_S)


class _PatientHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PatientConnection, req)


class _PatientSecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_PatientSecureConnection, req)


# An opener of our own: no file: or ftp: URLs, and the two patiences.
_OPENER: Final = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    _PatientHandler(),
    _PatientSecureHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPRedirectHandler(),
    urllib.request.HTTPErrorProcessor(),
    urllib.request.UnknownHandler(),
):
    _OPENER.add_handler(_handler)
