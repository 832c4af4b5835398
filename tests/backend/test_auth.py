"""Who gets in where."""

from __future__ import annotations

import pytest

ML = [("get", "/versions"), ("post", "/setup"), ("post", "/predict"), ("get", "/metrics")]
RIGHT = ("elnet", "pass wörd")


def ask(site, method, path, auth=None, headers=None):
    options = {"json": {"action": "TASKS_CREATED", "tasks": []}} if method == "post" else {}
    return getattr(site.client, method)(path, auth=auth, headers=headers, **options).status_code


@pytest.fixture
def closed(make_site):
    return make_site(username=RIGHT[0], password=RIGHT[1], webhook_secret="s3cret")


@pytest.mark.parametrize(("method", "path"), ML)
@pytest.mark.parametrize("auth", [None, ("elnet", "wrong"), ("other", RIGHT[1]), ("elnet", "")])
def test_the_ml_contract_asks_for_the_password(closed, method, path, auth):
    assert ask(closed, method, path, auth) == 401


@pytest.mark.parametrize(("method", "path"), ML)
def test_the_right_password_opens_it(closed, method, path):
    assert ask(closed, method, path, RIGHT) in {200, 400}


def test_what_to_do_is_told(closed):
    answer = closed.client.get("/versions")
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert "Basic auth" in answer.json["error"]


def test_health_needs_no_password(closed):
    assert ask(closed, "get", "/health") == 200


@pytest.mark.parametrize(
    ("headers", "auth", "status"),
    [
        ({"X-ELNet-Secret": "s3cret"}, None, 200),
        (None, RIGHT, 200),  # "Start training" comes through the ML backend's channel
        ({"X-ELNet-Secret": "wrong"}, RIGHT, 200),
        ({"X-ELNet-Secret": "wrong"}, None, 401),
        ({"X-ELNet-Secret": "wörd"}, None, 401),
        ({"X-ELNet-Secret": ""}, ("elnet", "wrong"), 401),
        (None, None, 401),
        ({"Authorization": "Bearer s3cret"}, None, 401),
        ({"Authorization": "Basic %%%"}, None, 401),
    ],
)
def test_the_webhook_takes_the_secret_or_the_password(closed, headers, auth, status):
    assert ask(closed, "post", "/webhook", auth, headers) == status


def test_a_secret_alone_is_enough_and_needed(make_site):
    site = make_site(webhook_secret="s3cret")
    assert ask(site, "post", "/webhook", headers={"X-ELNet-Secret": "s3cret"}) == 200
    assert ask(site, "post", "/webhook", auth=("", "")) == 401
    assert ask(site, "get", "/versions") == 200


def test_without_any_everything_is_open(site):
    assert ask(site, "post", "/webhook") == 200
    assert ask(site, "get", "/versions") == 200
