"""What connects a Label Studio project with the backend: storage, webhook, ML backend."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from backend.auth import SECRET_HEADER
from backend.label_studio_api import BACKEND_MARK, Json, LabelStudioApi
from backend.label_studio_http import LabelStudioError
from backend.settings import Settings
from model.errors import ELNetError

ACTIONS = (
    "ANNOTATION_CREATED",
    "ANNOTATION_UPDATED",
    "ANNOTATIONS_CREATED",
    "ANNOTATIONS_DELETED",
    "TASKS_CREATED",
    "TASKS_DELETED",
    "PROJECT_UPDATED",
)
NO_MODEL = "ELNet: no model yet"  # title of the ML backend until a version serves
LOCAL_ADDRESS_CURE = (
    "start Label Studio with USE_DEFAULT_BANNED_SUBNETS=false (or with both ML_BLOCK_LOCAL_IP=false and "
    "SSRF_PROTECTION_ENABLED=false), or give the backend a public address in ELNET_WEB__PUBLIC_URL"
)


class WiringError(ELNetError):
    """Label Studio and the backend cannot be connected."""


def webhook_url(settings: Settings) -> str:
    """Where Label Studio sends events."""
    return f"{settings.web_url}/webhook"


def local_files_uri(api: LabelStudioApi, relative: PurePosixPath) -> str:
    """The address under which Label Studio serves a file of its local files root."""
    return f"{urlsplit(api.url).path}/data/local-files/?d={quote(str(relative))}"


def storage_path(settings: Settings, folder: str) -> str:
    """A folder of the media root, as the Label Studio server sees it."""
    root = settings.label_studio.document_root or str(settings.media_root.resolve())
    return f"{root.rstrip('/')}/{folder}"


def ensure_storage(api: LabelStudioApi, settings: Settings, tool_project_id: int, folder: str) -> None:
    """Let Label Studio serve a folder of the media root: it does so only for a storage of the project.

    Raises:
        WiringError: it does not see the folder, or does not serve local files.
    """
    path = storage_path(settings, folder)
    if any(storage["path"] == path for storage in storages(api, tool_project_id)):
        return
    body = {
        "project": tool_project_id,
        "title": BACKEND_MARK,
        "path": path,
        "use_blob_urls": False,
        "regex_filter": "^$",  # a "Sync" pressed by hand must not import every file once more
    }
    try:
        api.lead.post("/api/storages/localfiles", body)
    except LabelStudioError as error:
        raise WiringError(
            f"Label Studio does not take {path} as local storage: {error.detail}. Start it with "
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="
            f"{settings.media_root}. If it sees that folder under another name, as in a container, set "
            "ELNET_LABEL_STUDIO__DOCUMENT_ROOT to that name; if it does not see it, import by upload"
        ) from error


def storages(api: LabelStudioApi, tool_project_id: int) -> list[Json]:
    """The project's local storages."""
    found: list[Json] = api.lead.get("/api/storages/localfiles", project=tool_project_id)
    return found


def webhooks(api: LabelStudioApi, settings: Settings, tool_project_id: int) -> list[Json]:
    """The project's webhooks that lead to this backend, or that we made for an address it had before.

    With our header first, then by age. Label Studio makes one without the header for an ML backend.
    """
    found: list[Json] = api.lead.get("/api/webhooks/", project=tool_project_id)
    ours = [w for w in found if w["url"] == webhook_url(settings) or SECRET_HEADER in (w["headers"] or {})]
    return sorted(ours, key=lambda w: (SECRET_HEADER not in (w["headers"] or {}), w["id"]))


def webhook_fields(settings: Settings) -> Json:
    """How our webhook must be set."""
    secret = settings.web.webhook_secret
    return {
        "url": webhook_url(settings),
        "headers": {SECRET_HEADER: secret.get_secret_value()} if secret else {},
        "send_payload": True,
        "send_for_all_actions": False,
        "actions": sorted(ACTIONS),
        "is_active": True,
    }


def ensure_webhook(api: LabelStudioApi, settings: Settings, tool_project_id: int) -> None:
    """Exactly one webhook to this backend, with the secret, for every action that matters.

    Made before the ML backend, or Label Studio makes one of its own for that.

    Raises:
        WiringError: Label Studio refuses the address.
    """
    fields = webhook_fields(settings)
    found = webhooks(api, settings, tool_project_id)
    try:
        if not found:
            api.lead.post("/api/webhooks/", {"project": tool_project_id, **fields})
            found = webhooks(api, settings, tool_project_id)  # it may have made two: see `ensure_backend`
        elif not webhook_is_intact(found[0], fields):
            api.lead.patch(f"/api/webhooks/{found[0]['id']}/", fields)
    except LabelStudioError as error:
        raise _address_refused(error, fields["url"]) from error
    for extra in found[1:]:
        api.lead.delete(f"/api/webhooks/{extra['id']}/")


def webhook_is_intact(there: Json, fields: Json) -> bool:
    """Whether a webhook of the server is set as ours must be."""
    return all(_plain(there.get(key)) == _plain(value) for key, value in fields.items())


def ensure_backend(
    api: LabelStudioApi, settings: Settings, tool_project_id: int, version: str | None
) -> None:
    """The ML backend with our address, Basic auth, and the serving version as its title.

    Label Studio calls it while it is set, so the backend must run. When its SQLite is locked halfway, it runs
    the request again, and so may make two.

    Raises:
        WiringError: Label Studio refuses the address, or does not reach the backend there.
    """
    fields = {**backend_fields(settings, version), "project": tool_project_id}

    def find() -> list[Json]:
        found: list[Json] = api.lead.get("/api/ml", project=tool_project_id)
        return [b for b in found if b["description"] == BACKEND_MARK or b["url"] == fields["url"]]

    ours = find()
    try:
        if ours:
            changed = api.lead.patch(f"/api/ml/{ours[0]['id']}", fields)
        else:
            changed = api.lead.post("/api/ml", fields)
            ours = find()
    except LabelStudioError as error:
        if error.status == 403:
            raise _address_refused(error, fields["url"]) from error
        raise WiringError(
            f"Label Studio cannot use the ML backend at {fields['url']}: {error.detail}. Start the backend "
            "(`elnet web`, or everything with `elnet up`) and do this again; if it runs, check that Label "
            "Studio reaches that address (ELNET_WEB__PUBLIC_URL)"
        ) from error
    for extra in ours:
        if extra["id"] != changed["id"]:
            api.lead.delete(f"/api/ml/{extra['id']}")
    project = api.project(tool_project_id)
    if not project["show_collab_predictions"]:
        api.lead.patch(f"/api/projects/{tool_project_id}/", {"show_collab_predictions": True})
    if project["model_version"] != changed["title"]:
        api.set_model_version(tool_project_id, changed["title"])


def backend_fields(settings: Settings, version: str | None) -> Json:
    """How our ML backend must be set."""
    fields: Json = {"url": settings.web_url, "title": version or NO_MODEL, "description": BACKEND_MARK}
    password = settings.web.password
    if password is None:
        return {**fields, "auth_method": "NONE"}
    return {
        **fields,
        "auth_method": "BASIC_AUTH",
        "basic_auth_user": settings.web.username or "",
        "basic_auth_pass": password.get_secret_value(),
    }


def _address_refused(error: LabelStudioError, url: str) -> WiringError:
    if "reserved network" in error.detail or error.status == 403:
        return WiringError(f"Label Studio refuses the address {url} ({error.detail}): {LOCAL_ADDRESS_CURE}")
    return WiringError(f"Label Studio refuses the webhook {url}: {error.detail}")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value
