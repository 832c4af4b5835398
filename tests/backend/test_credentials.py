"""The secrets of an embedded installation."""

from __future__ import annotations

import json
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from backend.credentials import Credentials, CredentialsError


def test_made_once_and_for_the_owner_alone(tmp_path):
    first = Credentials.load(tmp_path / "state")
    path = Credentials.path(tmp_path / "state")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Credentials.load(tmp_path / "state") == first
    others = Credentials.load(tmp_path / "other")
    assert {first.password, first.token, first.webhook_secret}.isdisjoint(
        {others.password, others.token, others.webhook_secret}
    )
    assert len(first.token) == 40  # what Label Studio's table of tokens holds


def test_tokens_are_kept_and_what_is_lacking_is_added(tmp_path):
    first = Credentials.load(tmp_path)
    first.with_tokens(machine_token="m" * 40).save(tmp_path)
    path = Credentials.path(tmp_path)
    known = json.loads(path.read_text())
    del known["webhook_secret"]
    path.write_text(json.dumps(known))
    again = Credentials.load(tmp_path)
    assert again.machine_token == "m" * 40
    assert again.password == first.password
    assert json.loads(path.read_text())["webhook_secret"] == again.webhook_secret


def test_never_shown(tmp_path):
    credentials = Credentials.load(tmp_path)
    assert credentials.password not in repr(credentials)
    assert credentials.token not in repr(credentials)


@pytest.mark.parametrize("text", ["", "[1, 2]", "not json", '{"password": '])
def test_a_damaged_file_is_refused_and_kept(tmp_path, text):
    Credentials.path(tmp_path).write_text(text)
    with pytest.raises(CredentialsError, match=r"secrets\.json is not a file of secrets.*remove it"):
        Credentials.load(tmp_path)
    assert Credentials.path(tmp_path).read_text() == text


def test_a_state_that_is_no_folder(tmp_path):
    (tmp_path / "state").write_text("")
    with pytest.raises(CredentialsError, match="ELNET_STATE"):
        Credentials.load(tmp_path / "state")


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    first = Credentials.load(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CredentialsError, match="No space left"):
        first.with_tokens(token="x" * 40).save(tmp_path)
    assert Credentials.load(tmp_path) == first
    assert {p.name for p in tmp_path.iterdir()} <= {"secrets.json", "secrets.lock"}


def test_those_who_start_at_once_agree(tmp_path, monkeypatch):
    state, save = tmp_path / "state", Credentials.save

    def slowly(credentials: Credentials, folder: Path) -> None:
        time.sleep(0.1)  # the others have looked in the meantime
        save(credentials, folder)

    monkeypatch.setattr(Credentials, "save", slowly)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: Credentials.load(state), range(4)))
    assert set(loaded) == {Credentials.load(state)}
