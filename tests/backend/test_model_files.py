"""The settings say where checkpoints lie, and commands take their addresses."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from active_learning import registry
from active_learning.ledger import Ledger, ModelVersion, Project
from backend.model_files import checkpoint_folder, checkpoints_of, predictors_of
from backend.settings import MediaSettings, Settings
from model.checkpoint import CheckpointError, read_card
from tests.backend.test_cli_model import make_checkpoint


@pytest.fixture
def shared(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An installation on S3, which the environment names, too."""
    monkeypatch.setenv("ELNET_FILES", f"s3://{s3.bucket}/elnet")
    monkeypatch.setenv("ELNET_MEDIA__S3_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ELNET_STATE", str(tmp_path / "state"))
    return Settings(files=f"s3://{s3.bucket}/elnet", media=MediaSettings(s3_endpoint=s3.endpoint))


def test_checkpoints_stay_in_the_state_folder_by_default(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "models" / "cycle-1", ("oil",))
    assert checkpoints_of(Settings()).keep(folder) == str(folder)
    assert checkpoint_folder(str(folder)) == folder


def test_a_command_takes_the_address_that_elnet_models_tells(
    shared: Settings, elnet: Callable[..., Any], squares: Callable[[int], Path], tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "made", ("foreground",))
    with Ledger(shared.ledger_url) as ledger:
        ledger.upgrade()
        with ledger.session() as session:
            project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
            session.add(project)
            session.flush()
            address, digest = checkpoints_of(shared).keep(folder), read_card(folder).weights_sha256
            registry.promote(session, registry.register(session, project, address, digest))
        with ledger.session(write=False) as session:
            version = session.scalars(select(ModelVersion)).one()
    shutil.rmtree(folder)
    [row] = elnet("models", "--json").json()
    assert row["checkpoint"] == address
    assert "checkpoint" not in elnet("models").out
    data = squares(1) / "test"
    answer = elnet("evaluate", "--checkpoint", address, "--data", data, "--device", "cpu", "--json")
    assert answer.code == 0, answer.err
    assert answer.json()["n"] == 2
    out = tmp_path / "next"
    trained = elnet(
        "train", "--data", data, "--out", out, "--init", address, "--epochs", 1, "--device", "cpu", "--json"
    )
    assert trained.code == 0, trained.err
    assert trained.json()["parent"] == "nano-0001"
    assert predictors_of(shared).get(version).version == "nano-0001"

    gone = f"{address[:-64]}{'0' * 64}"
    answer = elnet("evaluate", "--checkpoint", gone, "--data", data)
    assert (answer.code, answer.out) == (1, "")
    assert f"{gone} is not there" in answer.err


def test_a_version_of_before_files_were_shared_is_used_where_it_stands(
    shared: Settings, tmp_path: Path
) -> None:
    folder = make_checkpoint(tmp_path / "state" / "models" / "cycle-1", ("oil",))
    old = ModelVersion(id=1, name="elnet-0001", path=str(folder), sha256=read_card(folder).weights_sha256)
    assert checkpoints_of(shared).local(old) == folder
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="mount or copy it to this machine"):
        checkpoints_of(shared).local(old)
