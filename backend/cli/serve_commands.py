"""Commands that start things: backend, worker, everything at once, the demo; and what looks after them."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from backend.logs import start_logging
from backend.settings import Settings, load_settings


class Queues(StrEnum):
    """What a worker takes from."""

    ALL = "all"
    SERVE = "label-studio,prefill"
    PREFILL = "prefill"
    TRAIN = "train"


label_studio_app = typer.Typer(help="The embedded Label Studio.", no_args_is_help=True)


def web() -> None:
    """Serve the ML contract, the webhook and the desk with gunicorn."""
    from backend.child import environment
    from backend.running import with_secrets
    from backend.wsgi import gunicorn_command

    settings = with_secrets(load_settings())  # never open: `project create` gives Label Studio the same ones
    _prepare_desk(settings)
    command = gunicorn_command(settings)
    # Our own interpreter, in place of this process: gunicorn gets the signals.
    os.execve(command[0], command, environment(settings))  # noqa: S606


def worker(
    queues: Annotated[
        Queues,
        typer.Option(
            help="all; without cycles: label-studio,prefill; or, beside such a worker, only prefill or train."
        ),
    ] = Queues.ALL,
    standby: Annotated[
        bool,
        typer.Option(
            "--standby", help="While another speaks with Label Studio, wait, and take over when it dies."
        ),
    ] = False,
) -> None:
    """Work off inbox, prefills and retraining cycles, until SIGTERM or Ctrl-C."""
    from active_learning.ledger import Ledger
    from backend.label_studio import LabelStudio
    from backend.media import MediaStore
    from backend.prefill_worker import PrefillWorker
    from backend.train_worker import TrainWorker
    from backend.worker import Worker

    if standby and queues in {Queues.PREFILL, Queues.TRAIN}:
        raise typer.BadParameter(f"any number of workers take {queues}: none needs to stand by")
    settings = load_settings()
    start_logging(settings)
    images = MediaStore.from_settings(settings)
    with Ledger(settings.ledger_url) as ledger:
        if queues is Queues.PREFILL:
            PrefillWorker(settings, ledger, images).run()
        elif queues is Queues.TRAIN:
            TrainWorker(settings, ledger, images).run()
        else:
            tool = LabelStudio.from_settings(settings)
            Worker(settings, ledger, tool, images, cycles=queues is Queues.ALL).run(standby=standby)


def up(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with images/ and, for some of them, masks/. Default: a sample scene."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the project. Default: the folder's.")] = None,
    classes: Annotated[str | None, typer.Option(help="Classes, separated by commas.")] = None,
    labelled_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the given masks that are imported as labels.")
    ] = 0.4,
) -> None:
    """Label Studio, backend and worker on this machine, for people: Ctrl-C stops them, nothing is lost."""
    from backend.cli.common import split_names
    from backend.up import run_up

    settings = load_settings()
    start_logging(settings)
    run_up(settings, data, name, split_names(classes) if classes else None, labelled_share)


def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with images/ and masks/ of equal names. Default: a sample scene."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-report"),
    cycles: Annotated[int, typer.Option(min=1, help="How many retraining cycles.")] = 3,
    limit: Annotated[int, typer.Option(min=8, help="How many images at most.")] = 120,
    seed: Annotated[int, typer.Option(help="Of the images, those labelled first, and training.")] = 0,
) -> None:
    """The whole loop, unattended, with an oracle annotator; ends by itself with a report."""
    from backend.demo import DemoPlan, run_demo

    run_demo(data, out, DemoPlan(cycles=cycles, limit=limit, seed=seed))


def _prepare_desk(settings: Settings) -> None:
    """Let somebody in: without a user the desk is of no use.

    Raises:
        OidcError: what the settings need is not installed.
    """
    from active_learning.ledger import Ledger, LedgerError
    from backend.accounts import FIRST_ADMIN, add_first_admin
    from backend.desk.oidc import check_installed

    if not settings.desk.enabled:
        return
    check_installed(settings)
    try:
        with Ledger(settings.ledger_url) as ledger:
            ledger.check()
            password = add_first_admin(ledger)
    except LedgerError as error:  # it is served all the same, and answers when the ledger does
        typer.echo(f"No first user of the desk was looked for: {error}", err=True)
        return
    if password is not None:
        typer.echo(f"The desk: {settings.desk_url}/desk/")
        typer.echo(f"sign in there as {FIRST_ADMIN} with the one-time password {password}")


@label_studio_app.command("install")
def install() -> None:
    """Install the pinned Label Studio into an environment of its own; quick the second time."""
    from backend.label_studio_install import install as install_label_studio

    started = time.monotonic()
    program = install_label_studio(say=lambda line: typer.echo(line, err=True))
    typer.echo(f"{program} ({time.monotonic() - started:.0f} s)")
