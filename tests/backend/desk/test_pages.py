"""What holds of every page: who may look, who may change, and what a browser is told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from active_learning.ledger import Role
from backend.actions import latest


def addresses(spills: Any, method: str) -> list[str]:
    """Every address of the desk and the API that takes a method, with something for each placeholder."""
    values = {
        "project_id": spills.project_id,
        "task": 0,
        "name": "risk-coverage",
        "cycle_id": 1,
        "version": "v",
        "part": "drift",
        "strategy": "random",
        "token_id": 1,
    }
    adapter = spills.client.application.url_map.bind("")
    return [
        adapter.build(rule.endpoint, {name: values[name] for name in rule.arguments}, method=method)
        for rule in spills.client.application.url_map.iter_rules()
        if rule.rule.startswith(("/desk", "/api")) and method in rule.methods
        if not rule.endpoint.startswith("desk_sign_in.") and not rule.endpoint.endswith(".static")
    ]


def test_nobody_who_is_not_signed_in_sees_or_changes_anything(spills):
    stranger = spills.client.application.test_client()
    for path in addresses(spills, "GET"):
        answer = stranger.get(path)
        if path.startswith("/api"):
            assert answer.status_code == 401, path
        else:
            assert (answer.status_code, "/desk/sign-in" in answer.headers["Location"]) == (302, True), path
    for path in addresses(spills, "POST"):
        assert stranger.post(path).status_code in {302, 400, 401}, path
    with spills.ledger.session(write=False) as session:
        assert not [one for one in latest(session, 100) if not one.action.startswith("user.")]


def test_a_viewer_looks_and_changes_nothing(spills, add_user):
    add_user("vera", Role.VIEWER)
    viewer = spills.browser_of("vera")
    assert viewer.get(spills.path).status_code == 200
    for path in addresses(spills, "POST"):
        if path.startswith("/desk") and not path.startswith("/desk/account"):
            answer = viewer.post(path, {"why": "x", "value": "0.5"})
            assert answer.status_code == 403, path
            assert f"Only {'admins' if '/users' in path else 'leads and admins'} may" in answer.text
    csrf = {"X-CSRFToken": viewer.token()}
    for path in addresses(spills, "POST"):
        if path.startswith("/api"):
            answer = viewer.client.post(path, json={}, headers=csrf)
            assert answer.status_code == (409 if "/tokens/" in path else 403), path  # 409: not their token
    with spills.ledger.session(write=False) as session:
        assert spills.project(session).accept_threshold == 0.9


def test_a_change_without_the_pages_own_token_is_refused(spills):
    for path in addresses(spills, "POST"):
        assert spills.client.post(path, data={"value": "0.5", "why": "x"}).status_code == 400, path


def test_a_change_is_on_record(spills):
    spills.post("/threshold", value="0.65", why="see")
    with spills.ledger.session(write=False) as session:
        [last, *_] = latest(session, 1)
        assert (last.who, last.action, last.detail) == ("lea", "threshold.set", {"to": 0.65, "why": "see"})
        assert last.project_id == spills.project_id


@pytest.mark.parametrize("path", ["", "/threshold", "/queue", "/quality", "/models", "/cycles", "/policy"])
def test_a_page_loads_nothing_from_elsewhere_and_runs_nothing_inline(spills, path):
    answer = spills.client.get(spills.path + path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    page = answer.get_data(as_text=True)
    assert not re.search(r'\sstyle="|\son\w+="|javascript:', page)
    for script in re.findall(r"<script([^>]*)>", page):
        assert 'src="/desk/' in script or 'type="application/json"' in script
    for address in re.findall(r'(?:src|href)="(https?:[^"]+)"', page):
        assert address.startswith("http://tool/")  # links into Label Studio alone


def test_what_is_not_there_is_told_on_a_page_and_as_json(spills):
    answer = spills.client.get("/desk/99")
    assert answer.status_code == 404
    assert "There is no project 99" in answer.text
    assert answer.text.startswith("<!doctype html>")
