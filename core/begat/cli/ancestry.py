"""`begat lineage`, `stale`, `why`: what came from what, and what must be made again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from begat.cli.opened import opened
from begat.cli.options import JsonFlag, Misuse, Ref, RefOrRun, flag
from begat.cli.output import note, say, say_json, say_table
from begat.cli.reading import version_or_run
from begat.wording import counted, printable

if TYPE_CHECKING:
    from begat.stale import Stale

IgnorePinned = Annotated[
    bool,
    flag("--ignore-pinned", help="Leave out inputs that were asked for by number or digest."),
]


def lineage(
    context: typer.Context,
    what: RefOrRun,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Where --dot or --svg go; by default stdout.", show_default=False
        ),
    ] = None,
    up: Annotated[bool, flag("--up", help="Only what it came from.")] = False,
    down: Annotated[bool, flag("--down", help="Only what came of it.")] = False,
    depth: Annotated[
        int | None,
        typer.Option(
            min=1, help="At most so many versions away (default: all).", show_default=False
        ),
    ] = None,
    dot: Annotated[bool, flag("--dot", help="Draw it for Graphviz.")] = False,
    svg: Annotated[bool, flag("--svg", help="Draw it as a picture.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show what a version or a run came from, and what came of it.

    Examples:
      begat lineage digits-predictions --up
      begat lineage digits:v1 --down --depth 1
      begat lineage digits-model:best --svg lineage.svg
      begat lineage train-digits-0f89be
    """
    if dot + svg + as_json > 1:
        raise Misuse("choose one of --dot, --svg and --json")
    if file is not None and not (dot or svg):
        raise Misuse("a FILE is written with --dot or --svg only")
    direction: Literal["upstream", "downstream", "both"] = "both"
    if up != down:
        direction = "upstream" if up else "downstream"
    with opened(context) as store:
        found = store.lineage(version_or_run(store, what), direction, depth)
    if as_json:
        say_json(found.to_dict())
    elif dot or svg:
        _give(found.dot() if dot else found.svg(), file)
    else:
        say(found.tree(ascii=not _is_unicode()))


def stale(
    context: typer.Context, ignore_pinned: IgnorePinned = False, as_json: JsonFlag = False
) -> None:
    """List what was made from outdated inputs.

    These are latest and aliased versions whose inputs have moved on. What counts is content: an input that came out
    equal when it was made again is no reason. The exit code is 1 if something is stale.

    Examples:
      begat stale
      begat stale && echo 'nothing to train'
    """
    with opened(context) as store:
        found = store.stale(ignore_pinned=ignore_pinned)
    if as_json:
        say_json([_stale_facts(one) for one in found])
    else:
        say_table(
            ("VERSION", "AWAY", "REASON"),
            [(one.ref, counted(one.steps, "step"), one.reason) for one in found],
        )
        if not found:
            note("nothing is stale")
    if found:
        raise typer.Exit(1)


def why(
    context: typer.Context,
    ref: Ref,
    ignore_pinned: IgnorePinned = False,
    as_json: JsonFlag = False,
) -> None:
    """Explain why a version is stale or up to date.

    Examples:
      begat why digits-model:best
      begat why digits-predictions --ignore-pinned
    """
    with opened(context) as store:
        told = store.why(ref, ignore_pinned=ignore_pinned)
    if as_json:
        say_json(
            {
                "ref": told.ref,
                "is_stale": told.is_stale,
                "lines": list(told.lines),
                "stale": _stale_facts(told.stale) if told.stale else None,
            }
        )
        return
    for line in told.lines:
        say(printable(line))


def _stale_facts(stale: Stale) -> dict[str, Any]:
    behind = [
        {"input": one.input.ref, "requested": one.requested, "now": one.now.ref}
        for one in stale.behind
    ]
    return {"ref": stale.ref, "steps": stale.steps, "reason": stale.reason, "behind": behind}


def _give(drawing: str, file: Path | None) -> None:
    if file is None:
        say(drawing)
        return
    from begat.files import replace_with, told_as

    if file.exists() and not file.is_file():
        raise Misuse(f"{file} is not a file; nothing was written. Without a FILE it goes to stdout")
    with told_as(f"writing {file}"):
        replace_with(file, drawing.encode() + b"\n")
    say(f"wrote {file}")


def _is_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
