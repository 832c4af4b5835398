"""Label Studio's environment: whole or not at all. pip itself is tried by `make label-studio`."""

from __future__ import annotations

import os
import re
import sqlite3
import stat
import sys
import threading
from pathlib import Path

import pytest

from backend import label_studio_install as subject
from backend.label_studio_install import InstallError, find_program, install, migrated_database

PROGRAM = f"""#!{sys.executable}
import os, sqlite3, sys
assert sys.argv[1:] == ["version"], sys.argv
assert "PYTHONPATH" not in os.environ and "HOST" not in os.environ
sqlite3.connect(os.environ["LABEL_STUDIO_BASE_DATA_DIR"] + "/label_studio.sqlite3").executescript(
    "CREATE TABLE htx_user (id INTEGER);"
)
"""


def write_program(path: Path, text: str = PROGRAM) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def pip(monkeypatch):
    """Stands for pip: counts installations; `fail` is raised half way."""

    class Pip:
        count = 0
        fail: BaseException | None = None
        gate: threading.Event | None = None

        def __call__(self, folder: Path) -> None:
            self.count += 1
            write_program(folder / "bin" / "label-studio")
            if self.gate is not None:
                self.gate.wait(10)
            if self.fail is not None:
                raise self.fail

    pip = Pip()
    monkeypatch.setattr(subject, "_pip_install", pip)
    monkeypatch.delenv("ELNET_LABEL_STUDIO_BIN", raising=False)
    monkeypatch.setenv("HOST", "pollutes")
    return pip


def test_installed_once(tmp_path, pip):
    said: list[str] = []
    program = install(tmp_path, say=said.append)
    assert program == tmp_path / "environments" / "label-studio-1.23.2" / "bin" / "label-studio"
    assert os.access(program, os.X_OK)
    assert len(said) == 2
    assert install(tmp_path, say=said.append) == program
    assert find_program(tmp_path) == program
    assert pip.count == 1
    assert len(said) == 2


def test_a_database_is_migrated_along(tmp_path, pip):
    template = migrated_database(install(tmp_path), tmp_path)
    connection = sqlite3.connect(template)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("htx_user",)]
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


@pytest.mark.parametrize("fail", [KeyboardInterrupt(), InstallError("no network"), OSError(28, "No space")])
def test_half_an_installation_is_never_used(tmp_path, pip, fail):
    pip.fail = fail
    with pytest.raises(InstallError if isinstance(fail, OSError) else type(fail)):
        install(tmp_path)
    with pytest.raises(InstallError, match="elnet label-studio install"):
        find_program(tmp_path)
    pip.fail = None
    leftover = tmp_path / "environments" / "label-studio-1.23.2" / "lib" / "half.py"
    leftover.parent.mkdir(parents=True, exist_ok=True)
    leftover.write_text("")
    assert install(tmp_path) == find_program(tmp_path)
    assert not leftover.exists()


def test_other_constraints_make_it_anew(tmp_path, pip, monkeypatch):
    install(tmp_path)
    monkeypatch.setattr(subject, "_constraints", lambda: b"django==9")
    with pytest.raises(InstallError):
        find_program(tmp_path)
    install(tmp_path)
    assert pip.count == 2


def test_two_at_once_wait_for_each_other(tmp_path, pip):
    pip.gate = threading.Event()
    threads = [threading.Thread(target=install, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    pip.gate.set()
    for thread in threads:
        thread.join()
    assert pip.count == 1
    assert find_program(tmp_path)


def test_a_named_program(tmp_path, pip, monkeypatch):
    program = write_program(tmp_path / "elsewhere" / "label-studio")
    monkeypatch.setenv("ELNET_LABEL_STUDIO_BIN", str(program))
    assert find_program(tmp_path) == program
    template = migrated_database(program, tmp_path)
    assert template.is_file()
    os.utime(program, (1, 1))  # another version, perhaps
    assert migrated_database(program, tmp_path) != template
    program.chmod(0o644)
    with pytest.raises(InstallError, match=r"ELNET_LABEL_STUDIO_BIN names .* not a program"):
        find_program(tmp_path)


def test_a_program_that_cannot_migrate(tmp_path, pip, monkeypatch):
    text = f"#!{sys.executable}\nimport sys; sys.exit('no such module: django')"
    monkeypatch.setenv("ELNET_LABEL_STUDIO_BIN", str(write_program(tmp_path / "broken", text)))
    with pytest.raises(InstallError, match="no such module: django"):
        migrated_database(find_program(tmp_path), tmp_path)
    assert not list(tmp_path.rglob("*.sqlite3"))


def test_a_failing_pip_shows_its_last_lines():
    command = [sys.executable, "-c", "import sys; print('x\\n' * 50); sys.exit('No matching distribution')"]
    with pytest.raises(InstallError, match="check the index\nNo matching distribution"):
        subject._run(command, "check the index")


def test_a_cache_that_is_no_folder(tmp_path, pip):
    (tmp_path / "environments").write_text("")
    with pytest.raises(InstallError, match="ELNET_HOME"):
        install(tmp_path)


def test_every_dependency_is_pinned():
    lines = [line for line in subject._constraints().decode().splitlines() if not line.startswith("#")]
    assert f"label-studio=={subject.VERSION}" in lines
    assert len(lines) > 100
    assert all(re.fullmatch(r"[\w.\-]+==[\w.+!]+", line) for line in lines)
