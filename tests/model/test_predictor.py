import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.checkpoint import CheckpointError, ModelCard, load_trunk, save_checkpoint
from model.device import DeviceError, autocast
from model.elnet import ELNetOutput, SAM2ELNet
from model.hiera import Mode, trunk_spec
from model.predictor import PredictionError, Predictor
from model.raster import Raster
from model.symmetry import SYMMETRIES

SIZE = 64
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-class checkpoint of the nano network, with weights as training starts from."""
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(0)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 2, width=8)
    folder = tmp_path_factory.mktemp("checkpoints") / "nano"
    card = ModelCard("nano-0001", "random-nano", sha256, ("water", "oil"), SIZE, model.architecture)
    save_checkpoint(folder, model, card)
    return folder


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Predictor:
    return Predictor(checkpoint, "cpu", batch_size=3)


def raster(height: int, width: int, seed: int = 0) -> Raster:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Raster(pixels, np.ones((height, width), bool))


class Brightness(torch.nn.Module):
    """A network that is told by its input alone: probability = the red channel, edge = the green one."""

    class encoder:  # noqa: N801
        channels = (1, 1, 1, 3)

    quality = None

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, x: torch.Tensor, prompt: torch.Tensor | None = None) -> ELNetOutput:
        self.batches.append(len(x))
        pixels = x * STD + MEAN
        mask, edge = (torch.logit(pixels[:, c : c + 1], eps=1e-6) for c in (0, 1))
        return ELNetOutput(
            torch.cat([mask, edge], 1), torch.cat([edge, mask], 1), [], [], pixels.mean((2, 3))
        )


@pytest.fixture
def seeing(checkpoint: Path) -> Predictor:
    """The predictor with a network whose right answer is known."""
    predictor = Predictor(checkpoint, "cpu", batch_size=3)
    predictor._model = Brightness()  # type: ignore[assignment]
    return predictor


def test_a_prediction_has_the_images_size_and_the_cards_classes(predictor: Predictor) -> None:
    (found,) = predictor.predict([raster(50, 130)])
    assert found.probability.shape == found.edge.shape == (2, 50, 130)
    assert found.probability.dtype == found.edge.dtype == found.embedding.dtype == np.float32
    assert found.embedding.shape == (128,)
    for part in (found.probability, found.edge, found.embedding):
        assert np.isfinite(part).all()
    assert found.probability.min() >= 0
    assert found.probability.max() <= 1
    assert predictor.version == "nano-0001"


def test_the_network_itself_stands_behind_it(predictor: Predictor) -> None:
    image = raster(SIZE, SIZE)
    x = torch.from_numpy(image.pixels).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(
        3, 1, 1
    )
    with torch.inference_mode(), autocast(torch.device("cpu")):
        expected = predictor._model(x)
    (found,) = predictor.predict([image])
    np.testing.assert_allclose(found.probability, expected.mask[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(found.edge, expected.edge[0].sigmoid(), atol=1e-5)
    np.testing.assert_allclose(found.embedding, expected.embedding[0], atol=1e-5)


@pytest.mark.parametrize("mode", ["full", "late", "cached"])
def test_what_is_kept_on_disk_changes_nothing_but_the_time(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))
    trunk, sha256 = load_trunk("random-nano")
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, mode=mode, width=8)
    card = ModelCard("nano-0001", "random-nano", sha256, ("water",), SIZE, model.architecture)
    save_checkpoint(tmp_path / "nano", model, card)
    images = [raster(50, 130), raster(64, 64, seed=1)]
    [plain, again, kept] = [
        Predictor(tmp_path / "nano", "cpu", cache_gb=gb).predict(images) for gb in (0, 1, 1)
    ]
    files = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert len(files) == (0 if mode == "full" else 4)  # tiles
    for one, two, three in zip(plain, again, kept, strict=True):
        np.testing.assert_array_equal(two.probability, three.probability)
        np.testing.assert_allclose(one.probability, two.probability, atol=0.02)  # kept as float16


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=1, max_size=4),
    batch_size=st.integers(1, 9),
)
def test_every_pixel_gets_its_own_answer(
    seeing: Predictor, sizes: list[tuple[int, int]], batch_size: int
) -> None:
    seeing.batch_size = batch_size
    images = [raster(height, width, seed) for seed, (height, width) in enumerate(sizes)]
    for image, found in zip(images, seeing.predict(images), strict=True):
        planes = image.pixels.transpose(2, 0, 1) / 255
        np.testing.assert_allclose(found.probability, planes[:2], atol=2e-3)
        np.testing.assert_allclose(found.edge, planes[1::-1], atol=2e-3)


def test_tiles_of_all_images_share_batches_that_never_grow(seeing: Predictor) -> None:
    seeing.predict([raster(SIZE, SIZE), raster(SIZE, 3 * SIZE), raster(10, 10)])
    batches = seeing._model.batches  # type: ignore[attr-defined]
    assert max(batches) == 3
    assert batches[:-1] == [3] * (len(batches) - 1)


def test_an_image_is_predicted_the_same_alone_and_among_others(predictor: Predictor) -> None:
    images = [raster(70, 90, 1), raster(40, 40, 2), raster(130, 64, 3)]
    for image, among in zip(images, predictor.predict(images), strict=True):
        (alone,) = predictor.predict([image])
        np.testing.assert_allclose(among.probability, alone.probability, atol=1e-5)
        np.testing.assert_allclose(among.embedding, alone.embedding, atol=1e-5)


def test_nodata_gets_nothing(seeing: Predictor) -> None:
    image = raster(100, 100)
    image.pixels[:] = 255
    image.valid[:, 40:] = False
    (found,) = seeing.predict([image])
    assert (found.probability[:, :, 40:] == 0).all()
    assert (found.edge[:, :, 40:] == 0).all()
    np.testing.assert_allclose(found.probability[:, :, :40], 1, atol=1e-3)


def test_windows_of_nodata_are_not_predicted(seeing: Predictor) -> None:
    image = raster(SIZE, 20 * SIZE)
    image.valid[:, 10:] = False
    seeing.predict([image])
    assert sum(seeing._model.batches) == 1  # type: ignore[attr-defined]


def test_an_image_without_a_valid_pixel_is_empty(seeing: Predictor) -> None:
    blank = Raster(np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40), bool))
    first, found, last = seeing.predict([raster(20, 20), blank, raster(20, 20)])
    assert found.probability.shape == (2, 30, 40)
    assert not found.probability.any()
    assert not found.edge.any()
    assert not found.embedding.any()
    np.testing.assert_array_equal(first.probability, last.probability)
    assert first.probability.any()


def test_no_images(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_the_embedding_weighs_tiles_by_their_valid_pixels(seeing: Predictor) -> None:
    image = raster(SIZE, SIZE + 48)  # two windows, at columns 0 and 48
    image.pixels[:, :] = 0
    image.pixels[:, 64:] = 255
    image.valid[:, 48:64] = False
    (found,) = seeing.predict([image])
    left, right = 48, 48  # valid columns of either window
    bright = [0 / 64, 48 / 64]  # share of bright columns in either
    expected = (left * bright[0] + right * bright[1]) / (left + right)
    np.testing.assert_allclose(found.embedding, expected, atol=1e-4)


def test_threads_take_turns(predictor: Predictor) -> None:
    images = [raster(90, 90, seed) for seed in range(4)]
    alone = [predictor.predict([image])[0] for image in images]
    together: dict[int, Any] = {}

    def work(i: int) -> None:
        together[i] = predictor.predict([images[i]])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        np.testing.assert_array_equal(together[i].probability, expected.probability)


def test_a_batch_is_halved_when_memory_runs_out(seeing: Predictor) -> None:
    network = seeing._model

    class Small(Brightness):
        def forward(self, x: torch.Tensor, prompt: torch.Tensor | None = None) -> ELNetOutput:
            if len(x) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return network(x)  # type: ignore[no-any-return]

    images = [raster(SIZE, SIZE, seed) for seed in range(3)]
    expected = seeing.predict(images)
    seeing._model = Small()  # type: ignore[assignment]
    for found, known in zip(seeing.predict(images), expected, strict=True):
        np.testing.assert_array_equal(found.probability, known.probability)


def test_no_memory_for_a_single_tile(seeing: Predictor) -> None:
    class Smaller(Brightness):
        def forward(self, x: torch.Tensor, prompt: torch.Tensor | None = None) -> ELNetOutput:
            raise torch.OutOfMemoryError("CUDA out of memory")

    seeing._model = Smaller()  # type: ignore[assignment]
    with pytest.raises(PredictionError, match="does not hold one tile of 64 px"):
        seeing.predict([raster(SIZE, SIZE)])


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        Predictor(tmp_path)


def test_a_device_that_is_not_there(checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="unknown device 'tpu9000'"):
        Predictor(checkpoint, "tpu9000")


class Corner(Brightness):
    """Foreground is where the input's own upper left quarter is, whatever the image shows: no symmetry."""

    def forward(self, x: torch.Tensor, prompt: torch.Tensor | None = None) -> ELNetOutput:
        output = super().forward(x)
        place = torch.full_like(output.mask, -2.0)
        place[..., : x.shape[-2] // 2, : x.shape[-1] // 2] = 2.0
        return output._replace(mask=place)


@pytest.mark.parametrize("flips", [2, 4, 8])
def test_views_of_a_network_that_sees_no_direction_agree(seeing: Predictor, flips: int) -> None:
    image = raster(40, 150, seed=3)
    [plain] = seeing.predict([image])
    seeing._views = SYMMETRIES[:flips]
    [found] = seeing.predict([image])
    np.testing.assert_allclose(found.probability, plain.probability, atol=1e-4)
    np.testing.assert_allclose(found.edge, plain.edge, atol=1e-4)
    np.testing.assert_allclose(found.embedding, plain.embedding, atol=1e-6)
    assert plain.votes is None
    assert found.votes is not None
    np.testing.assert_array_equal(found.votes > 0.5, plain.probability > 0.5)
    assert set(np.unique(found.votes)) == {0.0, 1.0}


@pytest.mark.parametrize(("flips", "corners"), [(2, 0.5), (4, 0.25), (8, 0.25)])
def test_views_that_differ_are_averaged_and_counted(seeing: Predictor, flips: int, corners: float) -> None:
    seeing._model = Corner()  # type: ignore[assignment]
    seeing._views = SYMMETRIES[:flips]
    [found] = seeing.predict([raster(SIZE, SIZE)])
    assert found.votes is not None
    assert found.votes[0, 0, 0] == found.votes[0, 0, -1] == pytest.approx(corners)
    assert found.votes[0, -1, 0] == pytest.approx(0 if flips == 2 else corners)
    low, high = 1 / (1 + np.exp(2)), 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found.probability[0, 0, 0], corners * high + (1 - corners) * low, atol=1e-5)


def test_views_hold_no_votes_where_the_image_is_not_valid(checkpoint: Path) -> None:
    predictor = Predictor(checkpoint, "cpu", flips=2)
    image = raster(50, 70)
    image.valid[:, 40:] = False
    blank = Raster(image.pixels, np.zeros_like(image.valid))
    found, nothing = predictor.predict([image, blank])
    assert found.votes is not None
    assert nothing.votes is not None
    assert not found.votes[:, :, 40:].any()
    assert nothing.votes.shape == (2, 50, 70)
    assert not nothing.votes.any()


def test_there_are_1_2_4_or_8_views(checkpoint: Path) -> None:
    with pytest.raises(PredictionError, match="take 1, 2, 4 or 8"):
        Predictor(checkpoint, "cpu", flips=3)


class Echo(Brightness):
    """Says what it is prompted with."""

    def forward(self, x: torch.Tensor, prompt: torch.Tensor | None = None) -> ELNetOutput:
        output = super().forward(x)
        assert prompt is not None
        return output._replace(mask=6 * prompt[:, ::2] - 3)


def test_coarse_masks_are_flipped_with_their_images(seeing: Predictor) -> None:
    seeing._model = Echo()  # type: ignore[assignment]
    seeing._views = SYMMETRIES
    seeing.card = replace(seeing.card, architecture={"prompt": True})
    coarse = np.random.default_rng(0).random((2, 40, 150)) < 0.5
    [found] = seeing.predict([raster(40, 150)], [coarse])
    np.testing.assert_array_equal(found.probability > 0.5, coarse)
    np.testing.assert_array_equal(found.votes, coarse)
