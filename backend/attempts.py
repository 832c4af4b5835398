"""Pieces of work that a worker tries again and again: none of them stops the others."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable

from sqlalchemy import select

from active_learning.ledger import Ledger, Project
from active_learning.pace import Pace
from active_learning.ports import ToolUnavailableError
from backend.patience import Patience
from model.errors import ELNetError

log = logging.getLogger(__name__)
CHEAP_S = 0.05  # a look that takes no longer needs no rest


class Attempts:
    """Each piece of work by its name: how long to leave it alone, and whether the labeling tool is away."""

    def __init__(self) -> None:
        self._patience: defaultdict[str, Patience] = defaultdict(Patience)
        self._pace: defaultdict[str, Pace] = defaultdict(Pace)
        self.tool_is_down = False
        self.outages = 0  # how often the tool did not answer

    def projects(self, ledger: Ledger) -> list[Project]:
        """Every project; none while the ledger cannot be read."""
        found: list[Project] = []

        def read() -> int:
            with ledger.session(write=False) as session:
                found.extend(session.scalars(select(Project).order_by(Project.id)))
            return 1  # never to rest: everything begins with it

        self.attempt("the ledger", read)
        return found

    def attempt(self, name: str, work: Callable[[], int | None], *, needs_tool: bool = False) -> int:
        """Do a piece of work, unless it is to rest.

        After a failure it does, for longer each time; and where it found nothing to do, for as long as keeps
        such looks to a small part of the time.

        Args:
            name: of the work, for the log.
            work: says how much it did.
            needs_tool: leave it while the labeling tool does not answer.

        Returns:
            How much was done.
        """
        patience, pace = self._patience[name], self._pace[name]
        if not (patience.is_over and pace.is_due) or (needs_tool and self.tool_is_down):
            return 0
        began = time.monotonic()
        try:
            done = work() or 0
        except ToolUnavailableError as error:
            self.tool_is_down = True
            self.outages += 1
            log.warning("%s: %s; trying again in %.1f s", name, error, patience.failed())
        except ELNetError as error:
            log.error("%s: %s; trying again in %.1f s", name, error, patience.failed())
        except Exception:  # the boundary of a job: one that is broken must not stop the others
            log.exception("%s failed unexpectedly; trying again in %.1f s", name, patience.failed())
        else:
            patience.succeeded()
            took = time.monotonic() - began
            if not done and took > CHEAP_S:
                pace.rest(took)
            return done
        return 0
