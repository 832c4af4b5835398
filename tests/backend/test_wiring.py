"""The wiring where Label Studio does more than it was asked for; the rest is seen in test_projects."""

from __future__ import annotations

from typing import Any

import pytest

from backend import wiring
from backend.projects import create


@pytest.mark.label_studio
def test_what_a_locked_sqlite_made_twice(installation, monkeypatch):
    """Label Studio runs a request again when its database was locked halfway: both rows stay."""
    tool, post = installation.tool, installation.tool.lead.post
    doubled: list[str] = []

    def post_twice(path: str, body: object = None, **options: Any) -> Any:
        if path in {"/api/ml", "/api/webhooks/"}:
            doubled.append(path)
            post(path, body, **options)
        return post(path, body, **options)

    monkeypatch.setattr(tool.lead, "post", post_twice)
    project = create(installation.ledger, installation.settings, tool, "made twice", ["oil"])
    assert sorted(doubled) == ["/api/ml", "/api/webhooks/"]
    (backend,) = tool.lead.get("/api/ml", project=project.tool_project_id)
    assert backend["url"] == installation.settings.web_url
    assert len(wiring.webhooks(tool, installation.settings, project.tool_project_id)) == 1
