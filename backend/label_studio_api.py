"""What this project reads and sets in Label Studio's API, for one server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Self

from backend.label_studio_http import Connection, LabelStudioError
from backend.settings import Settings
from model.errors import ELNetError

BACKEND_MARK = "ELNet Loop"  # description of our ML backend among others of a project
ENHANCED_MARK = "-enhanced"  # in the model version of predictions that suggest a better label
NOBODY = "0"  # no user has this id
LISTED = 200  # tasks of one page without annotations and predictions
DETAILED = 32  # tasks whose masks come in one answer

Json = dict[str, Any]


class LabelStudioApi:
    """A server, its lead and its machine user. Safe under threads.

    Args:
        url: of the server, without trailing slash.
        token: personal access token or legacy token of the lead's user.
        machine_token: of the user under whom masks are accepted. Without it nothing is accepted.
        timeout: of one request, in seconds.
    """

    def __init__(self, url: str, token: str, machine_token: str | None = None, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.lead = Connection(self.url, token, "ELNET_LABEL_STUDIO__TOKEN", timeout)
        self.machine = (
            Connection(self.url, machine_token, "ELNET_LABEL_STUDIO__MACHINE_TOKEN", timeout)
            if machine_token
            else None
        )
        self._machine_id: str | None = None
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The server that an installation's settings name.

        Raises:
            ELNetError: they name none, or no token.
        """
        section = settings.label_studio
        if section.url is None or section.token is None:
            raise ELNetError(
                "no Label Studio is named: set ELNET_LABEL_STUDIO__URL and ELNET_LABEL_STUDIO__TOKEN, "
                "or start everything with `elnet up`"
            )
        machine = section.machine_token.get_secret_value() if section.machine_token else None
        return cls(section.url, section.token.get_secret_value(), machine)

    def close(self) -> None:
        """Let go of what is open."""
        for connection in (self.lead, self.machine):
            if connection is not None:
                connection.close()

    def project(self, tool_project_id: int) -> Json:
        """The project as the API gives it.

        Raises:
            LabelStudioError: there is none of this id.
        """
        try:
            found: Json = self.lead.get(f"/api/projects/{tool_project_id}/")
        except LabelStudioError as error:
            if error.status != 404:
                raise
            raise LabelStudioError(
                f"Label Studio at {self.url} has no project {tool_project_id}, or the token's user may not "
                "see it; `elnet project create` makes it again",
                404,
                error.detail,
            ) from error
        return found

    def listed(self, tool_project_id: int, ids: Sequence[int] | None = None) -> Iterator[Json]:
        """Tasks without their annotations and predictions, by id; all, or those of `ids` that exist."""
        return self._tasks(tool_project_id, ids, LISTED, "task_only")

    def detailed(self, tool_project_id: int, ids: Sequence[int]) -> dict[int, Json]:
        """Id -> task with annotations and predictions, of those that exist."""
        return {task["id"]: task for task in self._tasks(tool_project_id, ids, DETAILED, "all")}

    def _tasks(
        self, tool_project_id: int, ids: Sequence[int] | None, size: int, fields: str
    ) -> Iterator[Json]:
        """Goes on from the last id, not by page numbers: tasks that come or go displace no other."""
        last = 0
        while ids is None or ids:
            query: Json = {"ordering": ["tasks:id"], "filters": _after(last)}
            if ids is not None:
                query["selectedItems"] = {"all": False, "included": list(ids)}
            found = self.lead.get(
                "/api/tasks/",
                project=tool_project_id,
                page_size=size,
                fields=fields,
                resolve_uri="false",  # or addresses in storages would be written back as proxied ones
                query=json.dumps(query),
            )
            yield from found["tasks"]
            if found["total"] <= len(found["tasks"]):  # a server may give smaller pages than asked for
                return
            last = found["tasks"][-1]["id"]

    def backend(self, tool_project_id: int) -> Json | None:
        """Our ML backend of a project: the one that bears our mark, else the only one."""
        backends: list[Json] = self.lead.get("/api/ml", project=tool_project_id)
        ours = [backend for backend in backends if backend.get("description") == BACKEND_MARK]
        return ours[0] if ours else backends[0] if len(backends) == 1 else None

    def patch_backend(self, backend: Json, **changes: object) -> Json:
        """Change an ML backend. Label Studio asks it for its health, with the password that it knows."""
        body: Json = {"url": backend["url"], "project": backend["project"]}
        if backend.get("auth_method") == "BASIC_AUTH":
            body |= {
                "auth_method": "BASIC_AUTH",
                "basic_auth_user": backend["basic_auth_user"],
                "basic_auth_pass": "",  # the one that is set
            }
        changed: Json = self.lead.patch(f"/api/ml/{backend['id']}", body | changes)
        return changed

    def set_model_version(self, tool_project_id: int, version: str) -> None:
        """Which predictions a project scores and orders by; nothing while there is none of this version."""
        try:
            self.lead.patch(f"/api/projects/{tool_project_id}/", {"model_version": version})
        except LabelStudioError as error:
            if error.status != 400:
                raise  # 400: neither backend nor prediction of this version yet; set after the first push

    def machine_annotator(self) -> str:
        """The id of the user of `machine_token`; "0", which nobody has, without such a token."""
        if self.machine is None:
            return NOBODY
        with self._lock:
            if self._machine_id is None:
                self._machine_id = str(self.machine.get("/api/current-user/whoami")["id"])
            return self._machine_id


def _after(task_id: int) -> Json:
    """Data Manager filter: ids larger than this."""
    item = {"filter": "filter:tasks:id", "operator": "greater", "type": "Number", "value": task_id}
    return {"conjunction": "and", "items": [item]}
