import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
import typer
from PIL import Image
from rasterio.transform import Affine
from typer.testing import CliRunner

import backend.cli
from backend.cli import COMMANDS, application, load, main
from backend.cli.folders import FolderError, find_images
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.elnet import SAM2ELNet
from model.errors import ELNetError
from model.hiera import trunk_spec
from model.metrics import SegmentationMetrics
from model.raster import open_raster, read_masks

SIZE = 64


Answer = Any  # of the fixture `elnet`: code, out, err, json()
Elnet = Callable[..., Answer]


def make_checkpoint(folder: Path, classes: tuple[str, ...]) -> Path:
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(1)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), len(classes), width=8)
    for head in model.heads:  # untrained logits hover around 0: spread them, so that masks are not trivial
        torch.nn.init.normal_(head.weight, std=3)
    card = ModelCard("nano-0001", "random-nano", sha256, classes, SIZE, model.architecture)
    save_checkpoint(folder, model, card)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "one", ("oil",))


@pytest.fixture(scope="module")
def checkpoint_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "two", ("oil", "ship"))


SIZES = {"a": (64, 64), "b": (40, 90), "c": (130, 70)}  # height, width


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_help_lists_every_command_and_imports_none() -> None:
    code = (
        "import sys\nfrom backend.cli import main\nsys.argv = ['elnet', '--help']\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'sqlalchemy', 'numpy', 'rasterio', 'pydantic'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    for name in COMMANDS:
        assert f" {name} " in answer.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_listed_command_is_there_and_has_help(name: str) -> None:
    command = load(COMMANDS[name][0])
    text = command.info.help if isinstance(command, typer.Typer) else command.__doc__
    result = CliRunner().invoke(application([name, "--help"]), [name, "--help"])
    assert result.exit_code == 0
    assert text.split()[0] in result.output


def test_a_usage_error_has_exit_code_2_and_no_traceback(elnet: Elnet) -> None:
    for arguments in (["nonsense"], ["predict"], ["train", "--epochs", "many"]):
        answer = elnet(*arguments)
        assert answer.code == 2
        assert "Error" in answer.err
        assert "Traceback" not in answer.err


def failing_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def command() -> None:
        raise error

    monkeypatch.setattr(backend.cli, "load", lambda _: command)


def test_an_error_that_a_person_can_mend_is_one_line(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_with(ELNetError("the sky [red]fell[/red]; hold it up"), monkeypatch)
    answer = elnet("weights")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "elnet: error: the sky [red]fell[/red]; hold it up\n"


def test_an_unexpected_error_says_where_to_report(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ELNET_DEBUG", raising=False)
    failing_with(ZeroDivisionError("by zero"), monkeypatch)
    answer = elnet("weights")
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("elnet: error: unexpected ZeroDivisionError: by zero\n")
    assert "ELNET_DEBUG=1" in answer.err
    assert "Traceback" not in answer.err


def test_debug_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["elnet", "weights"])
    failing_with(ZeroDivisionError("by zero"), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main()


def test_weights_from_a_file_that_is_none(
    elnet: Elnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path))
    (tmp_path / "file.pt").write_bytes(b"<html>")
    answer = elnet("weights", "--from", tmp_path / "file.pt", "--json")
    assert (answer.code, answer.out) == (1, "")
    assert "neither a PyTorch checkpoint" in answer.err


def test_cached_weights_are_shown(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    from model import weights
    from model.trunk_cache import Cached

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(weights, "fetch", lambda *a, **k: calls.append((a, k["source"], k["origin"])))
    monkeypatch.setattr(
        weights, "read_cached", lambda name: Cached(name, "t.safetensors", "ab", "Meta", "cd")
    )
    answer = elnet("weights", "--trunk", "sam2.1-hiera-large", "--json")
    assert answer.json()["trunk"] == "sam2.1-hiera-large"
    assert answer.json()["sha256"] == "ab"
    assert answer.json()["file"].endswith("/weights/t.safetensors")
    assert calls == [(("sam2.1-hiera-large",), None, None)]
    assert "sam2.1-hiera-large" in elnet("weights", "--trunk", "sam2.1-hiera-large").out


def test_predict_writes_a_mask_of_each_images_size(
    elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = elnet("predict", "--checkpoint", checkpoint, "--images", data / "images", "--out", out, "--json")
    assert answer.code == 0
    assert answer.err == ""
    summary = answer.json()
    assert (summary["n"], summary["failed"], summary["errors"]) == (3, 0, [])
    assert summary["model_version"] == "nano-0001"
    rows = rows_of(out)
    assert [Path(row["image"]).stem for row in rows] == list(SIZES)
    for row in rows:
        assert row["model_version"] == "nano-0001"
        assert 0 <= row["quality"] <= 1
        assert "affine" not in row
        with Image.open(row["mask"]) as mask:
            assert mask.size == SIZES[Path(row["image"]).stem][::-1]
            assert mask.mode == "L"
            assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_predict_without_json_shows_a_bar_on_stderr_only(
    elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    answer = elnet(
        "predict", "--checkpoint", checkpoint, "--images", data / "images", "--out", tmp_path / "o"
    )
    assert answer.code == 0
    assert "predicting" in answer.err
    assert "3/3" in answer.err
    assert "predicting" not in answer.out
    assert "nano-0001" in answer.out


def test_evaluate_agrees_with_predict(elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    elnet("predict", "--checkpoint", checkpoint, "--images", data / "images", "--out", out)
    metrics = SegmentationMetrics()
    for row in rows_of(out):
        truth, valid = read_masks(data / "masks" / f"{Path(row['image']).stem}.png")
        metrics.update(read_masks(Path(row["mask"]))[0], truth, valid)
    expected = metrics.compute().summary()

    answer = elnet("evaluate", "--data", data, "--checkpoint", checkpoint, "--json", "--batch-size", 1)
    assert answer.code == 0
    found = answer.json()
    assert found["n"] == 3
    assert {"n", "fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1"} <= found.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=0.01), key  # other batches, other last bits
    assert 0 < found["fg_iou"] < 1


def test_evaluate_for_people(elnet: Elnet, checkpoint: Path, data: Path) -> None:
    answer = elnet("evaluate", "--data", data, "--checkpoint", checkpoint)
    assert answer.code == 0
    assert "fg iou" in answer.out
    assert "evaluating" in answer.err


def test_two_classes_get_a_mask_each(
    elnet: Elnet, checkpoint_of_two: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    elnet("predict", "--checkpoint", checkpoint_of_two, "--images", data / "images", "--out", out)
    for row in rows_of(out):
        stem = Path(row["image"]).stem
        expected = {name: str(out / "masks" / name / f"{stem}.png") for name in ("oil", "ship")}
        assert row["mask"] == expected
        assert all(Path(mask).is_file() for mask in row["mask"].values())


def test_the_place_on_earth_is_kept(elnet: Elnet, checkpoint: Path, tmp_path: Path) -> None:
    affine = Affine(0.5, 0, 100, 0, -0.25, 50)
    pixels = np.random.default_rng(0).normal(-12, 4, (2, 70, 80)).astype(np.float32)
    pixels[:, :, :20] = np.nan
    (tmp_path / "images").mkdir()
    with rasterio.open(
        tmp_path / "images" / "vv.tif", "w", driver="GTiff", height=70, width=80, count=2, dtype="float32",
        crs="EPSG:4326", transform=affine,
    ) as file:  # fmt: skip
        file.write(pixels)
    answer = elnet(
        "predict", "--checkpoint", checkpoint, "--images", tmp_path / "images", "--out", tmp_path / "out"
    )
    assert answer.code == 0, answer.err
    (row,) = rows_of(tmp_path / "out")
    assert row["affine"] == [0.5, 0, 100, 0, -0.25, 50]
    assert row["crs"] == "EPSG:4326"
    mask = open_raster(Path(row["mask"]))
    assert mask.affine == pytest.approx((0.5, 0, 100, 0, -0.25, 50))
    assert mask.crs == "EPSG:4326"
    assert not mask.pixels[:, :20].any()


@pytest.fixture
def spoilt(data: Path) -> Path:
    """The three images among broken ones."""
    folder = data / "images"
    whole = (folder / "a.png").read_bytes()
    (folder / "aa_cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bb_empty.jpg").write_bytes(b"")
    (folder / "cc_text.tif").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def test_a_broken_image_spoils_only_itself(
    elnet: Elnet, checkpoint: Path, spoilt: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    answer = elnet("predict", "--checkpoint", checkpoint, "--images", spoilt, "--out", out, "--json")
    assert answer.code == 1
    assert "elnet: error: 3 of 6 images could not be predicted" in answer.err
    assert "Traceback" not in answer.err
    assert answer.json()["failed"] == 3
    rows = rows_of(out)
    names = ["a.png", "aa_cut.png", "b.png", "bb_empty.jpg", "c.png", "cc_text.tif"]
    assert [Path(row["image"]).name for row in rows] == names
    for row, name in zip(rows, names, strict=True):
        if len(Path(name).stem) == 1:
            assert Path(row["mask"]).is_file()
        else:
            assert name in row["error"]
            assert "mask" not in row


def test_a_dead_link_is_an_error_and_a_folder_no_image(
    elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    (data / "images" / "d.png").symlink_to(tmp_path / "gone.png")
    (data / "images" / "e.png").mkdir()
    answer = elnet(
        "predict", "--checkpoint", checkpoint, "--images", data / "images", "--out", tmp_path / "o"
    )
    assert answer.code == 1
    assert "1 of 4 images" in answer.err
    assert "d.png" in answer.err


def test_the_largest_image_can_be_set(elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--checkpoint", checkpoint, "--max-pixels", 5000]
    answer = elnet("predict", *options, "--images", data / "images", "--out", out)
    assert answer.code == 1
    assert "c.png: 70 x 130 pixels, more than the limit of 5000" in answer.err
    assert [Path(row["image"]).stem for row in rows_of(out) if "mask" in row] == ["a", "b"]
    answer = elnet("evaluate", *options, "--data", data)
    assert "c.png: 70 x 130 pixels" in answer.err


def test_many_errors_are_summed_up(elnet: Elnet, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for i in range(8):
        (tmp_path / "images" / f"{i}.png").write_bytes(b"")
    answer = elnet(
        "predict", "--checkpoint", checkpoint, "--images", tmp_path / "images", "--out", tmp_path / "o"
    )
    assert answer.code == 1
    assert "8 of 8 images" in answer.err
    assert "and 3 more" in answer.err
    assert len(answer.err.strip().splitlines()) < 12


def test_images_of_one_stem_keep_their_masks_apart(
    elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    Image.open(data / "images" / "a.png").save(data / "images" / "a.jpg")
    elnet("predict", "--checkpoint", checkpoint, "--images", data / "images", "--out", tmp_path / "out")
    names = [Path(row["mask"]).name for row in rows_of(tmp_path / "out")]
    assert names == ["a.jpg.png", "a.png.png", "b.png", "c.png"]


def test_one_file_is_a_folder_of_one(elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    image = data / "images" / "b.png"
    assert elnet("predict", "--checkpoint", checkpoint, "--images", image, "--out", tmp_path / "o").code == 0
    assert [row["image"] for row in rows_of(tmp_path / "o")] == [str(image)]


def test_folders_without_images(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="no such file or folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FolderError, match=r"no image in it, .png, .jpg.*are read$"):
        find_images(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(FolderError, match=r"did you mean .*images\?"):
        find_images(tmp_path)


def test_an_out_folder_that_cannot_be_made(
    elnet: Elnet, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").touch()
    answer = elnet(
        "predict", "--checkpoint", checkpoint, "--images", data / "images", "--out", tmp_path / "taken" / "x"
    )
    assert answer.code == 1
    assert "cannot be written to" in answer.err


def test_evaluate_refuses_a_broken_pair(elnet: Elnet, checkpoint: Path, data: Path) -> None:
    Image.new("L", (10, 10)).save(data / "masks" / "b.png")
    answer = elnet("evaluate", "--data", data, "--checkpoint", checkpoint, "--json")
    assert (answer.code, answer.out) == (1, "")
    assert "masks/b.png: 10 x 10 pixels, but its image" in answer.err


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_missing_checkpoint(elnet: Elnet, command: str, data: Path, tmp_path: Path) -> None:
    rest = (
        ["--data", data] if command == "evaluate" else ["--images", data / "images", "--out", tmp_path / "o"]
    )
    answer = elnet(command, "--checkpoint", tmp_path / "none", *rest)
    assert answer.code == 1
    assert "holds no checkpoint" in answer.err


def test_a_missing_device(elnet: Elnet, checkpoint: Path, data: Path) -> None:
    answer = elnet("evaluate", "--data", data, "--checkpoint", checkpoint, "--device", "npu")
    assert answer.code == 1
    assert "unknown device 'npu'" in answer.err


def train(elnet: Elnet, data: Path, out: Path, *options: object) -> Answer:
    return elnet(
        "train", "--data", data, "--out", out, "--trunk", "random-nano", "--size", 64, "--epochs", 2, *options
    )


def test_train_then_predict_then_go_on(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    answer = train(elnet, data, first, "--json")
    assert (answer.code, answer.err) == (0, "")
    row = answer.json()
    assert (row["checkpoint"], row["model_version"], row["parent"]) == (str(first), "first", None)
    assert (row["trunk"], row["classes"], row["size"], row["images"]) == (
        "random-nano",
        ["foreground"],
        64,
        3,
    )
    assert row["loss"] > 0
    assert sorted(path.name for path in first.iterdir()) == ["card.json", "model.safetensors"]

    out = tmp_path / "out"
    assert elnet("predict", "--checkpoint", first, "--images", data / "images", "--out", out).code == 0
    assert {row["model_version"] for row in rows_of(out)} == {"first"}

    # trunk and size follow from the checkpoint that it goes on from
    second = elnet(
        "train", "--data", data, "--out", tmp_path / "second", "--init", first, "--epochs", 1, "--json"
    )
    assert second.code == 0, second.err
    assert second.json()["parent"] == "first"
    assert (second.json()["trunk"], second.json()["size"]) == ("random-nano", 64)


def test_the_seed_decides(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert train(elnet, data, tmp_path / name, "--seed", seed, "--limit", 2).code == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_training_for_people(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    answer = train(elnet, data, tmp_path / "out")
    assert answer.code == 0
    assert "training: loss" in answer.err
    assert "2/2" in answer.err
    assert "images per s" in answer.out


def test_training_settings_out_of_range(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    answer = train(elnet, data, tmp_path / "out", "--size", 100)
    assert answer.code == 1
    assert "training settings: size: " in answer.err
    assert not (tmp_path / "out").exists()


def test_training_settings_from_a_file(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("# a comment\nmode: cached\nstructure: 0.5\nepochs: 7\nviews: 2\ncache_gb: 0.0\n")
    answer = train(elnet, data, tmp_path / "out", "--config", file, "--json")
    assert answer.code == 0, answer.err
    used = json.loads((tmp_path / "out" / "card.json").read_text())["metrics"]["config"]
    assert (used["mode"], used["structure"], used["views"]) == ("cached", 0.5, 2)
    assert used["epochs"] == 2  # the command line's, which goes before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("epochs: [1", "is no YAML"),
        ("just words", "should hold training settings"),
        ("epochz: 3", "training settings: epochz: "),
    ],
)
def test_a_file_of_training_settings_that_cannot_be_used(
    elnet: Elnet, data: Path, tmp_path: Path, content: str | None, said: str
) -> None:
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_text(content)
    answer = train(elnet, data, tmp_path / "out", "--config", file)
    assert answer.code == 1
    assert said in answer.err


def test_training_on_nothing(elnet: Elnet, tmp_path: Path) -> None:
    answer = train(elnet, tmp_path, tmp_path / "out")
    assert answer.code == 1
    assert "no such folder; a data folder holds images/ and masks/" in answer.err


def test_a_full_gpu_names_the_cure(
    elnet: Elnet, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import training

    def full(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 ...")

    monkeypatch.setattr(training, "_fit", full)
    answer = train(elnet, data, tmp_path / "out")
    assert answer.code == 1
    assert "Tried to allocate 2 GiB.); lower --batch-size or --size" in answer.err
    assert "GPU 0" not in answer.err
