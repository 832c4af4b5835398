"""Settings: a file, the environment before it, and nothing that does not exist."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from active_learning.ledger import Role
from backend.settings import (
    DeskSettings,
    LoopSettings,
    OidcSettings,
    RoleName,
    Settings,
    SettingsError,
    load_settings,
)

EXAMPLE = Path(__file__).parents[2] / "configs" / "elnet.yaml"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("ELNET_") and name not in {"ELNET_HOME", "ELNET_DATA"}:
            monkeypatch.delenv(name)


def test_the_example_file_holds_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = load_settings()
    monkeypatch.setenv("ELNET_CONFIG", str(EXAMPLE))
    assert load_settings() == defaults


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "elnet.yaml"
    path.write_text("web: {port: 1234, threads: 3}\n")
    monkeypatch.setenv("ELNET_CONFIG", str(path))
    monkeypatch.setenv("ELNET_WEB__PORT", "4321")
    settings = load_settings()
    assert (settings.web.port, settings.web.threads) == (4321, 3)
    assert load_settings(device="cpu").device == "cpu"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ELNET_WEB__PORT", "99999", "ELNET_WEB__PORT"),
        ("ELNET_WEB__PROT", "9090", "ELNET_WEB__PROT"),
        ("ELNET_DEVICE", "tpu", "ELNET_DEVICE"),
        ("ELNET_LOOP__SCHEDULE", "at night", "'at night' is no cron expression"),
        ("ELNET_FLIPS", "3", "3 should be one of 1, 2, 4, 8"),
        ("ELNET_LOOP__ACCEPT_THRESHOLD", "1.5", "ACCEPT_THRESHOLD"),
        ("ELNET_LABEL_STUDIO__URL", "label-studio:8080", "must start with http"),
        ("ELNET_DESK__IDLE_HOURS", "0", "ELNET_DESK__IDLE_HOURS"),
        ("ELNET_DESK__SECRET_KEY", "short", "ELNET_DESK__SECRET_KEY"),
        ("ELNET_DESK__URL", "elnet.example", "must start with http"),
        ("ELNET_DESK__TRUSTED_PROXIES", '["proxy"]', "does not appear to be an IPv4 or IPv6 network"),
        ("ELNET_DESK__PROXY__HEADER", "Remote-User", "name the proxy in trusted_proxies"),
        ("ELNET_DESK__PROXY__DEFAULT_ROLE", "king", "ELNET_DESK__PROXY__DEFAULT_ROLE"),
        ("ELNET_DESK__OIDC__ROLES", '{"ops": "king"}', "ELNET_DESK__OIDC__ROLES__OPS"),
        ("ELNET_DESK__OIDC__ISSUER", "https://login.example", "needs client_id and client_secret"),
        ("ELNET_FILES", "s3:///models", "should be a folder or s3://bucket/prefix"),
        ("ELNET_FILES", "gs://bucket", "should be a folder or s3://bucket/prefix"),
        ("ELNET_CONFIG", "/nowhere/elnet.yaml", "/nowhere/elnet.yaml"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=said):
        load_settings()


def test_a_file_with_an_unknown_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "elnet.yaml"
    path.write_text("lop: {audit_share: 0.2}\n")
    monkeypatch.setenv("ELNET_CONFIG", str(path))
    with pytest.raises(SettingsError, match="LOP"):
        load_settings()


def test_addresses() -> None:
    settings = Settings(state=Path("/srv/elnet"))
    assert settings.ledger_url == "sqlite:////srv/elnet/ledger.sqlite"
    assert settings.jobs_url == "sqlite:////srv/elnet/jobs.sqlite"
    assert settings.media_root == Path("/srv/elnet/media")
    assert settings.web_url == "http://127.0.0.1:9090"
    assert settings.desk_url == "http://127.0.0.1:9090"
    shared = Settings(database_url="postgresql://db/elnet", web={"public_url": "https://b.example.org/"})
    assert shared.ledger_url == shared.jobs_url == "postgresql://db/elnet"
    assert shared.web_url == shared.desk_url == "https://b.example.org"
    other = shared.model_copy(update={"desk": DeskSettings(url="https://desk.example.org/")})
    assert other.desk_url == "https://desk.example.org"


def test_roles_are_the_ledgers() -> None:
    assert get_args(RoleName) == tuple(Role)


def test_a_provider_that_would_let_nobody_in_is_refused() -> None:
    whole = {"issuer": "https://login.example", "client_id": "elnet", "client_secret": "s"}
    with pytest.raises(ValueError, match="set roles or default_role"):
        OidcSettings(**whole)
    assert OidcSettings(**whole, default_role="viewer")
    assert OidcSettings(**whole, roles={"ops": "admin"})


def test_a_projects_policy_is_checked() -> None:
    assert LoopSettings(accept_threshold=None).accept_threshold is None
    with pytest.raises(ValueError, match="holdout_share"):
        LoopSettings(holdout_share=1.0)
