"""The accuracy benchmark runs, remembers what it has done, draws whole scenes; its figures are not judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import ablation, accuracy, classical
from model.blocks import Adapter, EdgeAttention, ReceptiveFieldBlock
from model.data import SegmentationData
from model.pairs import Pair, find_pairs


@pytest.fixture
def data(squares: Callable[[int], Path]) -> Path:
    return squares(6)


def run(monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, *more: str) -> None:
    arguments = ["accuracy", "--data", str(data), "--out", str(out), "--seeds", "2", "--epochs", "1", *more]
    monkeypatch.setattr(sys, "argv", arguments)
    accuracy.main()


def test_methods_without_a_trunk(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    run(monkeypatch, data, out, "--methods", "dark-otsu,random-forest")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["method"], line["seed"]) for line in lines] == [
        ("dark-otsu", 0), ("random-forest", 0), ("dark-otsu", 1), ("random-forest", 1),
    ]  # fmt: skip
    assert all(line["fg_iou"] > 0.8 for line in lines)
    assert {line["images"] for line in lines} == {6}
    table = capsys.readouterr().out.splitlines()[-4:]
    assert table[0].startswith("| method | images | epochs | seeds | seconds | fg_iou |")
    assert table[2].startswith("| dark-otsu | 6 | 1 | 2 | 0 | 0.9")

    before = out.read_text()
    run(monkeypatch, data, out, "--methods", "dark-otsu")  # nothing is done twice
    assert out.read_text() == before
    with pytest.raises(SystemExit):
        run(monkeypatch, data, out, "--methods", "magic")
    assert "no method magic" in capsys.readouterr().err


def test_the_tables_figures_are_medians_of_the_last_epochs() -> None:
    def line(seed: int, epoch: int, iou: float) -> dict[str, object]:
        figures = dict.fromkeys(accuracy.FIGURES, iou)
        known = {"data": "d", "method": "m", "images": 9, "epochs": 2, "seconds": 10.0 * epoch}
        return {**known, "seed": seed, "epoch": epoch, **figures}

    lines = [
        line(0, 1, 0.9),
        line(0, 2, 0.5),
        line(1, 2, 0.6),
        line(2, 2, 0.8),
        {**line(3, 2, 0.1), "data": "x"},
    ]
    row = accuracy.table(lines, "d").splitlines()[2]
    assert row.startswith("| m | 9 | 2 | 3 | 20 | 0.600 (0.500 to 0.800) | ")


def test_the_ablation_trains_each_variant(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"trunk": "random-nano", "width": 8, "adapter_dim": 4, "cache_gb": 0.0}
    config = tmp_path / "small.yaml"
    config.write_text(json.dumps({**small, "epochs": 1}))
    out = tmp_path / "lines.jsonl"
    arguments = ["ablation", "--data", data, "--out", out, "--seeds", 1, "--size", 64, "--config", config]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    ablation.main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["method"] for line in lines] == [f"{name}, small" for name in ablation.VARIANTS]
    assert "| default, small | 6 | 1 | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["no adapters", "no edge attention", "no receptive-field blocks"])
def test_a_part_is_missing_while_its_variant_trains_and_predicts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = ablation.VARIANTS[name]
    assert isinstance(variant, ablation.Without)
    torch.manual_seed(0)
    sizes = {Adapter: (8, 4), EdgeAttention: (8, 1), ReceptiveFieldBlock: (8, 8)}
    part, x = variant.part(*sizes[variant.part]), torch.rand(2, 8, 8, 8)
    for tensor in part.parameters():
        torch.nn.init.normal_(tensor)

    def said() -> torch.Tensor:
        output = part(x)
        return output if isinstance(output, torch.Tensor) else output[0]

    def run(variant: accuracy.ELNet, task: accuracy.Task) -> Iterator[torch.Tensor]:
        yield said()

    monkeypatch.setattr(accuracy.ELNet, "__call__", run)
    whole = said()
    [without] = variant(accuracy.Task([], 0, 1, 64, {}))
    assert without.shape == whole.shape
    assert not torch.equal(without, whole)
    assert torch.equal(said(), whole)


def test_a_share_is_of_whole_scenes() -> None:
    pairs = [Pair(f"{i}", Path(f"{i}.png"), (Path("m"),), f"scene{i // 2}") for i in range(20)]
    chosen = accuracy.choose(pairs, 0.3, seed=1)
    assert len(chosen) == 6
    assert len({pair.scene for pair in chosen}) == 3
    assert chosen == accuracy.choose(pairs, 0.3, seed=1)
    assert chosen != accuracy.choose(pairs, 0.3, seed=2)
    assert accuracy.choose(pairs, 1.0, seed=1) == pairs


@pytest.mark.parametrize("half", [False, True])
def test_a_u_net_learns(data: Path, half: bool) -> None:
    pytest.importorskip("monai", reason="the U-Net of the benchmark is MONAI's: pip install monai")
    pairs, _ = find_pairs(data / "train")
    model, _ = classical.train_unet(SegmentationData(pairs, 64), epochs=30, seed=0, half=half)
    crops = SegmentationData(pairs, 64, augment=False)
    found = classical.network_mask(model, crops[0].image)
    truth = crops[0].masks[0].numpy() > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.6


def test_sizes_that_are_no_multiple_of_32_are_padded() -> None:
    class Seeing(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] % 32 == x.shape[-2] % 32 == 0
            return x[:, :1] - 0.5

    image = torch.rand(3, 45, 70)
    assert np.array_equal(classical.network_mask(Seeing(), image), (image[0] > 0.5).numpy())
