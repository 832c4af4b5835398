import errno
import hashlib
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model import npm, weights
from model.download import DownloadError
from model.weights import META_PATHS, META_SHA256, NPM_TRUNK, WeightsError, fetch, read_cached, trunk_file

NANO = "sam2-hiera-nano"
NANO_PATH = "000000/sam2_hiera_nano.pt"


@pytest.fixture
def meta(file_server: Any, nano_checkpoint: Path, elnet_home: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Meta's server, with the nano trunk among its checkpoints."""
    monkeypatch.setattr(weights, "META_URL", file_server.url)
    file_server.files[f"/{NANO_PATH}"] = nano_checkpoint.read_bytes()
    return file_server


def entries(home: Path) -> set[str]:
    return {
        str(path.relative_to(home / "weights")) for path in (home / "weights").rglob("*") if path.is_file()
    }


def test_every_published_trunk_has_a_path_and_a_checksum() -> None:
    sizes = ("tiny", "small", "base_plus", "large")
    assert list(META_PATHS) == [f"{family}-hiera-{size}" for family in ("sam2", "sam2.1") for size in sizes]
    assert META_PATHS["sam2.1-hiera-base_plus"] == "092824/sam2.1_hiera_base_plus.pt"
    assert len({META_SHA256[path] for path in META_PATHS.values()}) == 8
    assert all(len(bytes.fromhex(digest)) == 32 for digest in META_SHA256.values())


def test_from_metas_server_to_the_cache(meta: Any, elnet_home: Path) -> None:
    path = fetch(NANO)
    assert trunk_file(NANO)[0] == path
    cached = read_cached(NANO)
    assert cached.source == f"{meta.url}/{NANO_PATH}"
    assert cached.source_sha256 == META_SHA256[NANO_PATH]
    assert not any(name.startswith(("image_encoder", "memory")) for name in load_file(path))
    assert entries(elnet_home) == {
        path.name,
        f"{NANO}.json",
        f"{NANO}.lock",
    }  # the 150 MB in between are gone


def test_a_cached_trunk_is_not_fetched_again(meta: Any) -> None:
    assert fetch(NANO) == fetch(NANO)
    assert len(meta.asked) == 1


def test_a_damaged_trunk_is_fetched_again(meta: Any) -> None:
    path = fetch(NANO)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert fetch(NANO) == path
    assert path.read_bytes() == whole


def test_an_interrupted_download_is_resumed_by_the_next_call(meta: Any, elnet_home: Path) -> None:
    meta.break_after = [1000] * 4
    with pytest.raises(WeightsError, match="broke off 4 times"):
        fetch(NANO)
    assert entries(elnet_home) == {f"{NANO}.lock", "downloads/sam2_hiera_nano.pt.part"}
    fetch(NANO)
    assert meta.asked[-1] == "bytes=4000-"


def test_two_at_once_fetch_once(meta: Any) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(NANO))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 3
    assert len(meta.asked) == 1


def test_a_wrong_checksum_is_refused_and_removed(meta: Any, elnet_home: Path) -> None:
    meta.files[f"/{NANO_PATH}"] += b"more"
    with pytest.raises(WeightsError, match="refused and removed"):
        fetch(NANO)
    assert entries(elnet_home) == {f"{NANO}.lock"}


def test_one_error_names_what_was_tried_and_the_choices(
    elnet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_npm(*arguments: object) -> None:
        raise npm.NpmError("npm view failed: no network")

    monkeypatch.setattr(weights, "META_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(npm, "fetch", no_npm)
    with pytest.raises(WeightsError) as caught:
        fetch(NPM_TRUNK)
    text = str(caught.value)
    for part in (
        "- meta: http://127.0.0.1:9/072824/sam2_hiera_tiny.pt cannot be reached",
        "- npm: npm view failed: no network",
        f"elnet weights --trunk {NPM_TRUNK} --from FILE",
        "ELNET_HOME",
        str(elnet_home / "weights"),
    ):
        assert part in text


def test_npm_comes_after_meta_and_only_for_tiny(elnet_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def failing(label: str) -> Any:
        def attempt(*arguments: object, **options: object) -> None:
            tried.append(label)
            raise DownloadError("no")

        return attempt

    monkeypatch.setattr(weights, "download", failing("Meta"))
    monkeypatch.setattr(npm, "fetch", failing("npm"))
    for name in META_PATHS:
        with pytest.raises(WeightsError):
            fetch(name)
    assert tried == ["Meta", "npm"] + ["Meta"] * 7


def test_an_origin_is_asked_whatever_is_cached(meta: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(NANO)
    fetch(NANO, origin="meta")
    assert len(meta.asked) == 2
    for name, origin in ((NANO, "npm"), (NPM_TRUNK, "ftp")):
        with pytest.raises(WeightsError, match=f"{name} does not come from '{origin}'; choose meta"):
            fetch(name, origin=origin)


def test_an_origin_is_asked_alone(elnet_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_npm(*arguments: object) -> None:
        raise npm.NpmError("no network")

    monkeypatch.setattr(npm, "fetch", no_npm)
    with pytest.raises(WeightsError) as caught:
        fetch(NPM_TRUNK, origin="npm")
    assert "npm: no network" in str(caught.value)
    assert "meta:" not in str(caught.value)


def test_an_unknown_trunk_lists_the_known_ones() -> None:
    with pytest.raises(WeightsError, match=r"'sam2-huge'; choose one of sam2-hiera-tiny, .*"):
        fetch("sam2-huge")


def test_a_file_that_is_the_published_one(nano_checkpoint: Path, elnet_home: Path) -> None:
    renamed = nano_checkpoint.rename(nano_checkpoint.with_suffix(".bin"))
    assert fetch(NANO, source=renamed) == trunk_file(NANO)[0]
    assert read_cached(NANO).source == str(renamed)


def test_another_checkpoint_needs_its_users_word(
    nano_checkpoint: Path, nano_state: dict[str, torch.Tensor], elnet_home: Path
) -> None:
    torch.save(nano_state, nano_checkpoint)  # without the "model" around it
    sha256 = hashlib.sha256(nano_checkpoint.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match=rf"refused\. .*--sha256 {sha256}"):
        fetch(NANO, source=nano_checkpoint)
    with pytest.raises(WeightsError, match=f"has sha256 {sha256}, not {'0' * 64}: refused"):
        fetch(NANO, source=nano_checkpoint, sha256="0" * 64)
    assert fetch(NANO, source=nano_checkpoint, sha256=sha256.upper()).is_file()


def test_a_checkpoint_of_another_size_is_named(nano_checkpoint: Path, elnet_home: Path) -> None:
    with pytest.raises(WeightsError, match=f"holds {NANO}, not sam2-hiera-small: say --trunk {NANO}"):
        fetch("sam2-hiera-small", source=nano_checkpoint)


def test_safetensors_need_no_word(
    tmp_path: Path, nano_checkpoint: Path, nano_state: dict[str, torch.Tensor], elnet_home: Path
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in nano_state.items()}, path)
    assert {tensor.dtype for tensor in load_file(fetch(NANO, source=path)).values()} == {torch.float16}


def test_a_file_wins_over_the_cache(meta: Any, nano_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    first = fetch(NANO)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in nano_state.items()}, path)
    assert fetch(NANO, source=path) != first
    assert trunk_file(NANO)[0] != first


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("unpickled"),)


def test_nothing_but_tensors_is_unpickled(
    tmp_path: Path, nano_checkpoint: Path, elnet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Malicious()}, nano_checkpoint)
    sha256 = hashlib.sha256(nano_checkpoint.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch(NANO, source=nano_checkpoint, sha256=sha256)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "neither a PyTorch checkpoint"),
        (b"PK\x03\x04 cut off", "refused"),
        (pickle.dumps({"model": 1}, protocol=2), "neither a PyTorch checkpoint"),
        (b"\x40\0\0\0\0\0\0\0{ cut off", "Error while deserializing header"),
        (b"\x1f\x8b cut off", f"holds {NPM_TRUNK}, not {NANO}"),
    ],
)
def test_files_that_are_something_else(
    tmp_path: Path, nano_checkpoint: Path, elnet_home: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        fetch(NANO, source=path)
    with pytest.raises(WeightsError):
        trunk_file(NANO)


def test_a_cut_checkpoint_that_its_user_trusts(nano_checkpoint: Path, elnet_home: Path) -> None:
    nano_checkpoint.write_bytes(nano_checkpoint.read_bytes()[:-100])
    sha256 = hashlib.sha256(nano_checkpoint.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="cannot be read"):
        fetch(NANO, source=nano_checkpoint, sha256=sha256)


def test_a_missing_file(tmp_path: Path, elnet_home: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing.pt cannot be read: No such file"):
        fetch(source=tmp_path / "nothing.pt")
    with pytest.raises(WeightsError, match="cannot be read: Is a directory"):
        fetch(source=tmp_path)


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"cannot write to .*ELNET_HOME"):
        fetch()


def test_a_full_disk_leaves_no_trunk(meta: Any, elnet_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(WeightsError, match=r"No space left on device. Make room"):
            fetch(NANO)
    assert entries(elnet_home) == {f"{NANO}.lock"}


@pytest.mark.weights
def test_the_real_trunk_is_the_pinned_one() -> None:
    try:
        path, sha256 = trunk_file(NPM_TRUNK)
    except WeightsError as error:
        pytest.skip(str(error))
    if read_cached(NPM_TRUNK).source_sha256 == META_SHA256[META_PATHS[NPM_TRUNK]]:
        pytest.skip("the cached trunk is Meta's own file")
    assert sha256 == weights.NPM_TRUNK_SHA256
    tensors = load_file(path)
    assert sum(tensor.numel() for tensor in tensors.values()) == 26_849_472
    # one sum over both position embeddings: the split of minimum norm
    sums = [tensors[name].double().sum((0, 2, 3)) for name in ("pos_embed", "pos_embed_window")]
    torch.testing.assert_close(*sums, atol=1e-5, rtol=0)
