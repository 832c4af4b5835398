"""The adapter: 1.0.9 for real and over HTTP; the 2.x interface through a stand-in with its signatures."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from sqlalchemy import select

from active_learning import registry
from active_learning.ledger import InboxEvent, Ledger, Prediction, Project, Task
from backend import label_studio_ml
from backend.regions import regions_to_masks
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.elnet import SAM2ELNet
from model.hiera import trunk_spec

ROOT = Path(__file__).parents[2]
CLASSES = ["building", "road"]


def make_checkpoint(folder: Path) -> str:
    """A two-class checkpoint of the nano network; the sha256 of its weights."""
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(0)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 2, width=8)
    return save_checkpoint(
        folder, model, ModelCard("elnet-0001", "random-nano", sha256, tuple(CLASSES), 64, model.architecture)
    )


@pytest.fixture
def installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    """A state folder with a champion, task 1 not predicted yet, and task 2 with a known prediction."""
    monkeypatch.setenv("ELNET_STATE", str(tmp_path))
    monkeypatch.setenv("ELNET_DEVICE", "cpu")
    (tmp_path / "media").mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "media" / "s1.png")
    sha256 = make_checkpoint(tmp_path / "models" / "elnet-0001")
    masks = np.zeros((2, 48, 64), dtype=np.bool_)
    masks[1, 10:20, 5:50] = True
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        ledger.upgrade()
        with ledger.session() as session:
            project = Project(name="town", tool_url="http://tool", tool_project_id=7, classes=CLASSES)
            uri = "/data/local-files/?d=s2.png"
            task = Task(project=project, tool_task_id=2, image_uri=uri, data={"image": uri}, scene="s2")
            session.add_all([project, task])
            session.flush()
            version = registry.register(session, project, tmp_path / "models" / "elnet-0001", sha256)
            registry.promote(session, version)
            made = {"masks": masks, "score": 0.8, "quality": 0.7, "signals": {"usable": True}}
            session.add(Prediction(task_id=task.id, model_version_id=version.id, **made))
        yield ledger
        label_studio_ml.connected.cache_clear()


def tasks() -> list[dict[str, Any]]:
    return [
        {"id": n, "project": 7, "data": {"image": f"/data/local-files/?d=s{n}.png"}, "annotations": []}
        for n in (1, 2, 3)
    ]


def check(results: list[dict[str, Any]]) -> None:
    """Task 1 is computed, task 2 served from the ledger, task 3 has no image."""
    computed, served, broken = results
    assert computed["model_version"] == served["model_version"] == "elnet-0001"
    assert 0 <= computed["score"] <= 1
    assert "error" not in computed
    assert served["score"] == 0.7
    masks, _ = regions_to_masks(served["result"], CLASSES, 48, 64)
    assert masks[1, 10:20, 5:50].all()
    assert masks.sum() == 450
    assert broken["result"] == []
    assert "s3.png" in broken["error"]


def inbox(ledger: Ledger) -> list[tuple[str, int | None]]:
    with ledger.session(write=False) as session:
        rows = session.execute(select(InboxEvent.action, InboxEvent.tool_project_id).order_by(InboxEvent.id))
        return [(action, project) for action, project in rows]


def test_without_label_studio_ml_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "label_studio_ml", None)
    with pytest.raises(label_studio_ml.LabelStudioMLMissingError, match=r"1\.0\.9.*redis rq.*elnet web"):
        _ = label_studio_ml.ELNetBackend
    with pytest.raises(AttributeError):
        _ = label_studio_ml.Nothing


class StandIn:
    """Label-studio-ml 2.x as its model.py documents it: the cache, the hook, the signatures."""

    cache: dict[tuple[str, str], Any] = {}  # noqa: RUF012 - shared, as the real one is

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        if not self.get("model_version"):
            self.set("model_version", "0.0.1")
        self.setup()

    def setup(self) -> None:
        """A hook."""

    def get(self, key: str) -> Any:
        return self.cache.get((self.project_id, key))

    def set(self, key: str, value: Any) -> None:
        self.cache[self.project_id, key] = value

    @property
    def label_config(self) -> Any:
        return self.get("label_config")

    def predict(self, tasks: list[dict], context: dict | None = None, **kwargs: Any) -> Any:
        raise NotImplementedError

    def fit(self, event: str, data: dict, **additional_params: Any) -> Any:
        raise NotImplementedError


@pytest.fixture
def second_line(monkeypatch: pytest.MonkeyPatch) -> Iterator[type]:
    """`ELNetBackend` over the stand-in."""
    package, module = types.ModuleType("label_studio_ml"), types.ModuleType("label_studio_ml.model")
    module.LabelStudioMLBase = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "label_studio_ml", package)
    monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
    monkeypatch.setattr(StandIn, "cache", {})
    yield label_studio_ml.ELNetBackend
    vars(label_studio_ml).pop("ELNetBackend", None)


def test_the_second_line(installation, second_line, payloads):
    config = payloads.project["label_config"]
    model = second_line(project_id="7", label_config=config)
    assert model.get("model_version") == "elnet-0001"
    check(model.predict(tasks(), context={}, login=None, password=None))
    [prompt] = model.predict(tasks()[:1], context={"result": [{"type": "keypointlabels"}]})
    assert prompt["result"] == []
    assert model.predict([]) == []
    data = {"project": {"id": 7, "label_config": config}, **payloads.created(5, 2)}
    del data["action"]
    model.fit("ANNOTATION_CREATED", data, job_id="1")
    model.fit("START_TRAINING", {"project": {"id": 7}})
    model.fit(())
    assert inbox(installation) == [("ANNOTATION_CREATED", 7), ("START_TRAINING", 7)]


def test_the_second_line_before_the_project_and_the_champion(installation, second_line, payloads):
    assert second_line(project_id="99").get("model_version") == "0.0.1"
    [result] = second_line(project_id="99", label_config="<View/>").predict(tasks()[:1])
    assert "no project 99" in result["error"]


def test_the_class_can_be_pickled_by_name(second_line):
    assert (second_line.__module__, second_line.__qualname__) == (
        "backend.label_studio_ml",
        "ELNetBackend",
    )
    assert label_studio_ml.ELNetBackend is second_line


SERVER = """
import sys
from label_studio_ml.api import init_app
from backend.label_studio_ml import ELNetBackend
app = init_app(ELNetBackend, model_dir=sys.argv[2])
if __name__ == "__main__":
    app.run("127.0.0.1", int(sys.argv[1]))
"""


@pytest.fixture(scope="session")
def ml_python() -> Path:
    """The interpreter of an environment with label-studio-ml 1.0.9, made now if `make test` has not."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "label_studio_ml_environment.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    if done.returncode:
        pytest.skip(f"label-studio-ml 1.0.9 cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    return Path(done.stdout.strip())


@pytest.fixture
def first_line(
    installation: Ledger, ml_python: Path, tmp_path: Path
) -> Iterator[Callable[..., httpx.Response]]:
    """Label-studio-ml 1.0.9 with our class, served by its own Flask application; `ask(method, path, ...)`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "server.py").write_text(SERVER)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(ml_python), str(tmp_path / "server.py"), str(port), str(tmp_path / "jobs")],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    url = f"http://127.0.0.1:{port}"

    def ask(method: str, path: str, **options: Any) -> httpx.Response:
        return httpx.request(method, url + path, timeout=60, trust_env=False, **options)

    end = time.monotonic() + 90
    while True:
        try:
            ask("GET", "/health")
            break
        except httpx.TransportError:
            text = (tmp_path / "log").read_text()
            assert process.poll() is None, text
            assert time.monotonic() < end, text
            time.sleep(0.2)
    yield ask
    process.terminate()
    process.wait(30)


def test_the_first_line_over_http(first_line, installation, payloads):
    assert first_line("GET", "/health").json()["status"] == "UP"
    config = payloads.project["label_config"]
    setup = {"project": "7.1795143225", "schema": config, "hostname": "http://tool", "access_token": "t"}
    assert first_line("POST", "/setup", json=setup).json()["model_version"] == "INITIAL"
    params = {"login": None, "password": None, "context": None}
    body = {"tasks": tasks(), "project": "7.1795143225", "label_config": config, "params": params}
    answer = first_line("POST", "/predict", json=body)
    assert answer.status_code == 200, answer.text
    check(answer.json()["results"])
    for event in (payloads.created(5, 2), payloads.event("START_TRAINING")):
        assert first_line("POST", "/webhook", json=event).status_code == 201
    end = time.monotonic() + 90
    while len(inbox(installation)) < 2:
        assert time.monotonic() < end, inbox(installation)
        time.sleep(0.2)
    assert sorted(inbox(installation)) == [("ANNOTATION_CREATED", 7), ("START_TRAINING", 7)]
    # No result of `fit` may turn up as a model version.
    assert first_line("POST", "/setup", json=setup).json()["model_version"] == "INITIAL"
