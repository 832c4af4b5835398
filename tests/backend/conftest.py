"""What tests of the backend share: an HTTP server, a labeling tool in memory, a real Label Studio."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from argon2 import PasswordHasher
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from pydantic import SecretStr
from werkzeug.serving import make_server

from active_learning import registry
from active_learning.ledger import Ledger, ModelVersion, Project
from active_learning.ports import ToolAnnotation, ToolTask, ToolUnavailableError
from backend import passwords
from backend.annotations import decode_annotation
from backend.app import create_app
from backend.cli import main
from backend.embedded import EmbeddedLabelStudio
from backend.label_studio import LabelStudio
from backend.label_studio_install import InstallError, find_program
from backend.regions import encode_rle
from backend.settings import DeskSettings, LabelStudioSettings, MediaSettings, Settings, WebSettings
from model.predictor import ImagePrediction
from model.raster import Raster

Answer = tuple[int, dict[str, str], bytes]

CLASSES = ["building", "road"]
HUMAN, MACHINE = 1, 2
T0 = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)
LABEL_CONFIG = """<View><Image name="image" value="$image"/>
<BrushLabels name="brush" toName="image"><Label value="building"/><Label value="road"/></BrushLabels>
</View>"""


@dataclass
class Server:
    """A small HTTP server on the loopback: a path, or a callable on the request, gives each answer."""

    url: str = ""
    port: int = 0
    answers: dict[str, Answer | Callable[[BaseHTTPRequestHandler], Answer]] = field(default_factory=dict)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    known = Server()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            known.requests.append((self.path, dict(self.headers)))
            found = known.answers.get(self.path.partition("?")[0], (404, {}, b""))
            status, headers, body = found(self) if callable(found) else found
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                if value:
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    known.port = httpd.server_address[1]
    known.url = f"http://127.0.0.1:{known.port}"
    yield known
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@dataclass
class Said:
    """What a command ended with."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def elnet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The whole command line in this process: arguments in; exit code, stdout and stderr out."""

    def run(*arguments: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["elnet", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        captured = capsys.readouterr()
        return Said(int(exit_.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings' environment is this test's alone: the state folder is `tmp_path`, as for `ledger`."""
    for name in [name for name in os.environ if name.upper().startswith("ELNET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ELNET_STATE", str(tmp_path))
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ELNET_USER", "ada")
    return tmp_path


class Payloads:
    """Small payloads of the form that Label Studio sends; project 7, images of 6 x 8 pixels."""

    def __init__(self) -> None:
        self.project = {"id": 7, "label_config": LABEL_CONFIG, "updated_at": T0.isoformat()}

    def mask(self, seed: int) -> np.ndarray:
        """(6, 8) bool, never empty."""
        mask = np.random.default_rng(seed).random((6, 8)) > 0.5
        mask[0, 0] = True
        return mask

    def region(self, mask: np.ndarray, label: str = "building", **changes: Any) -> dict[str, Any]:
        return {
            "id": "r",
            "type": "brushlabels",
            "from_name": "brush",
            "to_name": "image",
            "original_width": mask.shape[1],
            "original_height": mask.shape[0],
            "image_rotation": 0,
            "value": {"format": "rle", "rle": encode_rle(mask), "brushlabels": [label]},
            **changes,
        }

    def task(self, task_id: int) -> dict[str, Any]:
        uri = f"/data/local-files/?d=imgs/s{task_id}.png"
        return {"id": task_id, "project": 7, "data": {"image": uri}, "updated_at": T0.isoformat()}

    def annotation(self, annotation_id: int, task_id: int, seed: int = 0, **changes: Any) -> dict[str, Any]:
        return {
            "id": annotation_id,
            "task": task_id,
            "project": 7,
            "result": [self.region(self.mask(seed))],
            "was_cancelled": False,
            "updated_at": (T0 + timedelta(seconds=seed)).isoformat(),
            "lead_time": 3.5,
            "completed_by": HUMAN,
            "updated_by": changes.get("completed_by", HUMAN),
            "parent_prediction": None,
            "prediction": {},
            **changes,
        }

    def event(self, action: str, **parts: Any) -> dict[str, Any]:
        return {"action": action, "project": dict(self.project), **parts}

    def created(
        self, annotation_id: int, task_id: int, seed: int = 0, *, action: str = "ANNOTATION_CREATED", **c: Any
    ) -> dict[str, Any]:
        annotation = self.annotation(annotation_id, task_id, seed, **c)
        return self.event(action, annotation=annotation, task=self.task(task_id))


@pytest.fixture
def payloads() -> Payloads:
    return Payloads()


class MemoryTool:
    """A labeling tool that holds annotations as Label Studio's API would give them."""

    def __init__(self) -> None:
        self.listed: dict[int, dict[str, Any]] = {}
        self.annotated: dict[int, dict[str, Any]] = {}
        self.down = False
        self.asked: list[str] = []

    def machine_annotator(self) -> str:
        self._ask("machine_annotator")
        return str(MACHINE)

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        self._ask("tasks")
        for task in self.listed.values():
            yield ToolTask(task["id"], task["data"]["image"], task["data"])

    def annotations(self, tool_project_id: int, classes: Sequence[str]) -> Iterator[ToolAnnotation]:
        self._ask("annotations")
        for annotation in self.annotated.values():
            yield decode_annotation(annotation, classes, str(MACHINE))

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise ToolUnavailableError("the tool does not answer")


@pytest.fixture
def memory_tool() -> MemoryTool:
    return MemoryTool()


def add_project(ledger: Ledger, **changes: Any) -> Project:
    """Project 7 of the tool, classes building and road."""
    values = {"name": "town", "tool_url": "http://tool", "tool_project_id": 7, "classes": CLASSES}
    with ledger.session() as session:
        project = Project(**{**values, **changes})
        session.add(project)
    return project


@pytest.fixture
def project(ledger: Ledger) -> Project:
    return add_project(ledger)


class SolidImages:
    """Every image is 6 x 8 pixels, all of one value; `broken` maps a uri to what is raised for it."""

    def __init__(self) -> None:
        self.broken: dict[str, Exception] = {}
        self.opened: list[str] = []

    def open(self, image_uri: str) -> Raster:
        self.opened.append(image_uri)
        if image_uri in self.broken:
            raise self.broken[image_uri]
        return Raster(np.full((6, 8, 3), 200, np.uint8), np.ones((6, 8), np.bool_))


class SolidPredictor:
    """The left half is a building, nothing is a road."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.batches: list[int] = []

    def predict(self, images: Sequence[Raster]) -> list[ImagePrediction]:
        self.batches.append(len(images))
        probability = np.zeros((2, 6, 8), np.float32)
        probability[0, :, :4] = 0.97
        made = ImagePrediction(probability, np.zeros_like(probability), np.ones(4, np.float32))
        return [made] * len(images)


@dataclass
class Site:
    """The application with everything around it."""

    app: Flask
    client: FlaskClient
    ledger: Ledger
    settings: Settings
    images: SolidImages
    loaded: list[SolidPredictor]

    def add_project(self, **changes: Any) -> Project:
        return add_project(self.ledger, **changes)

    def promote(self, project: Project, name: str = "elnet-0001") -> None:
        with self.ledger.session() as session:
            row = session.get_one(Project, project.id)
            sha256 = hashlib.sha256(name.encode()).hexdigest()
            version = registry.register(session, row, Path("models") / name, sha256, name=name)
            registry.promote(session, version)


@pytest.fixture
def make_site(ledger: Ledger, tmp_path: Path) -> Callable[..., Site]:
    """Makes an application over the test's ledger; keyword arguments: of `WebSettings`, and `desk`."""

    def make(*, desk: dict[str, Any] | None = None, **web: Any) -> Site:
        settings = Settings(state=tmp_path, web=WebSettings(**web), desk=DeskSettings(**(desk or {})))
        images, loaded = SolidImages(), []

        def predictor(version: ModelVersion) -> SolidPredictor:
            if not loaded or loaded[-1].version != version.name:
                loaded.append(SolidPredictor(version.name))
            return loaded[-1]

        app = create_app(settings, ledger=ledger, images=images, predictors=predictor)
        return Site(app, app.test_client(), ledger, settings, images, loaded)

    return make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    """An application without passwords, secrets and projects."""
    return make_site()


@pytest.fixture
def cheap_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing costs next to nothing: 64 MiB and three passes each add up."""
    monkeypatch.setattr(passwords, "_hasher", PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
    passwords._nobodys.cache_clear()


@pytest.fixture
def recorded() -> Callable[[str], dict[str, Any]]:
    """A request that Label Studio 1.23.2 really sent, by its name; skips where the recordings are absent."""
    data = Path(os.environ.get("ELNET_DATA", Path(__file__).parents[3] / "shared" / "data"))
    folder = data.parent / "fixtures" / "label_studio"
    if not folder.is_dir():
        pytest.skip(f"no recorded requests at {folder}: name the data folder beside them by ELNET_DATA")

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / f"{name}.json").read_text())

    return read


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedLabelStudio]:
    """The real Label Studio, one for all tests; skips where it is not installed.

    Mark tests that use it with `label_studio`, and give projects names of their own.
    """
    try:
        find_program()
    except InstallError as error:
        pytest.skip(f"{error} (or name it by ELNET_LABEL_STUDIO_BIN)")
    state = tmp_path_factory.mktemp("label-studio")
    with EmbeddedLabelStudio(Settings(state=state, label_studio=LabelStudioSettings(port=0))) as running:
        yield running


@pytest.fixture(scope="session")
def personal_token(label_studio_server: EmbeddedLabelStudio) -> str:
    """A personal access token of the lead's user."""
    headers = {"Authorization": f"Token {label_studio_server.token}"}
    answer = httpx.post(f"{label_studio_server.url}/api/token/", headers=headers, trust_env=False)
    return str(answer.raise_for_status().json()["token"])


@pytest.fixture
def label_studio(label_studio_server: EmbeddedLabelStudio) -> Iterator[LabelStudio]:
    """The tool over the real Label Studio."""
    tool = LabelStudio(label_studio_server.url, label_studio_server.token, label_studio_server.machine_token)
    yield tool
    tool.close()


@dataclass
class Installation:
    """The real Label Studio with a backend that answers it, over an empty ledger; no worker."""

    settings: Settings
    ledger: Ledger
    tool: LabelStudio
    app: Flask


@pytest.fixture
def installation(
    label_studio_server: EmbeddedLabelStudio, label_studio: LabelStudio, ledger: Ledger, tmp_path: Path
) -> Iterator[Installation]:
    settings = Settings(
        state=tmp_path,
        label_studio=LabelStudioSettings(
            url=label_studio_server.url,
            token=SecretStr(label_studio_server.token),
            machine_token=SecretStr(label_studio_server.machine_token),
        ),
        web=WebSettings(
            port=0,
            username="label-studio",
            password=SecretStr("right"),
            webhook_secret=SecretStr("secret"),
        ),
        media=MediaSettings(document_root=label_studio_server.settings.media_root),
    )
    app = create_app(
        settings, ledger=ledger, images=SolidImages(), predictors=lambda v: SolidPredictor(v.name)
    )
    web = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    settings.web.port = web.server_port
    yield Installation(settings, ledger, label_studio, app)
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images of different sizes, each with a mask that is its bright rectangle."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for stem, (height, width) in {"a": (64, 64), "b": (40, 90), "c": (130, 70)}.items():
        pixels = random.integers(0, 120, (height, width, 3), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        mask[10:30, 5:40] = 255
        pixels[mask > 0] += 120
        Image.fromarray(pixels).save(folder / "images" / f"{stem}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
    return folder
