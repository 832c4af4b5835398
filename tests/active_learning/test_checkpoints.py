"""Checkpoints where several machines find them: a folder, or a real S3 server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from s3fs import S3FileSystem

from active_learning.checkpoints import Checkpoints, FilesError, FilesUnavailableError
from active_learning.ledger import ModelVersion
from model.checkpoint import (
    CARD,
    WEIGHTS,
    CheckpointError,
    ModelCard,
    load_checkpoint,
    load_trunk,
    read_card,
    save_checkpoint,
)
from model.elnet import SAM2ELNet
from model.hiera import trunk_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))


def make(folder: Path, seed: int = 0) -> Path:
    trunk, digest = load_trunk("random-nano")
    torch.manual_seed(seed)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, width=8)
    save_checkpoint(
        folder, model, ModelCard("elnet-0001", "random-nano", digest, ("oil",), 32, model.architecture)
    )
    return folder


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return make(tmp_path / "state" / "models" / "cycle-1")


def version(path: str | Path, of: Path) -> ModelVersion:
    return ModelVersion(id=1, name="elnet-0001", path=str(path), sha256=read_card(of).weights_sha256)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Place:
    """What machines share, seen from outside."""

    def __init__(self, checkpoints: Checkpoints, files: Any, root: str) -> None:
        self.checkpoints, self.files, self.root = checkpoints, files, root

    def listed(self) -> list[str]:
        if not self.files.exists(self.root):
            return []
        return sorted(str(name).removeprefix(f"{self.root}/") for name in self.files.find(self.root))

    def path(self, address: str, name: str) -> str:
        return f"{self.root}/models/{address.rpartition('/')[2]}/{name}"


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "folder":
        root = str(tmp_path / "shared folder")
        return Place(Checkpoints(root), fsspec.filesystem("file"), root)
    s3 = request.getfixturevalue("s3")
    root = f"{s3.bucket}/elnet"
    return Place(Checkpoints(f"s3://{root}/", s3.endpoint), s3, root)


def test_without_a_shared_place_a_checkpoint_stays_where_it_was_made(made: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints()
    assert checkpoints.keep(made) == str(made)
    assert checkpoints.local(version(made, made)) == made
    assert not (tmp_path / "home").exists()


def test_a_folder_that_is_gone_or_holds_another_network_is_refused(made: Path, tmp_path: Path) -> None:
    known = version(made, made)
    shutil.rmtree(made)
    with pytest.raises(CheckpointError, match=r"elnet-0001: .*mount or copy it to this machine"):
        Checkpoints().local(known)
    make(made, seed=1)
    with pytest.raises(CheckpointError, match=r"cycle-1 is not elnet-0001: .*roll back"):
        Checkpoints().local(known)


def test_a_checkpoint_is_kept_under_its_sha256_and_fetched_once(
    place: Place, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = place.checkpoints.keep(made)
    digest = sha256((made / CARD).read_bytes()).hexdigest()
    assert address.endswith(f"/models/{digest}")
    assert place.listed() == [f"models/{digest}/{name}" for name in (CARD, WEIGHTS)]
    known, expected = version(address, made), contents(made)
    shutil.rmtree(made)
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "another machine"))
    found = place.checkpoints.local(known)
    assert found == tmp_path / "another machine" / "checkpoints" / digest
    assert contents(found) == expected
    load_checkpoint(found)
    place.files.rm(place.root, recursive=True)
    assert place.checkpoints.local(known) == found  # it is on this machine now


def test_what_is_kept_already_is_not_sent_again(
    place: Place, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = place.checkpoints.keep(made)
    sent: list[str] = []
    monkeypatch.setattr(type(place.files), "put_file", lambda _files, local, *_: sent.append(local))
    assert place.checkpoints.keep(made) == address
    assert sent == []


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:], lambda _: b""])
def test_a_damaged_file_is_refused_and_nothing_of_it_stays(
    place: Place,
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    address = place.checkpoints.keep(made)
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "another machine"))
    there, whole = place.path(address, name), (made / name).read_bytes()
    place.files.pipe_file(there, damage(whole))
    with pytest.raises(FilesError, match=rf"{address} is damaged: the sha256 of {name} .*restore it"):
        place.checkpoints.local(version(address, made))
    left = [path.name for path in (tmp_path / "another machine" / "checkpoints").iterdir()]
    assert all(name.endswith(".lock") for name in left)
    place.files.pipe_file(there, whole)
    load_checkpoint(place.checkpoints.local(version(address, made)))


def test_another_checkpoint_than_the_ledgers_is_refused(place: Place, made: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=1)
    address = place.checkpoints.keep(other)  # whole and sound, but not what the version was
    with pytest.raises(CheckpointError, match="is not elnet-0001"):
        place.checkpoints.local(version(address, made))


def test_what_is_damaged_on_this_machine_is_fetched_anew(place: Place, made: Path) -> None:
    address = place.checkpoints.keep(made)
    known = version(address, made)
    found = place.checkpoints.local(known)
    for name in (WEIGHTS, CARD):
        (found / name).write_bytes(b"rotten")
        assert contents(place.checkpoints.local(known)) == contents(made)
        (found / name).unlink()
        assert contents(place.checkpoints.local(known)) == contents(made)


def test_what_a_killed_process_left_half_fetched_is_no_harm(place: Place, made: Path, tmp_path: Path) -> None:
    address = place.checkpoints.keep(made)
    cache, digest = tmp_path / "home" / "checkpoints", address.rpartition("/")[2]
    (cache / digest).rename(cache / f".{digest}.part")
    (cache / f".{digest}.part" / WEIGHTS).write_bytes(b"half")
    found = place.checkpoints.local(version(address, made))
    assert contents(found) == contents(made)
    assert not (cache / f".{digest}.part").exists()


def test_a_file_that_is_absent_is_named_with_the_cure(
    place: Place, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = place.checkpoints.keep(made)
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "another machine"))
    place.files.rm(place.path(address, CARD))
    with pytest.raises(FilesError, match=rf"{address} is not there .*roll back") as caught:
        place.checkpoints.local(version(address, made))
    assert not isinstance(caught.value, FilesUnavailableError)


def test_an_address_that_names_no_checkpoint(place: Place) -> None:
    with pytest.raises(FilesError, match="elnet models --json"):
        place.checkpoints.fetch("s3://bucket/elnet/models/elnet-0007")


def test_an_upload_that_is_cut_off_is_never_seen(s3: Any, made: Path, tmp_path: Path) -> None:
    shared = f"s3://{s3.bucket}"
    with cutting(s3.endpoint, after=20_000) as endpoint:
        with pytest.raises(FilesUnavailableError, match=r"cannot be had .*check the network"):
            Checkpoints(shared, endpoint).keep(made)
        assert s3.find(s3.bucket) == []
    address = Checkpoints(shared, s3.endpoint).keep(made)
    assert contents(Checkpoints(shared, s3.endpoint).fetch(address)) == contents(made)


@contextmanager
def cutting(endpoint: str, after: int) -> Iterator[str]:
    """A way to a server on which every connection breaks after so many bytes have been sent."""
    port = int(endpoint.rpartition(":")[2])
    listening = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket, limit: float) -> None:
        try:
            while limit > 0 and (chunk := source.recv(4096)):
                target.sendall(chunk)
                limit -= len(chunk)
        except OSError:
            pass
        for one in (source, target):
            one.close()

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", port))
            threading.Thread(target=copy, args=(client, server, after), daemon=True).start()
            threading.Thread(target=copy, args=(server, client, float("inf")), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.close()


def test_a_process_that_dies_between_the_files_leaves_no_checkpoint(
    place: Place, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = type(place.files).put_file

    def dying(files: Any, local: str, there: str) -> None:
        if local.endswith(CARD):
            raise KeyboardInterrupt
        put(files, local, there)

    with monkeypatch.context() as patch:
        patch.setattr(type(place.files), "put_file", dying)
        with pytest.raises(KeyboardInterrupt):
            place.checkpoints.keep(made)
    digest = sha256((made / CARD).read_bytes()).hexdigest()
    assert place.listed() == [f"models/{digest}/{WEIGHTS}"]
    with pytest.raises(FilesError, match="is not there"):
        place.checkpoints.fetch(f"{place.checkpoints._shared}/models/{digest}")
    assert contents(place.checkpoints.fetch(place.checkpoints.keep(made))) == contents(made)


def test_processes_of_a_machine_fetch_a_checkpoint_once(s3: Any, made: Path, tmp_path: Path) -> None:
    """The first one to come takes the lock and is slow; the object is gone when it lets the others go on."""
    address = Checkpoints(f"s3://{s3.bucket}", s3.endpoint).keep(made)
    script = (
        "import sys, time\n"
        "from s3fs import S3FileSystem\n"
        "from active_learning.checkpoints import Checkpoints\n"
        "get = S3FileSystem.get_file\n"
        "def slow(*given, **named):\n"
        "    print('fetches', flush=True)\n"
        "    time.sleep(1)\n"
        "    return get(*given, **named)\n"
        "S3FileSystem.get_file = slow\n"
        "print(Checkpoints(None, sys.argv[1]).fetch(sys.argv[2]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ELNET_HOME": str(tmp_path / "another machine")}
    command = [sys.executable, "-c", script, s3.endpoint, address]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[0].split("\n")[:-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert sorted(map(len, said)) == [1, 1, 3]  # one fetched both files
    assert {lines[-1] for lines in said} == {
        str(tmp_path / "another machine" / "checkpoints" / address.rpartition("/")[2])
    }


def test_a_bucket_that_is_absent(s3: Any, made: Path) -> None:
    for store in (lambda shared: shared.keep(made), Checkpoints.check):
        with pytest.raises(FilesError, match=r"bucket does not exist.*ELNET_FILES"):
            store(Checkpoints("s3://no-such-bucket", s3.endpoint))


def test_what_can_be_written_is_told_beforehand(place: Place) -> None:
    place.checkpoints.check()
    place.checkpoints.check()
    assert place.listed() == ["models/.writable"]
    Checkpoints().check()


def test_absent_credentials(s3: Any, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    S3FileSystem.clear_instance_cache()
    with pytest.raises(FilesError, match=r"no credentials .*set AWS_ACCESS_KEY_ID") as caught:
        Checkpoints(f"s3://{s3.bucket}", s3.endpoint).keep(made)
    assert not isinstance(caught.value, FilesUnavailableError)


def test_an_absent_driver(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    known = sys.modules["fsspec.registry"]._registry  # type: ignore[attr-defined]
    monkeypatch.delitem(known, "s3", raising=False)  # as where no test has used it yet
    with pytest.raises(FilesError, match=r"S3 needs a driver; run `pip install 'elnet-loop\[s3\]'`"):
        Checkpoints("s3://bucket").keep(made)


def test_a_refusal_names_what_was_refused(s3: Any, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(S3FileSystem, "put_file", refuse)
    with pytest.raises(FilesError, match=r"is refused \(Access Denied\): let these credentials"):
        Checkpoints(f"s3://{s3.bucket}", s3.endpoint).keep(made)


@pytest.mark.usefixtures("s3")
def test_a_server_that_does_not_answer_may_answer_later(made: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(FilesUnavailableError, match=r"media\.s3_endpoint"):
            Checkpoints("s3://bucket", endpoint).keep(made)
