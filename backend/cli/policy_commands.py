"""`elnet policy`: the settings of a project after it was made."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import yaml

from active_learning import policy as policies
from backend.cli.common import JsonOption, ProjectOption, find_project, hand_down, ledger_session, show, who
from model.errors import ELNetError

policy_app = typer.Typer(help="The policy of a project.", no_args_is_help=False)


class PolicyCommandError(ELNetError):
    """An assignment that cannot be read."""


@policy_app.callback(invoke_without_command=True)
def policy(context: typer.Context, project: ProjectOption = None, json_: JsonOption = False) -> None:
    """The settings of a project, and what they mean. The accept threshold has `elnet threshold`."""
    if hand_down(context, project, json_):
        return
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        rows = [
            {"setting": name, "value": getattr(found, name), "meaning": setting.meaning}
            for name, setting in policies.SETTINGS.items()
        ]
    show(rows, as_json=json_, empty="")


@policy_app.command("set")
def set_policy(
    assignments: Annotated[
        list[str], typer.Argument(metavar="NAME=VALUE...", help="Such as audit_share=0.2 blind_share=0.5.")
    ],
    why: Annotated[str, typer.Option(help="The reason, for the record.")],
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """Change settings; values are YAML: schedule='0 2 * * 1-5', gain=null, training='{mode: full}'."""
    wanted = dict(map(_parse, assignments))
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        rows = [
            {"setting": made.setting, "from": made.from_value, "to": made.to_value}
            for made in policies.change(session, found, wanted, who(), why)
        ]
    show(rows, as_json=json_, empty="Nothing changes: that is how it is already.")


@policy_app.command("history")
def policy_history(project: ProjectOption = None, json_: JsonOption = False) -> None:
    """Who changed which setting, when, from what to what, and why."""
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        rows = [
            {
                "at": made.at,
                "who": made.who,
                "setting": made.setting,
                "from": made.from_value,
                "to": made.to_value,
                "why": made.why,
            }
            for made in policies.history(session, found)
        ]
    show(rows, as_json=json_, empty=f"The policy of {found.name!r} was never changed.")


def _parse(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise PolicyCommandError(f"{text!r} cannot be read: {str(error).splitlines()[0]}") from error
    if not separator or not value.strip():
        raise PolicyCommandError(f"{text!r} should be NAME=VALUE, such as audit_share=0.2")
    return name.strip(), found
