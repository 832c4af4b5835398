"""Looks for what fails silently between Label Studio, backend and ledger, and says how to mend it."""

from __future__ import annotations

from active_learning.ledger import Ledger, Project
from active_learning.ports import ToolUnavailableError
from backend.checks import access, connection, content
from backend.checks.common import Check, Finding, Patient
from backend.label_studio import LabelStudio
from backend.settings import Settings
from backend.tokens import TokenError
from model.errors import ELNetError

__all__ = ["Finding", "examine"]

# Name, check, and whether the ones behind it make sense without it.
_CHECKS: tuple[tuple[str, Check, bool], ...] = (
    ("Label Studio", access.server, True),
    ("lead's token", access.lead, True),
    ("project", access.project, True),
    ("machine's token", access.machine, False),
    ("legacy tokens", access.legacy, False),
    ("labeling interface", access.interface, False),
    ("predictions shown", access.predictions_shown, False),
    ("images served", content.storage, False),
    ("local addresses", connection.local_address, False),
    ("ML backend reached", connection.backend_reached, False),
    ("Basic auth", connection.basic_auth, False),
    ("model version", connection.model_version, False),
    ("webhook", connection.webhook, False),
    ("webhook answers", connection.answer, False),
    ("webhook delivers", connection.delivery, False),
    ("inbox", content.inbox, False),
    ("tasks", content.tasks, False),
    ("auto-accept", content.auto_accept, False),
    ("what was told", content.was_told, False),
    ("views", content.views, False),
)


def examine(ledger: Ledger, settings: Settings, tool: LabelStudio, project: Project) -> list[Finding]:
    """Check a project from end to end, on the running servers. Nothing is changed for good.

    Args:
        ledger: the ledger.
        settings: in force: addresses, tokens, secrets.
        tool: the server.
        project: the project.

    Returns:
        A finding for each check; only the first ones where Label Studio does not let us in.
    """
    patient = Patient(ledger, settings, tool, project)
    findings = []
    for name, check, is_needed in _CHECKS:
        finding = _run(name, check, patient)
        findings.append(finding)
        if is_needed and not finding.ok:
            break
    return findings


def _run(name: str, check: Check, patient: Patient) -> Finding:
    try:
        return check(name, patient)
    except ToolUnavailableError as error:
        return Finding(name, False, str(error), "start Label Studio, or check ELNET_LABEL_STUDIO__URL")
    except TokenError as error:
        return Finding(name, False, str(error), "set a token that Label Studio takes")
    except ELNetError as error:
        return Finding(name, False, str(error), "mend what the message names")
