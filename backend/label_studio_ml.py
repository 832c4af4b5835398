"""An adapter for teams that already run label-studio-ml: the same ledger and the same models behind it.

In their model file:

    from backend.label_studio_ml import ELNetBackend

and `label_studio_ml.api.init_app(ELNetBackend)` as ever; settings come from ELNET_CONFIG and the environment.
Events go to the inbox, so a worker (`elnet worker`) must run.

It fits both lines. 1.0.9 is the newest on PyPI; it does not import as installed (redis and rq are not
declared), pins Flask 1.1.2, has no Basic auth, answers /setup with a version of its own making, and starts a
process for every event. 2.x exists only as a git URL; the tests drive its interface through a stand-in with
the signatures of its model.py and response.py. Our own application (`elnet web`) has none of these limits and
is the main road.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from active_learning.ledger import Ledger
from backend.media import MediaStore
from backend.resident import ResidentPredictors
from backend.serving import Result, Serving
from backend.settings import load_settings
from backend.webhooks import receive
from model.errors import ELNetError

if TYPE_CHECKING:
    ELNetBackend: type[Any]

log = logging.getLogger(__name__)

_EVENTS = (
    *("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"),
    *("TASKS_CREATED", "TASKS_DELETED", "PROJECT_UPDATED", "START_TRAINING"),
)


class LabelStudioMLMissingError(ELNetError):
    """label-studio-ml cannot be imported."""


@cache
def connected() -> tuple[Ledger, Serving]:
    """Ledger and predictions of this process: label-studio-ml makes a model object for every request."""
    settings = load_settings()
    ledger = Ledger(settings.ledger_url)
    predictors = ResidentPredictors(settings, ledger)
    images = MediaStore.from_settings(settings)
    return ledger, Serving(ledger, images, predictors, settings.label_studio.url)


def __getattr__(name: str) -> Any:
    """`ELNetBackend`, made when it is first asked for: label-studio-ml is not one of our dependencies.

    Raises:
        LabelStudioMLMissingError: it is not installed, or does not import.
    """
    if name != "ELNetBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made = globals()[name] = _make()  # found by this name again when a child process unpickles it
    return made


def _make() -> type[Any]:
    try:
        from label_studio_ml.model import LabelStudioMLBase
    except ImportError as error:
        raise LabelStudioMLMissingError(
            f"label-studio-ml cannot be imported ({error}): install its 2.x line from git, or 1.0.9 by "
            "`pip install --no-deps label-studio-ml==1.0.9` and `pip install redis rq colorama "
            "label-studio-tools`; or use `elnet web`, which needs neither"
        ) from error

    class ELNetBackend(LabelStudioMLBase):  # type: ignore[misc]
        """A `LabelStudioMLBase` over the ledger."""

        TRAIN_EVENTS = _EVENTS  # 1.0.9 hands on only these to `fit`, and by itself not START_TRAINING

        def setup(self) -> None:
            """2.x calls it after every construction: tell it which version serves."""
            project = connected()[1].project(_number(getattr(self, "project_id", None)))
            if project is not None and project.champion is not None:
                self.set("model_version", project.champion.name)

        def predict(
            self, tasks: Sequence[Any], context: Mapping[str, Any] | None = None, **_: Any
        ) -> list[Result]:
            """One result for each task; see `backend.serving`."""
            of_task = tasks[0].get("project") if tasks and isinstance(tasks[0], Mapping) else None
            project = _number(getattr(self, "project_id", None) or of_task)
            config = self.label_config
            return connected()[1].predict(
                project, tasks, config if isinstance(config, str) else None, context
            )

        def fit(self, *positional: Any, **named: Any) -> None:
            """Put an event into the inbox.

            Called `fit(event, data, **parameters)` by 2.x and `fit((), event=..., data=..., **parameters)` by
            1.0.9. Returns nothing: 1.0.9 would take a result for a model version.
            """
            event = named.get("event", positional[0] if positional else None)
            data = named.get("data", positional[1] if len(positional) > 1 else None)
            if not isinstance(event, str) or not isinstance(data, dict):
                log.warning("fit() was called without an event: Label Studio before 1.4.1 is not supported")
                return
            receive(connected()[0], {"action": event, **data})

    ELNetBackend.__module__, ELNetBackend.__qualname__ = __name__, "ELNetBackend"
    return ELNetBackend


def _number(project: object) -> int | None:
    """The project's number: 2.x gives it as text, a task as a number."""
    text = str(project)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
