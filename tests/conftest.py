"""Fixtures that tests of several packages share."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3fs import S3FileSystem

from active_learning.ledger import Ledger
from model.raster import write_mask, write_png
from tests.databases import new_database


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real imagery (ELNET_DATA, default ../shared/data from the project's root); skips where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ELNET_DATA", default))
    if not (folder / "sar_oil").is_dir():
        pytest.skip(f"no real imagery at {folder}: name its folder by ELNET_DATA")
    return folder


@pytest.fixture
def squares(tmp_path: Path) -> Callable[[int], Path]:
    """Makes a folder of dark squares on a bright ground: train/ of so many images, test/ of two."""

    def make(train: int) -> Path:
        random = np.random.default_rng(0)
        for part, count in (("train", train), ("test", 2)):
            for kind in ("images", "masks"):
                (tmp_path / "squares" / part / kind).mkdir(parents=True)
            for number in range(count):
                mask = np.zeros((64, 64), bool)
                top, left = random.integers(4, 30, 2)
                mask[top : top + 28, left : left + 28] = True
                pixels = np.clip(random.normal(170, 12, mask.shape) - 100 * mask, 0, 255).astype(np.uint8)
                write_png(tmp_path / "squares" / part / "images" / f"s{number}.png", pixels)
                write_mask(tmp_path / "squares" / part / "masks" / f"s{number}.png", mask)
        return tmp_path / "squares"

    return make


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger in a SQLite file."""
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        ledger.upgrade()
        yield ledger


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL of a throw-away PostgreSQL server, without a database; skips where its binaries are absent."""
    binaries = _postgresql_binaries()
    as_owner = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []  # initdb refuses root
    with tempfile.TemporaryDirectory(prefix="elnet-postgresql-", ignore_cleanup_errors=True) as folder:
        if as_owner:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]

        def run(program: str, *arguments: str) -> None:
            command = [*as_owner, str(binaries / program), "-D", f"{folder}/data", *arguments]
            log = Path(folder, "log")
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, (
                f"{done.stdout}{done.stderr}{log.read_text() if log.exists() else ''}"
            )

        run("initdb", "-U", "elnet", "--auth=trust", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://elnet@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-m", "immediate", "-w", "stop")


@pytest.fixture
def postgresql_url(postgresql_server: str) -> str:
    """The URL of a new, empty PostgreSQL database."""
    return new_database(postgresql_server)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The URL of a throw-away S3 server in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            assert server.poll() is None
            assert time.monotonic() < until, "the S3 server does not start"
            time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A new bucket: a file system with its `bucket`, and the `endpoint`; this process has credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    S3FileSystem.clear_instance_cache()  # each keeps the credentials that it was made with
    files = S3FileSystem(endpoint_url=s3_server, use_listings_cache=False)
    files.bucket, files.endpoint = f"bucket-{uuid.uuid4().hex}", s3_server
    files.mkdir(files.bucket)
    yield files
    S3FileSystem.clear_instance_cache()


def _postgresql_binaries() -> Path:
    """The folder of initdb and pg_ctl."""
    pytest.importorskip("psycopg", reason="no PostgreSQL driver: pip install 'elnet-loop[postgresql]'")
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not folders or not (folders[-1] / "initdb").exists():
        pytest.skip("no PostgreSQL server here: install the package `postgresql`")
    if os.geteuid() == 0 and not (shutil.which("runuser") and _is_user("postgres")):
        pytest.skip("PostgreSQL refuses to run as root, and there is no user `postgres` to run it as")
    return folders[-1]


def _is_user(name: str) -> bool:
    return any(entry.pw_name == name for entry in pwd.getpwall())
