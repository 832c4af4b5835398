"""Checks of the server, its tokens and the project itself."""

from __future__ import annotations

from backend.checks.common import AGAIN, Finding, Patient
from backend.label_config import LabelConfigError, parse_label_config
from backend.label_studio_http import LabelStudioError


def server(name: str, p: Patient) -> Finding:
    """Whether Label Studio is there, and of a version that this was tried with."""
    answer = p.tool.lead.fetch("/api/version")
    try:
        release = str(answer.json()["release"])
    except (ValueError, KeyError, TypeError):
        cure = "check ELNET_LABEL_STUDIO__URL: another program may listen there"
        return Finding(name, False, f"{p.tool.url} answers, but not like Label Studio", cure)
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdigit())
    cure = "" if numbers >= (1, 23) else "use Label Studio 1.23; older ones were not tried"
    return Finding(name, numbers >= (1, 23), f"Label Studio {release} at {p.tool.url}", cure)


def lead(name: str, p: Patient) -> Finding:
    """Whether the lead's token is taken, and of which kind it is."""
    user = p.tool.lead.get("/api/current-user/whoami")
    token = p.settings.label_studio.token
    kind = "personal access token" if token and token.get_secret_value().count(".") == 2 else "legacy token"
    return Finding(name, True, f"{kind} of {user['email']}")


def machine(name: str, p: Patient) -> Finding:
    """Whether a second user stands ready to accept masks."""
    cure = (
        "invite a second user to Label Studio (Organization, Add members), sign in as that user, and put its "
        "token into ELNET_LABEL_STUDIO__MACHINE_TOKEN"
    )
    if p.tool.machine is None:
        return Finding(name, False, "not set: masks are routed, but none is accepted", cure)
    machine = p.tool.machine.get("/api/current-user/whoami")
    if machine["id"] == p.tool.lead.get("/api/current-user/whoami")["id"]:
        detail = f"it is the lead's own ({machine['email']}): what people draw would pass for the machine's"
        return Finding(name, False, detail, cure)
    try:
        p.tool.machine.get(f"/api/projects/{p.tool_project_id}/")
    except LabelStudioError:
        detail = f"{machine['email']} does not see project {p.tool_project_id}"
        return Finding(name, False, detail, "make that user a member of the lead's organization")
    return Finding(name, True, f"of {machine['email']}")


def legacy(name: str, p: Patient) -> Finding:
    """Whether legacy tokens work: Label Studio hands one to every ML backend in POST /setup."""
    allowed = bool(p.tool.lead.get("/api/jwt/settings")["legacy_api_tokens_enabled"])
    detail = "allowed" if allowed else "off: the one that Label Studio hands to ML backends is refused (401)"
    cure = "" if allowed else "switch them on under Organization, Access Token Settings, Legacy Tokens"
    return Finding(name, allowed, detail, cure)


def project(name: str, p: Patient) -> Finding:
    """Whether the project is there and may be seen."""
    title = p.there["title"]
    return Finding(name, True, f"{title!r}, {p.tool.url}/projects/{p.tool_project_id}")


def interface(name: str, p: Patient) -> Finding:
    """Whether masks of exactly the ledger's classes can be drawn."""
    try:
        config = parse_label_config(p.there["label_config"])
    except LabelConfigError as error:
        return Finding(name, False, str(error), AGAIN)
    missing = [label for label in p.row.classes if label not in config.control.labels]
    if missing:
        detail = f"the tag {config.control.from_name!r} lacks the classes {', '.join(missing)}"
        return Finding(name, False, detail, f"put the labels back, or {AGAIN}")
    more = [label for label in config.labels if label not in p.row.classes]
    if more:
        detail = f"it has labels that are no classes of the ledger: {', '.join(more)}"
        return Finding(name, False, detail, "remove them: what is drawn with them is not learnt")
    return Finding(name, True, f"{config.control.kind} with {', '.join(p.row.classes)}")


def predictions_shown(name: str, p: Patient) -> Finding:
    """`show_collab_predictions`: switching it off wipes the project's model version for good."""
    if p.there["show_collab_predictions"]:
        return Finding(name, True, "prefills are shown to annotators")
    detail = "off: annotators begin without a prefill, and the project has lost its model version"
    return Finding(
        name, False, detail, f"switch on Settings, Annotation, Use predictions to prelabel; or {AGAIN}"
    )
