"""A file server that can misbehave, and a nano trunk with published weights."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from model import download, hiera, weights


@dataclass
class FileServer:
    """Serves `files` on 127.0.0.1 and records what was asked.

    Attributes:
        break_after: bytes after which the connection is cut, one entry per request; None lets it through.
        statuses: to answer instead, one entry per request.
        ranges: whether Range requests are understood.
    """

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    break_after: list[int | None] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    ranges: bool = True
    asked: list[str | None] = field(default_factory=list)  # Range headers


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(self.headers.get("Range"))
            content = server.files.get(self.path)
            status = server.statuses.pop(0) if server.statuses else 200 if content is not None else 404
            if status != 200 or content is None:
                self.send_error(status)
                return
            start = 0
            if server.ranges and (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                start = int(asked[1])
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
            else:
                self.send_response(200)
            body = content[start:]
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = server.break_after.pop(0) if server.break_after else None
            self.wfile.write(body[:cut])
            if cut is not None:
                self.connection.close()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(download, "RETRY_S", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = FileServer("")
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of it
    server.url = f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield server
    httpd.shutdown()
    thread.join()
    httpd.server_close()


NANO = "sam2-hiera-nano"
NANO_PATH = "000000/sam2_hiera_nano.pt"


@pytest.fixture
def elnet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def nano_state() -> dict[str, torch.Tensor]:
    """Tensors of a whole checkpoint of SAM 2, with a trunk a thousand times smaller."""
    trunk = hiera.build_trunk("random-nano", None)
    state = {f"image_encoder.trunk.{name}": tensor for name, tensor in trunk.state_dict().items()}
    return state | {"no_mem_embed": torch.zeros(1, 1, 256), "memory_encoder.weight": torch.ones(3)}


@pytest.fixture
def nano_checkpoint(
    tmp_path: Path, nano_state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A .pt as Meta's, of a trunk NANO that counts as published."""
    path = tmp_path / "sam2_hiera_nano.pt"
    torch.save({"model": nano_state}, path)
    spec = replace(hiera.TRUNKS["random-nano"], name=NANO, seed=None)
    monkeypatch.setitem(hiera.TRUNKS, NANO, spec)
    monkeypatch.setitem(weights.META_PATHS, NANO, NANO_PATH)
    monkeypatch.setitem(weights.META_SHA256, NANO_PATH, hashlib.sha256(path.read_bytes()).hexdigest())
    return path
