"""`elnet users`: who may sign in to the desk, tokens of the API, and who did what."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from active_learning.ledger import ApiToken, Role, User
from backend import accounts, actions, api_tokens
from backend.actions import Who
from backend.cli.common import JsonOption, ProjectOption, find_project, ledger_session, show, who

users_app = typer.Typer(help="Who may sign in to the desk.", no_args_is_help=False)
token_app = typer.Typer(help="Bearer tokens of the API.", no_args_is_help=True)
users_app.add_typer(token_app, name="token")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The user's name.")]
RoleArgument = Annotated[
    Role, typer.Argument(help="viewer: looks; lead: changes the loop; admin: users, too.")
]


@users_app.callback(invoke_without_command=True)
def users(context: typer.Context, json_: JsonOption = False) -> None:
    """Who may sign in to the desk."""
    if context.invoked_subcommand is not None:
        context.default_map = {context.invoked_subcommand: {"json_": json_}}
        return
    with ledger_session(write=False) as session:
        rows = [
            {
                "name": user.name,
                "role": user.role,
                "signs_in_by": _way_in(user),
                "created": user.created_at,
                "last_signed_in": user.signed_in_at,
            }
            for user in accounts.users(session)
        ]
    show(rows, as_json=json_, empty="There is no user yet: elnet users add NAME --role admin.")


@users_app.command("add")
def add_user(
    name: NameArgument,
    role: Annotated[Role, typer.Option(help="viewer: looks; lead: changes the loop; admin: users, too.")],
    json_: JsonOption = False,
) -> None:
    """Make a user, and print a one-time password for the first sign-in; it is kept nowhere."""
    with ledger_session(write=True) as session:
        user, password = accounts.add(session, name, role, Who(who()))
    _tell_password(user, password, as_json=json_)


@users_app.command("password")
def reset_password(name: NameArgument, json_: JsonOption = False) -> None:
    """Print a new one-time password for a user; their old one and their sessions end."""
    with ledger_session(write=True) as session:
        user = accounts.find(session, name)
        password = accounts.reset_password(session, user, Who(who()))
    _tell_password(user, password, as_json=json_)


@users_app.command("role")
def set_role(name: NameArgument, role: RoleArgument) -> None:
    """Give a user another role; their sessions end."""
    with ledger_session(write=True) as session:
        user = accounts.find(session, name)
        accounts.set_role(session, user, role, Who(who()))
    typer.echo(f"{user.name} is a {user.role}.")


@users_app.command("disable")
def disable_user(name: NameArgument) -> None:
    """Let a user in no longer, by password, session or token; `elnet users enable` undoes it."""
    with ledger_session(write=True) as session:
        user = accounts.find(session, name)
        accounts.set_disabled(session, user, True, Who(who()))
    typer.echo(f"{user.name} may not sign in any more.")


@users_app.command("enable")
def enable_user(name: NameArgument) -> None:
    """Let a user in again."""
    with ledger_session(write=True) as session:
        user = accounts.find(session, name)
        accounts.set_disabled(session, user, False, Who(who()))
    typer.echo(f"{user.name} may sign in.")


@users_app.command("remove")
def remove_user(name: NameArgument) -> None:
    """Delete a user and their tokens; what they did stays in the log.

    Whom a proxy or a provider vouches for comes back at the next visit: disable them instead.
    """
    with ledger_session(write=True) as session:
        user = accounts.find(session, name)
        accounts.remove(session, user, Who(who()))
    typer.echo(f"{user.name} is deleted.")


@users_app.command("log")
def log(
    limit: Annotated[int, typer.Option(min=1, help="How many, the newest first.")] = 50,
    by: Annotated[str | None, typer.Option("--by", metavar="NAME", help="Only what this one did.")] = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """Who did what at the desk, through its API, and to its users; and from where."""
    with ledger_session(write=False) as session:
        only = find_project(session, project) if project else None
        found = actions.latest(session, limit, who=by, project=only)
    rows = [
        {
            "at": action.at,
            "who": action.who,
            "action": action.action,
            "thing": action.thing,
            "project": action.project.name if action.project else None,
            "from": action.address or "terminal",
            "detail": action.detail if json_ else ", ".join(f"{k}={v}" for k, v in action.detail.items()),
        }
        for action in found
    ]
    show(rows, as_json=json_, empty="Nothing was done yet.")


@token_app.command("add")
def add_token(
    name: NameArgument,
    purpose: Annotated[str, typer.Argument(help="What the token is for.")],
    days: Annotated[
        int | None, typer.Option(min=1, max=3660, help="How long it holds. Default: until it is revoked.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make a token that may do what its user may, and print it; it is kept nowhere."""
    with ledger_session(write=True) as session:
        user = accounts.find(session, name)
        made, token = api_tokens.make(session, user, purpose, days, Who(who()))
    if json_:
        typer.echo(json.dumps({"id": made.id, "user": user.name, "token": token}, indent=2))
        return
    typer.echo(token)
    typer.echo(f"Token {made.id} of {user.name}, a {user.role}; it is shown only now.", err=True)


@token_app.command("list")
def list_tokens(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Only this user's.")] = None,
    json_: JsonOption = False,
) -> None:
    """The tokens, without what proves them."""
    with ledger_session(write=False) as session:
        rows = [
            _token_row(t) for t in api_tokens.tokens(session, accounts.find(session, name) if name else None)
        ]
    show(rows, as_json=json_, empty="There is no token yet.")


@token_app.command("revoke")
def revoke_token(token_id: Annotated[int, typer.Argument(metavar="ID", help="As `list` shows it.")]) -> None:
    """Make a token worthless."""
    with ledger_session(write=True) as session:
        token = api_tokens.revoke(session, token_id, Who(who()))
    typer.echo(f"Token {token.id} ({token.name}) of {token.user.name} is worthless from now on.")


def _way_in(user: User) -> str:
    state = accounts.state(user)
    return accounts.signs_in_by(user) if state == "active" else state


def _token_row(token: ApiToken) -> dict[str, object]:
    return {
        "id": token.id,
        "user": token.user.name,
        "purpose": token.name,
        "created": token.created_at,
        "last_used": token.used_at,
        "expires": token.expires_at,
        "revoked": token.revoked_at,
    }


def _tell_password(user: User, password: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps({"name": user.name, "role": user.role, "one_time_password": password}, indent=2)
        )
        return
    typer.echo(password)
    typer.echo(
        f"This opens the desk once, as {user.name}, who then chooses another. It is shown only now.", err=True
    )
