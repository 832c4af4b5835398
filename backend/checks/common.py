"""What the doctor's checks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from active_learning.ledger import Ledger, Project
from backend.label_studio import LabelStudio
from backend.label_studio_api import BACKEND_MARK, Json
from backend.settings import Settings

AGAIN = "run `elnet project create` again with the project's name and classes: it mends this"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `cure` is empty where nothing needs one."""

    name: str
    ok: bool
    detail: str
    cure: str = ""


class Patient:
    """What the checks look at; what they share is asked for once."""

    def __init__(self, ledger: Ledger, settings: Settings, tool: LabelStudio, project: Project) -> None:
        self.ledger, self.settings, self.tool = ledger, settings, tool
        self.project_id, self.tool_project_id = project.id, project.tool_project_id

    @cached_property
    def row(self) -> Project:
        """The ledger's row."""
        with self.ledger.session(write=False) as session:
            return session.get_one(Project, self.project_id)

    @cached_property
    def champion(self) -> str | None:
        """The name of the serving version, if there is one."""
        with self.ledger.session(write=False) as session:
            champion = session.get_one(Project, self.project_id).champion
            return champion.name if champion else None

    @cached_property
    def there(self) -> Json:
        """The project as Label Studio has it."""
        return self.tool.project(self.tool_project_id)

    @cached_property
    def backends(self) -> list[Json]:
        """Ours. Listing them makes Label Studio ask each for its health and set it up."""
        found = self.tool.lead.get("/api/ml", project=self.tool_project_id)
        url = self.settings.web_url
        return [b for b in found if b["description"] == BACKEND_MARK or b["url"] == url]


Check = Callable[[str, Patient], Finding]
