"""`begat runs`, and how a run is shown wherever it is."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from begat.cli.opened import opened
from begat.cli.options import JsonFlag
from begat.cli.output import moment, note, say_facts, say_json, say_table, short_json
from begat.facts import DATA_KEY, data_texts, edge_facts, run_facts
from begat.wording import duration_text

if TYPE_CHECKING:
    from begat.model import RunStatus
    from begat.run import Run
    from begat.store import Store
    from begat.version import Version

# 48 bits of time in a UUIDv7: runs that began in different milliseconds differ in it.
SHORT_ID = len("01a1b2c3-d4e5")
MOST_RUNS = 20
MOST_REFS = 4


def runs(
    context: typer.Context,
    job: Annotated[str | None, typer.Option(help="Only runs of this job.")] = None,
    status: Annotated[
        Literal["running", "finished", "failed", "interrupted", "lost"] | None,
        typer.Option(help="Only runs with this status."),
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="At most so many (default: 20, with --json all).", show_default=False
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the runs, the newest first.

    Examples:
      begat runs --job train-digits
      begat runs --status failed --limit 5
    """
    most = limit if limit is not None or as_json else MOST_RUNS + 1
    with opened(context) as store:
        found = _runs_with(store, job, status, tag, most)
        if as_json:
            say_json([run_summary(run) for run in found])
            return
        shown = found if limit is not None else found[:MOST_RUNS]
        ids = [run.id[:SHORT_ID] for run in shown]
        rows = [
            (
                run.id if ids.count(short) > 1 else short,
                run.name,
                run.job or "",
                _state_of(run),
                moment(run.started_at),
                _some_of(run.inputs),
                _some_of(run.outputs),
                ", ".join(run.tags),
            )
            for run, short in zip(shown, ids, strict=True)
        ]
    say_table(("ID", "NAME", "JOB", "STATUS", "STARTED", "USED", "MADE", "TAGS"), rows)
    if len(found) > len(shown):
        note(f"(the newest {MOST_RUNS}; --limit shows more)")


def show_run(store: Store, run: Run, *, as_json: bool) -> None:
    """Everything about a run, as `begat show` prints it."""
    if as_json:
        edges = run.edges
        versions = store.catalog.versions.get_many([edge.version_uid for edge in edges])
        record = run.record
        more = {
            "command": dict(record.command),
            "environment": dict(record.environment),
            "edges": [edge_facts(edge, versions[edge.version_uid]) for edge in edges],
        }
        say_json({**run_summary(run), **more})
        return
    say_facts(f"run {run.name}", _told_of_run(store, run))


def _told_of_run(store: Store, run: Run) -> Iterator[tuple[str, str]]:
    record, parent = run.record, run.parent
    command, git = record.command, record.git
    yield "id", run.id
    yield "job", run.job or ""
    yield "status", _state_of(run)
    if record.error:
        yield "error", f"{record.error.get('type')}: {record.error.get('message')}"
    yield "started", moment(run.started_at)
    yield "by", f"{record.user} on {record.host}"
    yield "command", shlex.join(str(word) for word in command.get("argv") or ())
    yield "folder", str(command.get("cwd") or "")
    if git.get("commit"):
        yield "git", f"{git['commit']}{' with changes' if git.get('is_dirty') else ''}"
    yield "tags", ", ".join(run.tags)
    yield "part of", run_text(parent) if parent else ""
    for key, value in run.params.items():
        told = data_texts(value) if key == DATA_KEY else ()
        yield from (("data", text) for text in told)
        if not told:
            yield "params", f"{key}: {short_json(value)}"
    for key, value in run.metrics.items():
        yield "metrics", f"{key}: {short_json(value)}"
    versions = store.catalog.versions.get_many([edge.version_uid for edge in run.edges])
    for edge in run.edges:
        ref = versions[edge.version_uid].ref
        asked = f" (asked for as {edge.requested})" if edge.requested not in (None, ref) else ""
        found = " (detected, not declared)" if not edge.is_declared else ""
        yield edge.kind, ref + asked + (f", as {edge.role}" if edge.role else "") + found
        yield "mismatch", edge.mismatch or ""


def _runs_with(
    store: Store, job: str | None, status: RunStatus | None, tag: str | None, most: int | None
) -> list[Run]:
    """Runs by status as it is shown: for the catalog a lost run is still running."""
    if status not in ("running", "lost"):
        return store.runs(job=job, status=status, tag=tag, limit=most)
    waiting = [*store.runs(job=job, status="running", tag=tag)]
    if status == "lost":
        waiting += store.runs(job=job, status="lost", tag=tag)
        waiting.sort(key=lambda run: (run.started_at, run.id), reverse=True)
    return [run for run in waiting if run.status == status][:most]


def run_summary(run: Run) -> dict[str, Any]:
    """What JSON says of a run in a list: `run_facts`, how it ended, and the versions it used and made."""
    facts = {
        **run_facts(run.record),
        "status": run.status,
        "error": dict(run.record.error) if run.record.error else None,
        "inputs": [version.ref for version in run.inputs],
        "outputs": [version.ref for version in run.outputs],
    }
    return facts


def _some_of(versions: Sequence[Version]) -> str:
    """The refs, or the first of them and how many more; `begat show RUN` has them all."""
    shown = len(versions) if len(versions) <= MOST_REFS else MOST_REFS - 1
    refs = ", ".join(version.ref for version in versions[:shown])
    return refs if shown == len(versions) else f"{refs} and {len(versions) - shown} more"


def _state_of(run: Run) -> str:
    """`finished, 2 s`, or only the status while the run goes on."""
    record = run.record
    if record.ended_at is None:
        return run.status
    return f"{record.status}, {duration_text(record.ended_at - record.started_at)}"


def run_text(run: Run) -> str:
    """`train-digits-0f89be (01a1b2c3-d4e5, finished)`."""
    return f"{run.name} ({run.id[:SHORT_ID]}, {run.status})"
