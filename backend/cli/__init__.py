"""`elnet`: the command line.

A command's module is imported only when the command is called, so that `elnet --help` answers at once: torch
and SQLAlchemy take seconds. To add a command, add its line to `COMMANDS`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, NoReturn

import typer

from model.errors import ELNetError

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it

# name: (module:attribute, what the list of commands says). The attribute is a function or a typer.Typer.
COMMANDS: Final = {
    "weights": ("backend.cli.model_commands:weights", "Fetch, check and cache the weights of SAM 2's trunk."),
    "train": ("backend.cli.model_commands:train", "Train on a folder with images/ and masks/."),
    "evaluate": ("backend.cli.model_commands:evaluate", "Measure a checkpoint on a folder with truth."),
    "predict": ("backend.cli.model_commands:predict", "Predict the masks of a folder of images."),
    "enhance": ("backend.cli.model_commands:enhance", "Make the coarse masks of a folder better."),
    "project": ("backend.cli.project_commands:project_app", "Projects in Label Studio and the ledger."),
    "retrain": ("backend.cli.loop_commands:retrain", "Ask for a retraining cycle; the worker runs it."),
    "cycles": ("backend.cli.loop_commands:cycles_app", "The retraining cycles: list, log, cancel, resume."),
    "models": ("backend.cli.loop_commands:models_app", "The model versions: list, promote, roll back."),
    "lineage": (
        "backend.cli.loop_commands:show_lineage",
        "Which labels a model version has learned from, and the other way round.",
    ),
    "threshold": (
        "backend.cli.threshold_commands:threshold_app",
        "The accept threshold: what if, promise, set, undo.",
    ),
    "policy": ("backend.cli.policy_commands:policy_app", "The settings of a project: show, set, history."),
    "queue": ("backend.cli.queue_commands:queue", "What people get next, and why."),
    "audit": ("backend.cli.queue_commands:audit", "What audits said of the masks."),
    "labels": (
        "backend.cli.label_commands:labels_app",
        "What people drew: labels worth a second look, agreement, export.",
    ),
    "users": ("backend.cli.user_commands:users_app", "Who may sign in to the desk, and who did what."),
    "simulate": (
        "backend.cli.simulating:simulate",
        "Replay the loop on labelled data: which strategy needs the fewest labels?",
    ),
    "up": ("backend.cli.serve_commands:up", "Start everything on this machine, for people."),
    "demo": ("backend.cli.serve_commands:demo", "The whole loop, unattended, with a report."),
    "web": ("backend.cli.serve_commands:web", "Serve the ML contract, the webhook and the desk."),
    "worker": ("backend.cli.serve_commands:worker", "Work off inbox, prefills and cycles."),
    "doctor": ("backend.cli.project_commands:doctor", "Find what fails silently, and say how to mend it."),
    "label-studio": ("backend.cli.serve_commands:label_studio_app", "Install the embedded Label Studio."),
    "ledger": ("backend.cli.loop_commands:ledger_app", "Make or upgrade the ledger's tables."),
}


def main() -> None:
    """Run the command line; errors that a person can mend come without a traceback."""
    # Before torch is loaded: idle threads sleep instead of spin, so that training and prefilling at the same
    # time are twice as fast, and either alone as fast as before (docs/decisions.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        application(sys.argv[1:])()
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer has caught Ctrl-C, and says nothing
            _fail("stopped by Ctrl-C", _INTERRUPTED)
        raise
    except KeyboardInterrupt:  # while a command was still being imported
        _fail("stopped by Ctrl-C", _INTERRUPTED)
    except ELNetError as error:
        _fail(str(error))
    except Exception as error:  # the process boundary: whatever it is, a person reads it
        if os.environ.get("ELNET_DEBUG") == "1":
            raise
        _fail(
            f"unexpected {type(error).__name__}: {error}\n"
            "This is a fault of elnet. Run the command again with ELNET_DEBUG=1 and report what it prints "
            "to the project's issue tracker."
        )


def application(arguments: Sequence[str]) -> typer.Typer:
    """The application for these arguments: the command that they name is real, the others only listed."""
    app = typer.Typer(
        name="elnet",
        help="An active-learning labeling loop for remote-sensing segmentation.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_top)
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, (target, help_) in COMMANDS.items():
        command = load(target) if name == named else _listed
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name, help=help_ if command is _listed else None)(command)
    return app


def load(target: str) -> Any:
    """Import what "module:attribute" names."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(module), attribute)


def _listed() -> None:
    """Stands for a command that was not called."""


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(version("elnet-loop"))
        except PackageNotFoundError as error:
            raise ELNetError("elnet-loop is not installed here: pip install -e .") from error
        raise typer.Exit


def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _fail(message: str, status: int = 1) -> NoReturn:
    print(f"elnet: {'error: ' if status == 1 else ''}{message}", file=sys.stderr)
    sys.exit(status)
