"""What tests of the backend share: an HTTP server, a labeling tool in memory, Label Studio's payloads."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from active_learning.ledger import Ledger, Project
from active_learning.ports import ToolAnnotation, ToolTask, ToolUnavailableError
from backend.annotations import decode_annotation
from backend.regions import encode_rle

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
            "updated_by": HUMAN,
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
