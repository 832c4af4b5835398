import errno
import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from model import download as module
from model.download import ChecksumError, DownloadError, download, scratch_folder

CONTENT = bytes(range(256)) * 20_000  # 5 MB: more than one chunk
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(file_server: Any) -> Any:
    file_server.files["/file"] = CONTENT
    return file_server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.bin"


def test_a_file_comes_whole_and_progress_ends_at_its_size(server: Any, target: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    download(f"{server.url}/file", target, SHA256, progress=lambda *step: seen.append(step))
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert seen[-1] == ("downloading file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_a_broken_connection_is_resumed_where_it_broke(server: Any, target: Path) -> None:
    server.break_after = [3_000_000, 1_000_000]
    download(f"{server.url}/file", target, SHA256)
    assert target.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=3000000-", "bytes=4000000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server: Any, target: Path) -> None:
    server.break_after = [1000] * module.ATTEMPTS
    with pytest.raises(DownloadError, match="broke off 4 times"):
        download(f"{server.url}/file", target, SHA256)
    assert not target.exists()
    server.asked.clear()
    download(f"{server.url}/file", target, SHA256)
    assert server.asked == [f"bytes={1000 * module.ATTEMPTS}-"]
    assert target.read_bytes() == CONTENT


def test_a_server_without_ranges_starts_again(server: Any, target: Path) -> None:
    server.ranges = False
    server.break_after = [3_000_000]
    download(f"{server.url}/file", target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_leftover_of_another_file_is_dropped(server: Any, target: Path) -> None:
    target.parent.mkdir()
    part = target.with_name("file.bin.part")
    part.write_bytes(b"of another release" * 1000)
    download(f"{server.url}/file", target, SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("surplus", [0, 7])
def test_a_leftover_that_is_already_whole_or_too_long(server: Any, target: Path, surplus: int) -> None:
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(CONTENT + bytes(surplus))
    download(f"{server.url}/file", target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_whole_file_is_not_fetched_again_and_a_damaged_one_is(server: Any, target: Path) -> None:
    download(f"{server.url}/file", target, SHA256)
    download(f"{server.url}/file", target, SHA256)
    assert len(server.asked) == 1
    target.write_bytes(CONTENT[1:])
    download(f"{server.url}/file", target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum_is_refused_and_nothing_stays(server: Any, target: Path) -> None:
    with pytest.raises(ChecksumError, match=r"expected 000.*refused and removed"):
        download(f"{server.url}/file", target, "0" * 64)
    assert list(target.parent.iterdir()) == []


def test_a_missing_file_is_not_asked_for_again(server: Any, target: Path) -> None:
    with pytest.raises(DownloadError, match="answered 404"):
        download(f"{server.url}/nothing", target, SHA256)
    assert len(server.asked) == 1


def test_a_busy_server_is_asked_again(server: Any, target: Path) -> None:
    server.statuses = [503, 429]
    download(f"{server.url}/file", target, SHA256)
    assert target.read_bytes() == CONTENT


def test_a_refused_connection_fails_at_once(target: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(DownloadError, match="cannot be reached"):
        download(f"http://127.0.0.1:{port}/file", target, SHA256)
    assert time.monotonic() - started < 2


def test_a_silent_server_fails_after_the_connect_timeout(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        started = time.monotonic()
        with pytest.raises(DownloadError, match="cannot be reached"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/file", target, SHA256)
    assert time.monotonic() - started < 3


def test_only_http(target: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    with pytest.raises(DownloadError, match="unknown url type: file"):
        download((tmp_path / "secret").as_uri(), target, SHA256)
    assert not target.exists()


def test_a_full_disk_leaves_nothing(server: Any, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "_copy", full)
    with pytest.raises(DownloadError, match="no space left"):
        download(f"{server.url}/file", target, SHA256)
    assert list(target.parent.iterdir()) == []


def test_a_scratch_folder_is_empty_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "scratch"
    path.mkdir()
    (path / "left by a killed process").touch()
    with scratch_folder(path) as folder:
        assert list(folder.iterdir()) == []
        (folder / "new").touch()
    assert not path.exists()
