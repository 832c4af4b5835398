"""Label Studio in an environment of its own, pinned, and an empty database that is already migrated."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

from model.cache_root import cache_root
from model.errors import ELNetError

VERSION = "1.23.2"
_CONSTRAINTS = "label_studio_constraints.txt"
_STAMP = "elnet-complete.json"
_DATABASE = "label_studio.sqlite3"
_MIGRATE_WITHIN_S = 600


class InstallError(ELNetError):
    """Label Studio cannot be installed, or is not."""


def install(root: Path | None = None, *, say: Callable[[str], None] = lambda _: None) -> Path:
    """Install Label Studio; quick when it is there already.

    The environment counts only once its stamp is written, last of all: an interrupted installation is never
    used and is begun anew. Two at once wait for each other.

    Args:
        root: cache folder; default: `cache_root()`.
        say: hears what is being done, a line at a time.

    Returns:
        The program, <root>/environments/label-studio-1.23.2/bin/label-studio.

    Raises:
        InstallError: no network, no room, or a package that does not install; ends with pip's last lines.
    """
    folder = _folder(root)
    if _is_complete(folder):
        return _program(folder)
    with _lock(folder):
        if _is_complete(folder):  # another process has just done it
            return _program(folder)
        try:
            shutil.rmtree(folder, ignore_errors=True)
            say(f"Installing Label Studio {VERSION} into {folder} (about 1 GB, a minute or two)")
            _pip_install(folder)
            say("Preparing its empty database")
            _make_template(_program(folder), folder / _DATABASE)
            (folder / _STAMP).write_text(json.dumps(_expected()))
        except OSError as error:
            raise InstallError(
                f"{folder} cannot be written: {error}; make room there, or name another folder in ELNET_HOME"
            ) from error
    return _program(folder)


def find_program(root: Path | None = None) -> Path:
    """The installed Label Studio; ELNET_LABEL_STUDIO_BIN names another one.

    Raises:
        InstallError: there is none.
    """
    named = os.environ.get("ELNET_LABEL_STUDIO_BIN")
    if named:
        program = Path(named).expanduser()
        if not os.access(program, os.X_OK):
            raise InstallError(f"ELNET_LABEL_STUDIO_BIN names {program}, which is not a program")
        return program
    folder = _folder(root)
    if not _is_complete(folder):
        raise InstallError(f"Label Studio {VERSION} is not installed: run `elnet label-studio install`")
    return _program(folder)


def migrated_database(program: Path, root: Path | None = None) -> Path:
    """An empty SQLite database that holds every table; made when it is not there yet (half a minute).

    Raises:
        InstallError: Label Studio could not make it.
    """
    template = _folder(root) / _DATABASE
    if os.environ.get("ELNET_LABEL_STUDIO_BIN"):  # may be of another version
        key = hashlib.sha256(f"{program.resolve()} {program.stat().st_mtime_ns}".encode()).hexdigest()[:12]
        template = _folder(root).parent / f"label-studio-{key}.sqlite3"
    if not template.is_file():
        with _lock(template):
            if not template.is_file():
                _make_template(program, template)
    return template


def _folder(root: Path | None) -> Path:
    return (root or cache_root()) / "environments" / f"label-studio-{VERSION}"


def _program(folder: Path) -> Path:
    return folder / "bin" / "label-studio"


def _constraints() -> bytes:
    return files("backend").joinpath(_CONSTRAINTS).read_bytes()


def _expected() -> dict[str, str]:
    """What the stamp of a usable environment says."""
    return {"version": VERSION, "constraints": hashlib.sha256(_constraints()).hexdigest()}


def _is_complete(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / _STAMP).read_text()) == _expected()) and _program(folder).is_file()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold `<path>.lock`; the system lets go of it when the process dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise InstallError(
            f"{path.parent} cannot be written ({error.strerror}); let ELNET_HOME name a folder of yours"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _pip_install(folder: Path) -> None:
    _run([sys.executable, "-m", "venv", str(folder)], "its environment could not be made")
    with tempfile.NamedTemporaryFile(suffix=".txt") as constraints:
        constraints.write(_constraints())
        constraints.flush()
        _run(
            [
                str(folder / "bin" / "python"),
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--no-input",
                "--quiet",
                "--constraint",
                constraints.name,
                f"label-studio=={VERSION}",
            ],
            "pip did not succeed; check the network and pip's index (pip config list)",
        )


def _run(command: list[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise InstallError(f"Label Studio {VERSION} was not installed: {what}\n" + "\n".join(lines))


def _make_template(program: Path, target: Path) -> None:
    """Let Label Studio migrate an empty database, in write-ahead mode: then readers never block writers."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".migrating-") as scratch:
        env = {
            "PATH": os.defpath,
            "HOME": scratch,
            "LABEL_STUDIO_BASE_DATA_DIR": scratch,
            "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
            "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
            "LABEL_STUDIO_SENTRY_DSN": "",
        }
        try:
            done = subprocess.run(
                [str(program), "version"],  # migrates first
                env=env,
                capture_output=True,
                text=True,
                timeout=_MIGRATE_WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise InstallError(f"Label Studio did not migrate a database in {_MIGRATE_WITHIN_S} s") from error
        made = Path(scratch) / _DATABASE
        if done.returncode or not made.is_file():
            lines = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
            raise InstallError(f"Label Studio could not make its database:\n{lines}")
        with contextlib.closing(sqlite3.connect(made)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        made.replace(target)
