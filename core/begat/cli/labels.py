"""`begat alias`, `begat tag`, `begat rm`: what may change about a version that is there for good."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict

from begat.cli.opened import expected, opened
from begat.cli.options import JsonFlag, Misuse, Ref, YesFlag, flag
from begat.cli.output import say, say_json
from begat.wording import counted, size_text

if TYPE_CHECKING:
    from begat.model import AliasMove


def alias(
    context: typer.Context,
    ref: Ref,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The alias.", show_default=False)
    ] = None,
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="REF|absent", help="Move it only from there; else nothing is changed."
        ),
    ] = None,
    remove: Annotated[
        str | None,
        typer.Option("--rm", metavar="NAME", help="Remove this alias; REF is then the artifact."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Let a name such as best or prod mean a version.

    It moves there from where it was, in one step; begat history NAME --alias best lists its moves.

    Examples:
      begat alias digits-model:v4 best
      begat alias digits-model:v4 prod --expect digits-model:v3
      begat alias --rm prod digits-model
    """
    if (name is None) == (remove is None):
        raise Misuse("give REF and NAME, or --rm NAME and the artifact")
    with opened(context) as store:
        if remove is not None:
            wanted = expected(store, ref, expect)
            move = store.remove_alias(ref, remove, expect=wanted)
        else:
            assert name is not None
            artifact = store.get_artifact(ref).name
            move = store.alias(ref, name, expect=expected(store, artifact, expect))
    if as_json:
        say_json(asdict(move))
    else:
        say(_move_text(move))


def tag(
    context: typer.Context,
    ref: Ref,
    tags: Annotated[list[str], typer.Argument(metavar="TAG", help="One tag or more.")],
    remove: Annotated[bool, flag("--rm", help="Take the tags off.")] = False,
    artifact: Annotated[
        bool, flag("--artifact", help="Tag the artifact as a whole; REF is its name.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Tag a version, or an artifact as a whole.

    Examples:
      begat tag digits:v3 reviewed holdout
      begat tag digits gold --artifact
      begat tag digits:v3 holdout --rm
    """
    with opened(context) as store:
        if artifact:
            store.tag_artifact(ref, *tags, remove=remove)
            subject, now = ref, store.catalog.versions.artifact(ref).tags
        else:
            version = store.get_artifact(ref)
            (version.remove_tags if remove else version.add_tags)(*tags)
            subject, now = version.ref, version.tags
    if as_json:
        say_json({"ref": subject, "tags": list(now)})
    else:
        say(f"{subject}: {', '.join(now) or 'no tags'}")


def rm(
    context: typer.Context,
    ref: Ref,
    force: Annotated[
        bool, flag("--force", help="Although it has aliases, which are removed.")
    ] = False,
    yes: YesFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Delete one version, named by number or digest.

    Its place in the lineage stays, its number is never given again, and its bytes go with begat gc.

    Examples:
      begat rm digits:v2
      begat rm digits:v2 --force --yes
    """
    with opened(context) as store:
        version = store.get_artifact(ref)
        users = len(version.consumed_by)
        about = f"{counted(version.file_count, 'file')}, {size_text(version.size_bytes)}"
        confirm(
            f"Delete {version.ref} ({about}, used by {counted(users, 'run')})? Its number is never given again.",
            yes=yes,
        )
        store.delete(ref, force=force)
    if as_json:
        say_json({"ref": version.ref, "state": "deleted"})
    else:
        say(f"deleted {version.ref}; its bytes go with 'begat gc --delete'")


def confirm(question: str, *, yes: bool) -> None:
    """Ask on the terminal, unless `yes`; without a terminal it must be `yes`. Ends the command if the answer is
    no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Misuse("there is no terminal to ask on; say --yes if that is what you want")
    if not typer.confirm(question, err=True):
        raise typer.Exit(1)


def _move_text(move: AliasMove) -> str:
    before = f"v{move.from_number}" if move.from_number else None
    if move.to_number is None:
        return f"{move.artifact}:{move.alias} is gone (it was {before})"
    return f"{move.artifact}:{move.alias} is v{move.to_number}" + (
        f" (it was {before})" if before and move.from_number != move.to_number else ""
    )
