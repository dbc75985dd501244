"""`begat ls`, `show`, `history`, `diff`: look at what is in the store; nothing is recorded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict, replace

from begat.cli.completion import offer_references
from begat.cli.opened import opened
from begat.cli.options import JsonFlag, Misuse, Name, Ref, RefOrRun
from begat.cli.output import (
    BYTES,
    bytes_cells,
    moment,
    new_and_shared,
    note,
    say,
    say_facts,
    say_json,
    say_table,
    short_json,
)
from begat.cli.runs import run_text, show_run
from begat.errors import ArtifactNotFound, BadInput, BadPath, RunNotFound
from begat.facts import version_facts
from begat.wording import printable, size_text

if TYPE_CHECKING:
    from begat.model import Entry, VersionRecord
    from begat.run import Run
    from begat.store import Store
    from begat.version import Version

SHORT_DIGEST = len("b3:") + 12


def ls(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|REF",
            help="An artifact, for its versions; a version such as digits:v3, for its files.",
            autocompletion=offer_references,
            show_default=False,
        ),
    ] = None,
    type: Annotated[str | None, typer.Option(help="Only artifacts of this type.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only artifacts with this tag.")] = None,
    query: Annotated[
        str | None, typer.Option(help="Only artifacts with this in name or description.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List artifacts, the versions of one, or the files of a version.

    Examples:
      begat ls --type model
      begat ls digits
      begat ls digits:v3
    """
    from begat.reference import parse_reference

    if what is not None and (type or tag or query):
        raise Misuse("--type, --tag and --query choose among artifacts; leave out NAME|REF")
    with opened(context) as store:
        if what is None:
            _list_artifacts(store, type, tag, query, as_json=as_json)
            return
        asked = parse_reference(what)
        is_version = asked.kind != "latest" or asked.path or what.endswith(":latest")
        if is_version:
            version = store.get_artifact(str(replace(asked, path=None)))
            _list_entries(_entries_below(version, asked.path), as_json=as_json)
        else:
            _list_versions(store, asked.name, as_json=as_json)


def show(context: typer.Context, what: RefOrRun, as_json: JsonFlag = False) -> None:
    """Show everything about a version or a run.

    Examples:
      begat show digits-model:best
      begat show train-digits-0f89be
      begat show 0192f1c2-5a3b
    """
    from begat.run import Run

    with opened(context) as store:
        found = version_or_run(store, what)
        if isinstance(found, Run):
            show_run(store, found, as_json=as_json)
        else:
            _show_version(store, found, as_json=as_json)


def history(
    context: typer.Context,
    name: Name,
    alias: Annotated[
        str | None, typer.Option(help="The moves of this alias instead of the versions.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List all versions of an artifact, or the moves of an alias.

    Deleted versions are listed too: their place in the lineage stays.

    Examples:
      begat history digits
      begat history digits-model --alias best
    """
    with opened(context) as store:
        if alias is not None:
            _list_moves(store, name, alias, as_json=as_json)
            return
        store.catalog.versions.artifact(name)
        records = store.catalog.versions.list(name, with_deleted=True)
        if as_json:
            say_json([version_facts(record) for record in records])
            return
        runs = {uid: store.get_run(uid) for uid in {r.run_uid for r in records if r.run_uid}}
        rows = [
            (
                record.ref,
                moment(record.created_at),
                runs[record.run_uid].name if record.run_uid else "",
                runs[record.run_uid].record.user if record.run_uid else "",
                f"{record.file_count:,}",
                *bytes_cells(record),
                _labels(record),
                _unusual_state(record),
                record.description or "",
            )
            for record in records
        ]
    headings = ("VERSION", "CREATED", "RUN", "BY", "FILES", *BYTES)
    say_table((*headings, "LABELS", "STATE", "DESCRIPTION"), rows, right=("FILES", *BYTES))


def diff(
    context: typer.Context,
    old: Ref,
    new: Ref,
    as_json: JsonFlag = False,
) -> None:
    """Show which files differ between two versions.

    What stands before a path: + added, - removed, ~ changed, > renamed.

    Examples:
      begat diff digits:v2 digits:v3
      begat diff digits-model:best digits-model --json
    """
    with opened(context) as store:
        found = store.get_artifact(old).diff(store.get_artifact(new))
    if as_json:
        say_json({**found.to_dict(), "is_empty": found.is_empty})
        return
    lines = [("+", entry.path, _entry_size(entry)) for entry in found.added]
    lines += [("-", entry.path, _entry_size(entry)) for entry in found.removed]
    lines += [
        ("~", now.path, f"{_entry_size(before)} -> {_entry_size(now)}")
        for before, now in found.changed
    ]
    lines += [(">", f"{before.path} -> {now.path}", "") for before, now in found.renamed]
    for mark, path, size in lines:
        say(f"{mark} {printable(path)}" + (f"  ({size})" if size else ""))
    say(found.summary())


def version_or_run(store: Store, what: str) -> Version | Run:
    """What `digits:v3`, or a run's id or name means; also a version that was deleted, by number or digest."""
    from begat.reference import parse_version_reference

    try:
        asked = parse_version_reference(what)
        return store.version_of(store.catalog.versions.resolve(asked, with_deleted=True))
    except (BadInput, LookupError) as error:
        # A run reads like the name of an artifact; of two messages, the one about the reference says more.
        try:
            return store.get_run(what)
        except RunNotFound:
            pass
        if isinstance(error, ArtifactNotFound):
            raise ArtifactNotFound(
                f"{error.message}. No run is called so either (begat runs)"
            ) from None
        raise


# --- ls ---


def _list_artifacts(
    store: Store, type: str | None, tag: str | None, query: str | None, *, as_json: bool
) -> None:
    found = store.artifacts(type=type, tag=tag, query=query)
    if as_json:
        say_json([asdict(record) for record in found])
        return
    rows = [
        (
            record.name,
            record.type,
            f"v{record.latest_number}" if record.latest_number else "",
            f"{record.version_count:,}",
            *bytes_cells(record),
            ", ".join(record.tags),
            record.description or "",
        )
        for record in found
    ]
    say_table(
        ("NAME", "TYPE", "LATEST", "VERSIONS", *BYTES, "TAGS", "DESCRIPTION"),
        rows,
        right=("VERSIONS", *BYTES),
    )
    if not found:
        note(
            "no artifact fits"
            if type or tag or query
            else "the store is empty (begat log NAME PATH)"
        )


def _list_versions(store: Store, name: str, *, as_json: bool) -> None:
    store.catalog.versions.artifact(name)  # or an error that names the nearest
    records = store.catalog.versions.list(name)
    if as_json:
        say_json([version_facts(record) for record in records])
        return
    rows = [
        (
            record.ref,
            _labels(record),
            f"{record.file_count:,}",
            *bytes_cells(record),
            moment(record.created_at),
            ", ".join(record.tags),
            _unusual_state(record),
        )
        for record in records
    ]
    say_table(
        ("VERSION", "LABELS", "FILES", *BYTES, "CREATED", "TAGS", "STATE"),
        rows,
        right=("FILES", *BYTES),
    )


def _entries_below(version: Version, path: str | None) -> Sequence[Entry]:
    entries = version.entries if path is None else version.below(path)
    if not entries and path is not None:
        raise BadPath(
            f"{path!r} is not in {version.ref}; begat ls {version.ref} lists what is there"
        )
    return entries


def _list_entries(entries: Iterable[Entry], *, as_json: bool) -> None:
    if as_json:
        say_json([{"kind": entry.kind, **asdict(entry)} for entry in entries])
        return
    say_table(("KIND", "SIZE", "DIGEST", "PATH"), map(_entry_row, entries), right=("SIZE",))


def _entry_row(entry: Entry) -> tuple[str, str, str, str]:
    from begat.model import EmptyDirectory, StoredFile, Symlink

    size = _entry_size(entry)
    if isinstance(entry, StoredFile):
        kind = "program" if entry.is_executable else "file"
        return kind, size, entry.digest[:SHORT_DIGEST], entry.path
    if isinstance(entry, Symlink):
        return "link", "", "", f"{entry.path} -> {entry.target}"
    if isinstance(entry, EmptyDirectory):
        return "folder", "", "", f"{entry.path}/"
    return "remote", size, (entry.pin or "")[:SHORT_DIGEST], f"{entry.path} <- {entry.uri}"


def _entry_size(entry: Entry) -> str:
    return "" if entry.size_bytes is None else size_text(entry.size_bytes)


def _labels(record: VersionRecord) -> str:
    """Aliases, `latest` and the SemVer label: all that can stand after the colon."""
    labels = [*record.aliases, *(("latest",) if record.is_latest else ())]
    return ", ".join([*labels, record.version] if record.version else labels)


def _unusual_state(record: VersionRecord) -> str:
    return "" if record.state == "live" else record.state


# --- history ---


def _list_moves(store: Store, name: str, alias: str, *, as_json: bool) -> None:
    moves = store.alias_history(name, alias)
    if as_json:
        say_json([asdict(move) for move in moves])
        return
    rows = [
        (
            moment(move.at),
            f"v{move.from_number}" if move.from_number else "-",
            f"v{move.to_number}" if move.to_number else "-",
            move.by,
            store.get_run(move.run_uid).name if move.run_uid else "",
        )
        for move in moves
    ]
    say_table(("MOVED", "FROM", "TO", "BY", "RUN"), rows)
    if not moves:
        note(f"{name} never had the alias {alias}")


# --- show ---


def _show_version(store: Store, version: Version, *, as_json: bool) -> None:
    record = store.catalog.versions.get(version.uid)
    maker, consumers, confirmers = version.produced_by, version.consumed_by, version.confirmed_by
    if as_json:
        more = {
            "consumed_by": [run.id for run in consumers],
            "confirmed_by": [run.id for run in confirmers],
        }
        say_json({**version_facts(record), **more})
        return
    facts = [
        ("type", record.type),
        ("labels", _labels(record)),
        ("tags", ", ".join(record.tags)),
        ("description", record.description or ""),
        ("state", _unusual_state(record)),
        ("created", moment(record.created_at)),
        ("files", f"{record.file_count:,}"),
        ("bytes", f"{size_text(record.size_bytes)} logical, {new_and_shared(record)}"),
        ("digest", record.digest),
        *(("metadata", f"{key}: {short_json(value)}") for key, value in record.metadata.items()),
        ("made by", run_text(maker) if maker else ""),
        *(("confirmed by", run_text(run)) for run in confirmers),
        *(("used by", run_text(run)) for run in consumers),
    ]
    say_facts(record.ref, facts)
