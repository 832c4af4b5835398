"""Installs label-studio-ml 1.0.9 into an environment of its own, for the test of our adapter.

    python tests/label_studio_ml_environment.py

It prints the environment's interpreter. As a team would that adds elnet-loop to a label-studio-ml which runs
already, that environment sees the packages of this one (Flask 3.1 and all that elnet-loop needs), and
label-studio-ml comes with --no-deps and what it fails to declare. It lies in the cache folder ($ELNET_HOME),
is made in some seconds, and is used again as long as nothing of this changes.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from model.cache_root import cache_root

PINS = (
    "label-studio-ml==1.0.9",
    "label-studio-tools==0.0.4",
    "redis==8.1.0",
    "rq==2.12.0",
    "colorama==0.4.6",
    "appdirs==1.4.4",
    "attrs==26.1.0",
    "croniter==7.0.0",
    "lxml==6.1.3",
)


def ensure() -> Path:
    """The interpreter of the environment, which is made if it is not there."""
    folder = cache_root() / "environments" / "label-studio-ml-1.0.9"
    python, stamp = folder / "bin" / "python", folder / "elnet-complete"
    beside = [sysconfig.get_paths()["purelib"], str(Path(__file__).resolve().parents[1])]
    wanted = hashlib.sha256("\n".join([sys.version, *PINS, *beside]).encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    run(sys.executable, "-m", "venv", str(folder))
    run(str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *PINS)
    packages = next((folder / "lib").glob("python*/site-packages"))
    lines = [f"import site; site.addsitedir({beside[0]!r})", beside[1]]
    (packages / "elnet-beside.pth").write_text("\n".join(lines) + "\n")
    stamp.write_text(wanted)
    return python


def run(*command: str) -> None:
    """Run a command whose output matters only when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    print(ensure())
