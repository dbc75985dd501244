"""`begat init`, `begat log`, `begat get`: make a store, put files into it, get them back."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from msgspec.structs import replace

from begat.cli.opened import expected, opened, settings_of, surrounding_run
from begat.cli.options import JsonFlag, Misuse, Name, QuietFlag, Ref, flag, pairs
from begat.cli.output import new_and_shared, note, say, say_json
from begat.cli.progress import shown
from begat.errors import BadPath
from begat.facts import version_facts
from begat.wording import counted, size_text

if TYPE_CHECKING:
    from begat.model import Entry
    from begat.run import Run
    from begat.store import Store
    from begat.version import Version

Globs = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only files that fit; ** crosses folders. Repeatable."),
]


def init(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Where .begat is made; by default the working folder."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a store for a project.

    It is a folder .begat, and found from everywhere below the folder it is in. Without one, begat keeps everything
    in a store in your data folder.

    Examples:
      begat init
      begat init ~/projects/digits
    """
    from begat.config import STORE_FOLDER, find_store
    from begat.files import replace_with, told_as
    from begat.opening import FORMAT_FILE, open_store

    given = settings_of(context).store
    if given is not None and folder is not None:
        raise Misuse("give --store or DIR, not both")
    wanted = given if given is not None else (folder or Path()) / STORE_FOLDER
    path = find_store(wanted).path
    is_new = not (path / FORMAT_FILE).is_file()
    with open_store(path) as store:
        uid = store.uid
    if is_new:
        # A store is no part of the code beside it; git would otherwise offer to commit every object.
        with told_as(f"making the store {path}"):
            replace_with(path / ".gitignore", b"*\n")
    if as_json:
        say_json({"path": str(path), "uid": uid, "is_new": is_new})
    else:
        say(f"made the store {path}" if is_new else f"{path} is a store already")
    meant = find_store(given, start=None if folder is None else folder.absolute())
    if meant.path != path:
        note(
            f"begat: this store is not the one that is used here, which is {meant.path} ({meant.why})"
        )


def log(
    context: typer.Context,
    name: Name,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH", help="Files, and folders (their contents go to the root)."),
    ],
    type: Annotated[
        str | None,
        typer.Option(
            help="dataset, model, predictions, any word (default: data, or what it is).",
            show_default=False,
        ),
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Move this alias to the version. Repeatable.")
    ] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag the version. Repeatable.")] = None,
    meta: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Metadata; a value may be JSON. Repeatable."),
    ] = None,
    version: Annotated[
        str | None, typer.Option(metavar="1.4.0", help="The version's SemVer label.")
    ] = None,
    bump: Annotated[
        Literal["major", "minor", "patch"] | None, typer.Option(help="Take the next SemVer label.")
    ] = None,
    description: Annotated[str | None, typer.Option(help="What it is, in words.")] = None,
    portable: Annotated[
        bool, flag("--portable", help="Refuse names that Windows or macOS cannot hold.")
    ] = False,
    if_unchanged: Annotated[
        Literal["reuse", "new"],
        typer.Option(help="What equal content comes to: the latest version, or a new one."),
    ] = "reuse",
    expect: Annotated[
        str | None,
        typer.Option(
            metavar="REF|absent", help="Refuse unless this is the latest version, or there is none."
        ),
    ] = None,
    include: Globs = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out files that fit. Repeatable."),
    ] = None,
    symlinks: Annotated[
        Literal["keep", "follow", "refuse"], typer.Option(help="What links are stored as.")
    ] = "keep",
    no_stat_cache: Annotated[
        bool,
        flag("--no-stat-cache", help="Read all files, also those that look as when last read."),
    ] = False,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Store files as the next version of an artifact.

    What was stored is durable when the command returns. Content and metadata equal to the latest version make no
    new one. Inside 'begat run' the version is made by that run. What .begatignore names is left out.

    Examples:
      begat log digits data/ --type dataset --meta rows=1797
      begat log digits-model out/ --type model --alias best --bump minor
    """
    from begat.artifact import Artifact

    if version is not None and bump is not None:
        raise Misuse("give --version or --bump, not both")
    draft = Artifact(
        name,
        type,
        version=version,
        aliases=alias or (),
        tags=tag or (),
        metadata=pairs(meta, "--meta"),
        description=description,
    )
    draft.is_listed_now = True
    for path in paths:
        draft.add(path, include=include, exclude=exclude, symlinks=symlinks)
    with opened(context, make=True) as store, shown(quiet=quiet or as_json):
        logged = store.log_artifact(
            draft,
            bump=bump,
            if_unchanged=if_unchanged,
            expect=expected(store, name, expect),
            portable=portable,
            stat_cache=not no_stat_cache,
            run=surrounding_run(store),
        )
        facts = _logged_facts(store, logged)
    if as_json:
        say_json(facts)
    else:
        say(logged_text(logged))


def logged_text(version: Version) -> str:
    """`digits:v3 is new: 12 files, 3.4 MB (1.2 MB new, 2.2 MB shared)`."""
    if not version.is_new:
        return f"{version.ref} is unchanged: {_size_of(version)}, no new version"
    return f"{version.ref} is new: {_size_of(version)} ({new_and_shared(version)})"


def get(
    context: typer.Context,
    ref: Ref,
    dest: Annotated[
        Path | None,
        typer.Argument(
            metavar="DEST", help="A folder; by default NAME-vN here.", show_default=False
        ),
    ] = None,
    overwrite: Annotated[
        Literal["fail", "preserve", "overwrite"],
        typer.Option(help="What to do with files that are there with other content."),
    ] = "fail",
    include: Globs = None,
    remote: Annotated[
        bool, flag("--remote", help="Fetch remote assets too; they must be as pinned.")
    ] = False,
    link: Annotated[
        Literal["hard"] | None,
        typer.Option(
            help="Large files that lie as they are in the store, on the same disk, become read-only hard links: "
            "no room, and no place to write to. The others are copied."
        ),
    ] = None,
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write the files of a version into a folder.

    Each is verified. A reference with a path gets one file. Inside 'begat run' the run is recorded as the version's
    consumer, and a reference means the same version however often it is asked for.

    Examples:
      begat get digits:v3
      begat get digits:best data/ --include '*.csv'
      begat get begat://digits:v3/train.csv train.csv
    """
    from begat.reference import parse_reference

    asked = parse_reference(ref)
    if asked.path is not None and include:
        raise Misuse("a reference to one file leaves nothing to --include")
    with opened(context) as store, shown(quiet=quiet or as_json):
        whole = ref if asked.path is None else str(replace(asked, path=None))
        version, run = _resolved(store, whole)
        if asked.path is None:
            path = version.download(
                dest, overwrite=overwrite, include=include, remote=remote, link=link
            )
            text = f"{version.ref} -> {path}{os.sep} ({_chosen_of(version, include)})"
        else:
            path = _get_file(
                version, asked.path, dest, overwrite=overwrite, remote=remote, link=link
            )
            text = f"{version.ref}/{asked.path} -> {path}"
        facts = {
            "ref": version.ref,
            "path": str(path),
            "digest": version.digest,
            "used_by": run.id if run else None,
        }
    if as_json:
        say_json(facts)
    else:
        say(text + (f", used by the run {run.name}" if run else ""))


def _resolved(store: Store, ref: str) -> tuple[Version, Run | None]:
    """The version to get, and the run that is now recorded as its consumer."""
    run = surrounding_run(store)
    return (store.get_artifact(ref), None) if run is None else (run.use_artifact(ref), run)


def _get_file(
    version: Version,
    path: str,
    dest: Path | None,
    *,
    overwrite: Literal["fail", "preserve", "overwrite"],
    remote: bool,
    link: Literal["hard"] | None,
) -> Path:
    """Write one file of a version to a place, or into a folder that is there; where it is then."""
    entry = _file_entry(version, path)
    name = path.rpartition("/")[2]
    target = Path(name) if dest is None else dest / name if dest.is_dir() else dest
    if entry.kind == "remote" and not remote:
        raise BadPath(f"{path!r} of {version.ref} is a remote asset; --remote fetches it")
    moved = replace(entry, path=target.name)
    version.write([moved], target.parent, overwrite=overwrite, remote=remote, link=link)
    return target


def _file_entry(version: Version, path: str) -> Entry:
    found = version.below(path.rstrip("/"))
    for entry in found:
        if entry.path == path and entry.kind in ("file", "remote"):
            return entry
    if any(entry.path != path for entry in found):
        raise BadPath(
            f"{path!r} is not a file of {version.ref} but a folder; get it with "
            f"--include {shlex.quote(path.rstrip('/') + '/**')}. Nothing was written"
        )
    raise BadPath(
        f"{path!r} is not a file of {version.ref}; begat ls {version.ref} lists its files. Nothing was written"
    )


def _logged_facts(store: Store, version: Version) -> dict[str, Any]:
    record = store.catalog.versions.get(version.uid)
    return {**version_facts(record), "is_new": version.is_new}


def _chosen_of(version: Version, include: list[str] | None) -> str:
    """How much of a version was written: `3 files of 12, 1.2 MB`."""
    if not include:
        return _size_of(version)
    sizes = {one.path: one.size_bytes or 0 for glob in include for one in version.files(glob)}
    return (
        f"{len(sizes):,} of {counted(version.file_count, 'file')}, {size_text(sum(sizes.values()))}"
    )


def _size_of(version: Version) -> str:
    return f"{counted(version.file_count, 'file')}, {size_text(version.size_bytes)}"
