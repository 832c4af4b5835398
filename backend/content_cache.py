"""A folder that keeps downloads under the hash of their content."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from active_learning.ports import ToolUnavailableError


class ContentCache:
    """Keys -> files. Safe under threads and processes: each file appears whole or not at all.

    Args:
        folder: made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> Path | None:
        """The file that was put under this key."""
        try:
            digest = self._note(key).read_text()
        except FileNotFoundError:
            return None
        content = self._content(digest)
        return content if content.is_file() else None

    def put(self, key: str, chunks: Iterable[bytes]) -> Path:
        """Store content; what the chunks raise comes through, and nothing half stays.

        Raises:
            ToolUnavailableError: the folder cannot be written (full disk, no rights): try again later.
        """
        content = self._write(chunks, self._content)
        self._write([content.stem.encode()], lambda _: self._note(key))
        return content

    def _write(self, chunks: Iterable[bytes], place: Callable[[str], Path]) -> Path:
        """Write a temporary file, then move it to where its sha256 belongs."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".part-")
            part = Path(name)
            try:
                digest = hashlib.sha256()
                with os.fdopen(descriptor, "wb") as file:
                    for chunk in chunks:
                        digest.update(chunk)
                        file.write(chunk)
                    file.flush()
                    os.fsync(file.fileno())
                target = place(digest.hexdigest())
                target.parent.mkdir(parents=True, exist_ok=True)
                return part.replace(target)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise ToolUnavailableError(
                f"the image cache {self._folder} cannot be written: {error.strerror or error}; "
                "free some space or correct ELNET_STATE"
            ) from error

    def _content(self, digest: str) -> Path:
        return self._folder / "content" / digest[:2] / f"{digest}.bin"

    def _note(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._folder / "keys" / digest[:2] / digest
