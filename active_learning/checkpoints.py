"""Where the checkpoints of model versions lie, and the one place that turns a version into a folder.

The ledger holds for each version a folder, which is used where it stands, or the address of one that
machines share: file:///... or s3://... An address ends with the sha256 of the checkpoint's card, and the card
holds that of the weights: whatever is fetched can be told from anything else.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock
from fsspec.core import url_to_fs

from active_learning.ledger import ModelVersion
from model.cache_root import cache_root
from model.checkpoint import CARD, WEIGHTS, CheckpointError, read_card
from model.download import scratch_folder, sha256_of
from model.errors import ELNetError

_PARTS: Final = (WEIGHTS, CARD)  # in this order: a card that is there says that the weights are
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CREDENTIALS: Final = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")  # botocore's
_NO_BUCKET: Final = "make the bucket, or name another one in ELNET_FILES"


class FilesError(ELNetError):
    """Shared files are absent, damaged or refused; the text says which, and what to do."""


class FilesUnavailableError(FilesError):
    """The server of the shared files did not answer; the same call may go through later."""


class Checkpoints:
    """Keeps checkpoints where every machine finds them, and fetches them from there. Safe under processes.

    Args:
        shared: a folder that all machines mount, or s3://bucket/prefix; None: checkpoints stay where they
            were made, for this machine or those that mount that folder.
        endpoint: URL of the S3 server; None: AWS, or what AWS_ENDPOINT_URL names.
    """

    def __init__(self, shared: str | None = None, endpoint: str | None = None) -> None:
        if shared is not None and "://" not in shared:
            shared = f"file://{Path(shared).expanduser().resolve()}"
        self._shared = shared and shared.rstrip("/")
        self._endpoint = endpoint

    def check(self) -> None:
        """Make sure that checkpoints can be stored.

        Raises:
            FilesError, FilesUnavailableError: as `keep`.
        """
        if self._shared is None:
            return
        with _telling(self._shared, _NO_BUCKET):
            files, root = self._open(self._shared)
            files.pipe_file(f"{root}/models/.writable", b"elnet-loop keeps model versions here\n")

    def keep(self, folder: Path) -> str:
        """Store a checkpoint for good, and read it back. Safe to repeat.

        Returns:
            What the ledger is to hold: the folder itself, or the address that other machines know it by.

        Raises:
            FilesError: it cannot be stored, or came back changed.
            FilesUnavailableError: the server does not answer.
        """
        if self._shared is None:
            return str(folder)
        address = f"{self._shared}/models/{sha256_of(folder / CARD)}"
        with _telling(address, _NO_BUCKET):
            files, root = self._open(address)
            for name in _PARTS:
                there, size = f"{root}/{name}", (folder / name).stat().st_size
                if not (files.exists(there) and files.size(there) == size):
                    files.put_file(str(folder / name), there)
        self.fetch(address)
        return address

    def folder(self, named: str) -> Path:
        """The folder of this machine that a path or an address names.

        Raises:
            FilesError: as `fetch`.
        """
        return self.fetch(named) if "://" in named else Path(named)

    def local(self, version: ModelVersion) -> Path:
        """A folder of this machine that holds a version's checkpoint, the one that was registered.

        Raises:
            CheckpointError: it is not there, or is another one.
            FilesError: as `fetch`.
        """
        folder = self.folder(version.path)
        try:
            found = read_card(folder).weights_sha256
        except CheckpointError as error:
            raise CheckpointError(
                f"{version.name}: {error}. It was kept in that folder alone: mount or copy it to this "
                "machine; later versions are shared where ELNET_FILES is set"
            ) from error
        if found != version.sha256:
            raise CheckpointError(
                f"{folder} is not {version.name}: its weights have sha256 {found[:16]}..., the ledger says "
                f"{version.sha256[:16]}...; restore it from a copy, or roll back (`elnet models rollback`)"
            )
        return folder

    def fetch(self, address: str) -> Path:
        """A folder of this machine with the checkpoint of an address: fetched once, and checked each time.

        Raises:
            FilesError: it is absent, damaged or refused.
            FilesUnavailableError: the server does not answer.
        """
        digest = address.rstrip("/").rpartition("/")[2]
        if not _SHA256.fullmatch(digest):
            raise FilesError(
                f"{address} is no checkpoint: `elnet models --json` tells the addresses of versions"
            )
        cache = cache_root() / "checkpoints"
        final = cache / digest
        with _telling(
            address, "restore it from a copy, mount its folder, or roll back (`elnet models rollback`)"
        ):
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f".{digest}.lock"):
                if final.exists():
                    if _fault(final, digest) is None:
                        return final
                    shutil.rmtree(final)
                with scratch_folder(cache / f".{digest}.part") as part:
                    files, root = self._open(address)
                    for name in _PARTS:
                        files.get_file(f"{root}/{name}", str(part / name))
                    if fault := _fault(part, digest):
                        raise FilesError(
                            f"{address} is damaged: {fault}. Nothing of it was used; restore it from a copy, "
                            "or roll back (`elnet models rollback`)"
                        )
                    return part.replace(final)

    def _open(self, address: str) -> tuple[Any, str]:
        options: dict[str, Any] = {"auto_mkdir": True}
        if address.startswith("s3:"):
            options = {"endpoint_url": self._endpoint} if self._endpoint else {}
        files, root = url_to_fs(address, **options)
        return files, root


def _fault(folder: Path, digest: str) -> str | None:
    """What is wrong with a fetched checkpoint; None if nothing is."""
    try:
        if sha256_of(folder / CARD) != digest:
            return f"the sha256 of {CARD} is not that of its address"
        if sha256_of(folder / WEIGHTS) != read_card(folder).weights_sha256:
            return f"the sha256 of {WEIGHTS} is not the one in its card"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    return None


@contextmanager
def _telling(address: str, cure: str) -> Iterator[None]:
    """Let no error of a foreign library through without what happened, to what, and what to do.

    Args:
        address: of the checkpoint.
        cure: of its absence.
    """
    try:
        yield
    except ELNetError:
        raise
    except FileNotFoundError as error:
        raise FilesError(f"{address} is not there ({error}): {cure}") from error
    except PermissionError as error:
        raise FilesError(
            f"{address} is refused ({error}): let these credentials, or this user, read and write there"
        ) from error
    except ImportError as error:
        raise FilesError(f"{address}: S3 needs a driver; run `pip install 'elnet-loop[s3]'`") from error
    except Exception as error:
        # The edge of a foreign library: botocore's errors share no base class that could be named here.
        if type(error).__name__ in _CREDENTIALS:
            raise FilesError(
                f"{address}: no credentials ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE, for this process"
            ) from error
        raise FilesUnavailableError(
            f"{address} cannot be had ({type(error).__name__}: {error}): check the network, the disk, and "
            "media.s3_endpoint"
        ) from error
