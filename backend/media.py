"""The pixels of a task: Label Studio's uploads and local files, HTTP, S3.

An image is taken to be what its address names for good: fetched once, kept on disk under the hash of its
content. Files under Label Studio's document root that this machine sees are read where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fsspec

from active_learning.ports import ImageUnavailableError
from backend.content_cache import ContentCache
from backend.fetching import Fetcher, Resolver, resolve, shown, too_large
from backend.settings import MediaSettings, Settings
from backend.tokens import Authorization
from model.raster import Raster, RasterError, open_raster

_LOCAL_FILES = "/data/local-files/"
_CHUNK = 1 << 20


class MediaStore:
    """An `ImageSource` that fetches safely and keeps what it fetched. Safe under threads and processes.

    Args:
        settings: limits and allowed hosts.
        label_studio_url: base address of the server, or None: then only other sources can be fetched.
        token: legacy or personal access token of a user who sees the project.
        document_root: Label Studio's local files root, where this machine sees it.
        cache: folder for what was fetched; made when needed.
        resolver: host name and port -> addresses.
    """

    def __init__(
        self,
        settings: MediaSettings,
        label_studio_url: str | None,
        token: str | None,
        document_root: Path | None,
        cache: Path,
        resolver: Resolver = resolve,
    ) -> None:
        self._settings = settings
        self._home = label_studio_url.rstrip("/") if label_studio_url else None
        authorization = Authorization(self._home, token, settings.timeout_s) if self._home and token else None
        self._fetcher = Fetcher(
            self._home,
            authorization,
            settings.allowed_hosts,
            settings.max_bytes,
            settings.timeout_s,
            resolver,
        )
        self._root = document_root.resolve() if document_root else None
        self._cache = ContentCache(cache)

    @classmethod
    def from_settings(cls, settings: Settings) -> MediaStore:
        """The store that an installation's settings describe; its cache is in the state folder."""
        token = settings.label_studio.token
        return cls(
            settings.media,
            settings.label_studio.url,
            token.get_secret_value() if token else None,
            settings.media_root,
            settings.state / "fetched",
        )

    def open(self, image_uri: str) -> Raster:
        """Read an image.

        Args:
            image_uri: as the task data holds it.

        Raises:
            ImageUnavailableError: it cannot be had, or is no image; names the uri and the cure.
            ToolUnavailableError: Label Studio does not answer, or the cache cannot be written.
        """
        path = self.fetch(image_uri)
        try:
            return open_raster(path, name=shown(image_uri), max_pixels=self._settings.max_pixels)
        except RasterError as error:
            raise ImageUnavailableError(str(error)) from error

    def fetch(self, image_uri: str) -> Path:
        """A file on this machine with the image's bytes. Not to be written to.

        Raises:
            ImageUnavailableError: as `open`.
            ToolUnavailableError: as `open`.
        """
        uri = image_uri.strip()
        if not uri:
            raise ImageUnavailableError("the task names no image; delete it or import it again")
        try:
            urlsplit(uri)
        except ValueError as error:
            raise ImageUnavailableError(f"{shown(uri)}: not an address: {error}") from None
        key = f"{self._home}\n{uri}"  # /data/... means another image on another server
        return self._local(uri) or self._cache.get(key) or self._cache.put(key, self._chunks(uri))

    def _chunks(self, uri: str) -> Iterator[bytes]:
        """The bytes of an address."""
        scheme = urlsplit(uri).scheme.lower()
        if scheme in {"http", "https"}:
            return self._download(uri)
        if scheme == "s3":
            return self._from_s3(uri)
        if scheme or not uri.startswith("/") or uri.startswith("//"):
            raise ImageUnavailableError(
                f"{shown(uri)}: images are fetched from Label Studio (/data/...), http, https and s3:// only"
            )
        if self._home is None:
            raise ImageUnavailableError(
                f"{shown(uri)}: is kept by Label Studio, but no server is named; set ELNET_LABEL_STUDIO__URL"
            )
        base = urlsplit(self._home)
        has_sub_path = base.path and uri.startswith(f"{base.path}/")
        return self._download(f"{base.scheme}://{base.netloc}{uri}" if has_sub_path else f"{self._home}{uri}")

    def _download(self, url: str) -> Iterator[bytes]:
        with self._fetcher.get(url) as chunks:
            yield from chunks

    def _from_s3(self, uri: str) -> Iterator[bytes]:
        endpoint = self._settings.s3_endpoint
        options: dict[str, Any] = {"endpoint_url": endpoint} if endpoint else {}
        size = 0
        try:
            with fsspec.filesystem("s3", **options).open(uri, "rb") as file:
                while chunk := file.read(_CHUNK):
                    size += len(chunk)
                    if size > self._settings.max_bytes:
                        raise too_large(uri, self._settings.max_bytes)
                    yield chunk
        except ImageUnavailableError:
            raise
        except ImportError as error:
            raise ImageUnavailableError(
                f"{shown(uri)}: s3 needs a driver; run `pip install 'elnet-loop[s3]'`"
            ) from error
        except Exception as error:
            # The edge of a foreign library: botocore's errors for absent credentials, buckets and servers
            # share no base class that could be named without importing it.
            raise ImageUnavailableError(
                f"{shown(uri)}: cannot be read ({type(error).__name__}: {error}); check the address, the "
                "credentials (AWS_ACCESS_KEY_ID, ...) and media.s3_endpoint"
            ) from error

    def _local(self, uri: str) -> Path | None:
        """The file under the document root, if this machine sees it there and may look."""
        path = uri.removeprefix(self._home or "")
        if self._root is None or not path.startswith(_LOCAL_FILES):
            return None
        relative = parse_qs(urlsplit(path).query).get("d", [""])[0]
        try:
            file = (self._root / relative.lstrip("/")).resolve()
            if not relative or not file.is_relative_to(self._root) or not file.is_file():
                return None  # outside, or not there: Label Studio, asked over HTTP, decides
            size = file.stat().st_size
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, a loop of links
            raise ImageUnavailableError(f"{shown(uri)}: cannot be read: {error}") from error
        if size > self._settings.max_bytes:
            raise too_large(uri, self._settings.max_bytes)
        return file
