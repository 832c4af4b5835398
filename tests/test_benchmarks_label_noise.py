"""The benchmark of wrong labels, on samples whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from active_learning.signals import features, score, signals
from benchmarks import label_noise
from benchmarks.label_noise import Sample, compare, softmin, spoilt


def disc(row: float, col: float, radius: float) -> NDArray[np.bool_]:
    y, x = np.ogrid[:64, :64]
    return np.asarray((y - row) ** 2 + (x - col) ** 2 < radius**2)


@pytest.fixture
def sample() -> Sample:
    """Sixty discs; of each third one nothing is seen, and the model says so."""
    random = np.random.default_rng(0)
    made = Sample([], [], [], [], [])
    for i in range(60):
        label = disc(*random.uniform(20, 44, 2), random.uniform(8, 16))
        sure = np.where(label, 0.97, 0.03) if i % 3 else random.uniform(0.3, 0.7, label.shape)
        measured = signals(sure[None])
        made.probabilities.append(sure.astype(np.float32))
        made.labels.append(label)
        made.scenes.append(f"scene-{i}")
        made.scores.append(score(measured))
        made.features.append(features(measured.to_dict()))
    return made


def test_what_the_model_never_saw_is_not_suspected(sample: Sample) -> None:
    drawn = [compare(sample, seed) for seed in range(5)]
    precision = {name: np.mean([one[name][0] for one in drawn]) for name in drawn[0]}
    assert precision["shortfall (ours)"] > precision["one minus IoU"] + 0.2


def test_wrong_labels_are_wrong() -> None:
    random = np.random.default_rng(0)
    two = disc(15, 15, 10) | disc(50, 50, 5)
    labels = [two, disc(30, 30, 12)]
    seen = {spoilt(labels, 0, random).tobytes() for _ in range(60)}
    assert disc(50, 50, 5).tobytes() in seen  # without its largest part
    assert disc(30, 30, 12).tobytes() in seen  # the other image's
    assert np.zeros_like(two).tobytes() in seen
    assert not any((spoilt(labels[1:], 0, random) & labels[1]).sum() > labels[1].sum() for _ in range(20))


def test_softmin_looks_at_the_worst_pixels() -> None:
    assert softmin(np.full((4, 4), 0.6)) == pytest.approx(0.6)
    one_bad = np.full(100, 0.9)
    one_bad[0] = 0.0
    # (0.9 * 99 e^1 + 0) / (99 e^1 + e^10)
    assert softmin(one_bad) == pytest.approx(0.9 * 99 * np.e / (99 * np.e + np.e**10))


def test_the_table(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(label_noise, "Predictor", lambda path: path)
    monkeypatch.setattr(label_noise, "collect", lambda predictor, data: sample)
    arguments = ["label_noise", "--checkpoint", "c", "--data", str(tmp_path), "--draws", "2"]
    monkeypatch.setattr(sys, "argv", arguments)
    label_noise.main()
    said = capsys.readouterr().out
    assert "60 labels, 10% of them made wrong, mean of 2 draws" in said
    assert "| softmin (cleanlab) | " in said
