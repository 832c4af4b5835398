"""The container files agree with the project: no engine runs them here, so every name in them is checked."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.cli import COMMANDS
from backend.label_studio_install import VERSION
from backend.settings import Settings

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if str(service["image"]).startswith("elnet-loop")]


def test_the_services_that_a_team_needs_are_there() -> None:
    assert {"database", "label-studio", "prepare", "backend", "worker", "worker-gpu"} == set(SERVICES)
    assert SERVICES["worker-gpu"]["profiles"] == ["gpu"]
    assert SERVICES["label-studio"]["image"].endswith(f":{VERSION}")


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists(name: str) -> None:
    text = " ".join(SERVICES[name]["command"])
    commands = re.findall(r"elnet ([a-z-]+)", text)
    assert commands
    assert set(commands) <= set(COMMANDS)


@pytest.mark.parametrize("name", OURS)
def test_every_variable_is_a_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in SERVICES[name]["environment"].items():
        filled = re.sub(r"\$\{\w+(?::(?:-([^}]*)|\?[^}]*))?\}", lambda found: found[1] or "x", str(value))
        monkeypatch.setenv(variable, filled)
    settings = Settings()  # a nested name that does not exist is refused
    names = set(SERVICES[name]["environment"]) - {"ELNET_HOME"}
    tops = {f"ELNET_{field.upper()}" for field in Settings.model_fields}
    assert all(variable.split("__")[0] in tops for variable in names)
    assert settings.ledger_url.startswith("postgresql://")
    assert settings.label_studio.url == "http://label-studio:8080"
    assert settings.web_url == "http://backend:9090"
    assert settings.desk_url == "http://localhost:9090"


def test_label_studio_sees_the_media_where_the_loop_says() -> None:
    ours = SERVICES["backend"]["environment"]
    theirs = SERVICES["label-studio"]
    root = theirs["environment"]["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"]
    assert ours["ELNET_LABEL_STUDIO__DOCUMENT_ROOT"] == root
    assert f"media:{root}:ro" in theirs["volumes"]
    assert f"media:{ours['ELNET_STATE']}/media" in SERVICES["backend"]["volumes"]


def test_what_is_waited_for_has_a_health_check_or_ends() -> None:
    for name, service in SERVICES.items():
        for other, wait in service.get("depends_on", {}).items():
            if wait["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other], f"{name} waits for {other}"
            else:
                assert SERVICES[other]["restart"] == "no", f"{name} waits for the end of {other}"


def test_every_volume_is_declared_and_used() -> None:
    named = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{[^}]*\}", "./x", volume).split(":")[0]
            if not source.startswith("."):
                named.add(source)
            elif "$" not in volume:
                assert (ROOT / source).is_file(), volume
    assert named == set(COMPOSE["volumes"])


def test_every_secret_comes_from_the_environment_and_is_in_the_example() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / "configs" / "compose.env.example").read_text()
    required = set(re.findall(r"\$\{(\w+):\?", text))
    assert {"POSTGRES_PASSWORD", "LABEL_STUDIO_TOKEN", "ELNET_ML_PASSWORD"} <= required
    for name in required:
        assert re.search(rf"^{name}=$", example, re.MULTILINE), name


def test_everything_that_the_image_copies_is_there() -> None:
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    paths = [path for line in copied for path in line.split()]
    assert {"pyproject.toml", "model", "active_learning", "backend"} <= set(paths)
    assert all((ROOT / path).exists() for path in paths)


def test_the_image_takes_the_versions_of_the_makefile() -> None:
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    for name in ("TORCH ", "SAM2 "):
        pinned = re.search(rf"^{name}\s*\?= (\S+)$", makefile, re.MULTILINE)
        assert pinned
        assert pinned[1] in dockerfile


def test_the_script_that_makes_the_databases_is_valid_shell() -> None:
    subprocess.run(["sh", "-n", str(ROOT / "configs" / "compose-databases.sh")], check=True)
