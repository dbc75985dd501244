"""`begat verify`, `gc`, `backup`, `rebuild`, `sync`, `cache`: look after what is stored."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import structs

from begat.cli.completion import offer_references
from begat.cli.labels import confirm
from begat.cli.opened import location_of, opened
from begat.cli.options import JsonFlag, Misuse, QuietFlag, YesFlag, flag
from begat.cli.output import moment, note, say, say_json, say_table
from begat.cli.progress import shown
from begat.errors import ArtifactNotFound, DestinationDiffers
from begat.wording import counted, printable, size_text

if TYPE_CHECKING:
    from begat.cache import Cache, CachedFolder
    from begat.sweep import SweepReport
    from begat.verify import VerifyReport

MOST_REASONS = 10


def verify(
    context: typer.Context,
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="REF",
            help="One version; by default everything.",
            autocompletion=offer_references,
            show_default=False,
        ),
    ] = None,
    read_data_subset: Annotated[
        str | None, typer.Option(metavar="N/T", help="Only part N of T of all objects.")
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Read stored bytes again and compare them with their digests.

    What is damaged is named, set aside and offered no more; the exit code is then 1. Logging the same files again
    mends it. N/T reads one part, and the parts 1/T to T/T together are everything.

    Examples:
      begat verify
      begat verify digits:v3
      begat verify --read-data-subset 1/7
    """
    subset = None if read_data_subset is None else _subset(read_data_subset)
    if ref is not None and subset is not None:
        raise Misuse("give REF or --read-data-subset, not both")
    with opened(context) as store, shown(quiet=quiet or as_json):
        if ref is not None:
            ref = store.get_artifact(ref).ref  # what an alias means now
        report = store.verify(ref, subset=subset)
    what = ref or ("all" if subset is None else f"part {subset[0]} of {subset[1]}")
    if as_json:
        say_json({**asdict(report), "is_sound": report.is_sound, "read": what})
    else:
        say_table(
            ("DAMAGED", "PROBLEM", "OBJECT"),
            [(one.place, one.problem, one.object or "") for one in report.damaged],
        )
        read = _read_text(report, ref, subset)
        if report.is_sound:
            say(f"{what} is sound: {read}")
        else:
            say(
                f"{len(report.damaged):,} damaged in {what}: {read}. Log the same files again to mend them"
            )
    if not report.is_sound:
        raise typer.Exit(1)


def gc(
    context: typer.Context,
    delete: Annotated[
        bool, flag("--delete", help="Really remove; without it nothing is changed.")
    ] = False,
    wait: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for writers.")
    ] = 0.0,
    explain: Annotated[
        bool, flag("--explain", help="Say of every version why it is kept.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the bytes that no version needs, and remove them.

    Without --delete nothing is changed: it says what would go, and why the rest is kept. Bytes go of versions that
    were deleted (begat rm), and of those that were retired: checkpoints that the training itself removed or replaced,
    unless an alias, a tag or another run needs them.

    Examples:
      begat gc
      begat gc --explain
      begat gc --delete --wait 60
    """
    with opened(context) as store, shown(quiet=as_json):
        report = store.gc(dry_run=not delete, wait=wait)
    if as_json:
        say_json(asdict(report))
        return
    say_table(
        ("REMOVED" if delete else "WOULD GO", "SIZE", "REASON"),
        [(one.what, size_text(one.size_bytes), one.reason) for one in report.removed],
        right=("SIZE",),
    )
    _say_kept(report, each=explain)
    freed = size_text(report.freed_bytes)
    if delete:
        say(f"{freed} freed")
    elif report.removed:
        say(f"{freed} would be freed; nothing was changed (begat gc --delete)")
    else:
        say("nothing would go")


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    as_json: JsonFlag = False,
) -> None:
    """Copy the catalog into one file.

    It holds names, numbers, labels and lineage, and others may go on writing. Objects never change: copy the folder
    objects/ with any tool, after this.

    Examples:
      begat backup catalog-2026-11-23.sqlite
    """
    if file.exists():
        raise DestinationDiffers(
            f"{file} exists already and was not changed; give the backup another name"
        )
    with opened(context) as store:
        store.backup(file)
    size_bytes = file.stat().st_size
    if as_json:
        say_json({"path": str(file.absolute()), "size_bytes": size_bytes})
    else:
        say(f"wrote {file} ({size_text(size_bytes)})")


def rebuild(context: typer.Context, yes: YesFlag = False, as_json: JsonFlag = False) -> None:
    """Make the catalog anew from the objects.

    For a catalog that is lost or broken; the old one is kept beside it. Names, numbers and lineage come back. Label
    moves and deletions do not: those are in a backup only.

    Examples:
      begat rebuild
      begat --store /data/begat rebuild --yes
    """
    path = location_of(context).path
    confirm(f"Make the catalog of {path} anew, without later label moves and deletions?", yes=yes)
    from begat.rebuild import rebuild_store

    report = rebuild_store(path)
    if as_json:
        say_json(asdict(report))
    else:
        found = (("version", report.versions), ("run", report.runs), ("object", report.objects))
        say(f"rebuilt {path}: {', '.join(counted(count, noun) for noun, count in found)}")
        for problem in report.problems:
            say(printable(f"!! {problem}"))
    if report.problems:
        raise typer.Exit(1)


def sync(context: typer.Context, as_json: JsonFlag = False) -> None:
    """Store what killed training callbacks had taken in.

    What can never be stored is named as lost, what cannot be stored now waits; for both the exit code is 1.

    Examples:
      begat sync
    """
    from begat.recording.journal import sync as carry_out_rest

    with opened(context) as store:
        report = carry_out_rest(store)
    if as_json:
        say_json(asdict(report))
    else:
        for ref in report.shipped:
            say(f"stored {ref}")
        for what, steps in (("lost", report.lost), ("waits", report.pending)):
            for step in steps:
                say(printable(f"{what}: {step}"))
        if not (report.shipped or report.lost or report.pending):
            note("nothing was left")
    if report.lost or report.pending:
        raise typer.Exit(1)


def _subset(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    try:
        found = int(number), int(count)
    except ValueError:
        found = 0, 0
    if not slash or not 1 <= found[0] <= found[1]:
        raise Misuse(f"--read-data-subset is n/t with 1 <= n <= t, such as 1/7, not {text!r}")
    return found


def _read_text(report: VerifyReport, ref: str | None, subset: tuple[int, int] | None) -> str:
    versions, size = counted(report.checked_versions, "version"), size_text(report.checked_bytes)
    if ref is not None:
        return f"{size} read"
    if subset is None:
        return f"{versions}, {size} read"
    objects = counted(report.checked_objects, "object")
    others = counted(subset[1] - 1, "other part")
    return f"{objects}, {size}, and the file lists of {versions} read; {others} not read"


def _say_kept(report: SweepReport, *, each: bool) -> None:
    if each:
        rows = [(kept.ref, size_text(kept.size_bytes), kept.reason) for kept in report.kept]
        say_table(("KEPT", "SIZE", "REASON"), rows, right=("SIZE",))
        return
    reasons = Counter(kept.reason for kept in report.kept)
    rows = [(f"{count:,}", reason) for reason, count in reasons.most_common(MOST_REASONS)]
    others = len(reasons) - len(rows)
    if others:
        rest = len(report.kept) - sum(count for _, count in reasons.most_common(MOST_REASONS))
        rows.append((f"{rest:,}", f"{counted(others, 'other reason')} (--explain)"))
    say_table(("VERSIONS KEPT", "REASON"), rows, right=("VERSIONS KEPT",))


# --- begat cache ---

cache_commands = typer.Typer(
    help="Look after the cached folders of versions.", no_args_is_help=True
)


def cache_ls(as_json: JsonFlag = False) -> None:
    """List the cached folders, least recently used first.

    Examples:
      begat cache ls
    """
    folders = _cache().list()
    if as_json:
        say_json([_folder_facts(folder) for folder in folders])
        return
    rows = [
        (
            folder.ref,
            size_text(folder.size_bytes),
            moment(folder.used_at),
            "in use" if folder.is_in_use else "",
            str(folder.path),
        )
        for folder in folders
    ]
    say_table(("VERSION", "SIZE", "USED", "STATE", "FOLDER"), rows, right=("SIZE",))
    if not folders:
        note("the cache is empty")


def cache_rm(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF", help="As 'begat cache ls' lists it, or b3:<digest>."),
    ] = None,
    everything: Annotated[bool, flag("--all", help="Every folder that nobody uses.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Remove cached folders; they are made again when needed.

    What a process uses stays. With --all the stat cache goes too: the next log of a folder reads all its files.

    Examples:
      begat cache rm digits:v1 digits:v2
      begat cache rm --all
    """
    from begat.statcache import prune

    if bool(what) == everything:
        raise Misuse("name what is to be removed, or say --all")
    cache = _cache()
    folders = cache.list()
    chosen = (
        folders if everything else [one for text in what or () for one in _named(folders, text)]
    )
    removed = [folder for folder in chosen if cache.remove(folder.digest)]
    if everything:
        prune(cache.root, everything=True)
    _say_removed(removed, as_json=as_json)
    kept = [folder.ref for folder in chosen if folder not in removed]
    if kept:
        note(f"begat: in use, and kept: {', '.join(kept)}")
    if kept and not everything:
        raise typer.Exit(1)


def cache_prune(
    to: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Such as 5GB (default: BEGAT_CACHE_SIZE, or 20GB).",
            show_default=False,
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Remove cached folders until the cache is small enough.

    The least recently used go first, and what a process uses stays. So does the stat cache of folders that are there.

    Examples:
      begat cache prune --to 5GB
    """
    from begat.config import cache_limit_bytes, parse_size
    from begat.statcache import prune

    limit_bytes = cache_limit_bytes() if to is None else parse_size(to, what="--to")
    cache = _cache()
    prune(cache.root)
    _say_removed(cache.prune(limit_bytes), as_json=as_json)


def _cache() -> Cache:
    from begat.cache import Cache
    from begat.config import cache_directory

    return Cache(cache_directory())


def _named(folders: list[CachedFolder], text: str) -> list[CachedFolder]:
    if text.startswith("b3:"):
        found = [folder for folder in folders if folder.digest.startswith(text)]
    else:
        found = [folder for folder in folders if folder.ref == text]
    if not found:
        raise ArtifactNotFound(
            f"{text!r} is not in the cache; nothing was removed (begat cache ls)"
        )
    return found


def _say_removed(removed: list[CachedFolder], *, as_json: bool) -> None:
    if as_json:
        say_json([_folder_facts(folder) for folder in removed])
        return
    for folder in removed:
        say(f"removed {folder.ref} ({size_text(folder.size_bytes)})")
    if not removed:
        say("nothing was removed")


def _folder_facts(folder: CachedFolder) -> dict[str, object]:
    return {**structs.asdict(folder), "path": str(folder.path)}
