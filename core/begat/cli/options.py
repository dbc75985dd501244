"""Arguments and options that several commands have, so that they mean the same everywhere."""

from __future__ import annotations

import json
from typing import Annotated, Any, NoReturn

import typer

from begat.cli.completion import offer_names, offer_references, offer_references_and_runs


def flag(*names: str, help: str, **more: Any) -> Any:
    """An option without a value; typer would write its type behind its name, as if it took one."""
    return typer.Option(*names, help=help, metavar="", **more)


JsonFlag = Annotated[bool, flag("--json", help="Print JSON, for programs.")]
QuietFlag = Annotated[bool, flag("--quiet", "-q", help="Show no progress.")]
YesFlag = Annotated[bool, flag("--yes", "-y", help="Do not ask.")]

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The artifact, such as digits.", autocompletion=offer_names
    ),
]
Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="digits (its latest), digits:v3, digits:best, digits:1.4.0 or digits@b3:9f31c0.",
        autocompletion=offer_references,
    ),
]
RefOrRun = Annotated[
    str,
    typer.Argument(
        metavar="REF|RUN",
        help="A version such as digits:v3, or a run by its name or id (the beginning of it will do).",
        autocompletion=offer_references_and_runs,
    ),
]


class Misuse(typer.TyperException):
    """The command was typed in a way that has no meaning."""

    exit_code = 2


def pairs(texts: list[str] | None, option: str) -> dict[str, Any]:
    """`["lr=0.1", "note=a b"]` -> `{"lr": 0.1, "note": "a b"}`: a value that is JSON is taken as JSON."""
    found: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise Misuse(f"{option} is given as key=value, not {text!r}")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return text


def _no_number(text: str) -> NoReturn:
    # Python reads NaN and Infinity as JSON; nobody else does, and the store refuses them.
    raise ValueError(text)
