"""Everything for real, once for all tests: Label Studio, backend and worker, over a tiny network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from active_learning import standing
from active_learning.ledger import Ledger, Project
from backend.label_studio import LabelStudio
from backend.label_studio_install import InstallError, find_program
from backend.settings import LabelStudioSettings, LoopSettings, Settings, WebSettings
from backend.stack import Stack
from model.raster import write_png
from tests.integration.chromium import chromium

WITHIN_S = 150.0  # for anything to happen: machines that run tests may be slow and busy

TRAINING = {  # seconds, and yet masks that look like the blobs
    "trunk": "random-nano",
    "cache_gb": 0.0,
    "size": 64,
    "mode": "full",  # what a trunk of random weights says is of little use as it is
    "epochs": 8,
    "batch_size": 2,
    "width": 8,
    "adapter_dim": 4,
}

Found = TypeVar("Found")


class Site:
    """A running stack, its ledger and its Label Studio; `until` waits for what the worker does by itself."""

    def __init__(self, stack: Stack, ledger: Ledger, tool: LabelStudio) -> None:
        self.stack, self.ledger, self.tool = stack, ledger, tool

    def until(self, what: str, found: Callable[[], Found | None], *, mend: bool = False) -> Found:
        """The first value of `found` that is neither None nor False."""
        give_up = time.monotonic() + WITHIN_S
        while time.monotonic() < give_up:
            if mend:
                self.stack.mend()
            value = found()
            if value is not None and value is not False:
                return value
            time.sleep(0.1)
        logs = "\n".join(f"--- {name}.log\n{self.log(name)[-3000:]}" for name in ("web", "worker"))
        raise AssertionError(f"{what}: nothing after {WITHIN_S:.0f} s\n{logs}")

    def ask(self, question: Callable[[Session], Found]) -> Found:
        """Read the ledger."""
        with self.ledger.session(write=False) as session:
            return question(session)

    def settle(self, project: Project) -> None:
        """Wait until every event is worked off and Label Studio knows what the ledger has decided."""

        def settled(session: Session) -> bool:
            return standing.is_settled(session, session.get_one(Project, project.id))

        self.until("settled", lambda: self.ask(settled))

    def log(self, name: str) -> str:
        """What the web application or the worker printed up to now."""
        path = self.stack.settings.state / "logs" / f"{name}.log"
        return path.read_text(errors="replace") if path.is_file() else ""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The stack under test; skips where Label Studio is not installed.

    The worker reads Label Studio's API only when it starts and after an outage (`reconcile_s`): all that the
    ledger learns in between came by webhooks.
    """
    try:
        find_program()
    except InstallError as error:
        pytest.skip(f"{error} (or name it by ELNET_LABEL_STUDIO_BIN)")
    settings = Settings(
        state=tmp_path_factory.mktemp("site"),
        device="cpu",
        trunk="random-nano",
        poll_s=0.1,
        reconcile_s=3600,
        label_studio=LabelStudioSettings(port=0),
        web=WebSettings(port=0),
        loop=LoopSettings(accept_threshold=None, labels_per_cycle=6, cooldown_s=0, training=TRAINING),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Stack(settings) as stack, Ledger(stack.settings.ledger_url) as ledger:
            tool = LabelStudio.from_settings(stack.settings)
            yield Site(stack, ledger, tool)
            tool.close()


@pytest.fixture
def page(site: Site) -> Iterator[Any]:
    """A page of a browser."""
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="session")
def draw() -> Callable[[Path, int], dict[str, NDArray[np.bool_]]]:
    """Makes a folder of images."""
    return _draw


def _draw(folder: Path, count: int, side: int = 64) -> dict[str, NDArray[np.bool_]]:
    """Write images of dark blobs on a bright, noisy ground.

    Returns:
        Stem -> where the blob is, (1, side, side) bool.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[:side, :side]
    truths = {}
    for number in range(count):
        row, column = rng.uniform(0.3 * side, 0.7 * side, 2)
        high, wide = rng.uniform(0.2 * side, 0.35 * side, 2)
        blob = ((rows - row) / high) ** 2 + ((columns - column) / wide) ** 2 < 1
        grey = np.where(blob, 60, 190) + rng.normal(0, 12, blob.shape)
        write_png(
            folder / f"scene-{number:02d}.png", np.repeat(grey.clip(0, 255)[..., None], 3, 2).astype(np.uint8)
        )
        truths[f"scene-{number:02d}"] = blob[None]
    return truths
