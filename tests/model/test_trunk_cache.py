import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.convert import trunk_tensors
from model.trunk_cache import Cached, WeightsError, read_cached, store, trunk_file, weights_folder

NANO = "sam2-hiera-nano"


@pytest.fixture
def tensors(nano_checkpoint: Path, nano_state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return trunk_tensors(nano_state)


@pytest.fixture
def cached(tensors: dict[str, torch.Tensor], elnet_home: Path) -> Cached:
    return store(NANO, tensors, source="a test", source_sha256="0" * 64)


def test_the_folder_follows_the_environment(elnet_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_folder() == elnet_home / "weights"
    monkeypatch.setenv("ELNET_HOME", "~/models")
    assert weights_folder() == Path.home() / "models" / "weights"
    monkeypatch.delenv("ELNET_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert weights_folder().name == "weights"
    assert weights_folder().parent.name == "elnet"


def test_a_stored_trunk_is_found_with_its_checksum(
    cached: Cached, tensors: dict[str, torch.Tensor], elnet_home: Path
) -> None:
    path, sha256 = trunk_file(NANO)
    assert path.parent == elnet_home / "weights"
    assert sha256[:16] in path.name
    assert read_cached(NANO) == cached == Cached(NANO, path.name, sha256, "a test", "0" * 64)
    assert {name: t.tolist() for name, t in load_file(path).items()} == {
        name: t.tolist() for name, t in tensors.items()
    }
    assert sorted(entry.name for entry in path.parent.iterdir()) == [path.name, f"{NANO}.json"]


def test_two_variants_stand_side_by_side(cached: Cached, tensors: dict[str, torch.Tensor]) -> None:
    tensors["pos_embed"] = tensors["pos_embed"] + 1
    newer = store(NANO, tensors, source="another", source_sha256="1" * 64)
    assert newer.sha256 != cached.sha256
    assert trunk_file(NANO) == (newer.path, newer.sha256)
    assert trunk_file(NANO, cached.sha256) == (cached.path, cached.sha256)


def test_storing_twice_gives_the_same_file(cached: Cached, tensors: dict[str, torch.Tensor]) -> None:
    shuffled = dict(reversed(tensors.items()))
    assert store(NANO, shuffled, source="a test", source_sha256="0" * 64) == cached


def test_an_absent_trunk_names_the_cure(elnet_home: Path, cached: Cached) -> None:
    with pytest.raises(WeightsError, match="elnet weights --trunk sam2-hiera-large"):
        trunk_file("sam2-hiera-large")
    with pytest.raises(WeightsError, match=f"sha256 ffff.* is not in .*--trunk {NANO} with --source"):
        trunk_file(NANO, "f" * 64)


@pytest.mark.parametrize("variant", [False, True])
def test_a_changed_file_is_refused(cached: Cached, variant: bool) -> None:
    content = bytearray(cached.path.read_bytes())
    content[-1] ^= 1
    cached.path.write_bytes(content)
    with pytest.raises(WeightsError, match=f"changed or damaged.*elnet weights --trunk {NANO}"):
        trunk_file(NANO, cached.sha256 if variant else None)


def test_a_lost_file_is_noticed(cached: Cached) -> None:
    cached.path.unlink()
    with pytest.raises(WeightsError, match=r"is gone. Fetch it"):
        trunk_file(NANO)


@pytest.mark.parametrize("record", ["", "[]", "{}", json.dumps({"trunk": NANO, "extra": 1})])
def test_a_damaged_record_is_noticed(cached: Cached, record: str) -> None:
    (weights_folder() / f"{NANO}.json").write_text(record)
    with pytest.raises(WeightsError, match=r"json is damaged. Fetch it"):
        trunk_file(NANO)


def test_tensors_of_another_network_are_refused(tensors: dict[str, torch.Tensor], elnet_home: Path) -> None:
    del tensors["pos_embed"]
    with pytest.raises(WeightsError, match=f"a test does not fit {NANO}"):
        store(NANO, tensors, source="a test", source_sha256="0" * 64)
    assert list(weights_folder().iterdir()) == []


def test_an_unexpected_checksum_is_refused(tensors: dict[str, torch.Tensor], elnet_home: Path) -> None:
    with pytest.raises(WeightsError, match="expected abc: refused"):
        store(NANO, tensors, source="a test", source_sha256="0" * 64, expected="abc")
    assert list(weights_folder().iterdir()) == []
