"""Start a run, or join the one that this process is part of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from begat.active import RUN_ID_VARIABLE, enclosing_run, open_runs, opened
from begat.environment import capture
from begat.errors import RunNotFound, warn
from begat.identity import new_uid
from begat.listeners import tell_started
from begat.metadata import check_metadata
from begat.model import Json, NewRun, RunRecord
from begat.process import host_name, rank_from_environment
from begat.reference import check_tag, parse_version_reference
from begat.run import Run, RunHome, SpectatorRun
from begat.version import Version


def start(
    home: RunHome,
    name: str | None,
    *,
    job: str | None,
    uses: Iterable[str | Version],
    params: Mapping[str, Json] | None,
    tags: Iterable[str],
    argv: Sequence[str] | None = None,
) -> Run:
    """A run that is open, with its inputs recorded; see `Store.start_run` for which one it is.

    `argv` is the command of another program that runs as this run; by default it is this process's own.
    """
    inputs = [uses] if isinstance(uses, str | Version) else list(uses)
    checked = check_metadata(params, what="params")
    labels = tuple(check_tag(tag) for tag in tags)
    run = _joined(home) or _spectator(home)
    if run is None:
        check_inputs(home, inputs)
        run = _new(home, name, job, params=checked, tags=labels, argv=argv)
    opened(run)
    if run.is_owner:
        tell_started(run)
    try:
        for ref in inputs:
            run.use_artifact(ref)
    except BaseException as error:
        run.finish("failed", error=error)
        raise
    return run


def check_inputs(home: RunHome, inputs: Iterable[str | Version]) -> None:
    """Raise what using any of these would raise; before there is a run, so that a typo leaves none that failed."""
    for each in inputs:
        if isinstance(each, Version):
            record = home.catalog.versions.get(each.uid)
        else:
            record = home.catalog.versions.resolve(parse_version_reference(each))
        home.version_of(record).check_bytes()


def _new(
    home: RunHome,
    name: str | None,
    job: str | None,
    *,
    params: Mapping[str, Json],
    tags: tuple[str, ...],
    argv: Sequence[str] | None,
) -> Run:
    parent = enclosing_run()
    for run in reversed(open_runs()) if parent is None else ():
        run.finish()  # first, since a warning may be made an error
        warn(f"the run {run.name} was still open; it is finished now")
    captured = capture(argv)
    uid = new_uid()
    record = home.catalog.runs.start(
        NewRun(
            uid=uid,
            name=name or f"{job or 'run'}-{uid[-6:]}",
            job=job,
            parent_uid=parent.id if parent else None,
            params=params,
            tags=tags,
            git=captured.git,
            command=captured.command,
            environment=captured.environment,
            host=captured.host,
            pid=captured.pid,
            process_started=captured.process_started,
            boot_id=captured.boot_id,
            user=captured.user,
        )
    )
    return Run(home, record, is_owner=True)


def _joined(home: RunHome) -> Run | None:
    """The run that this process is part of: named by its environment, or its parent's from before a fork."""
    uid = os.environ.get(RUN_ID_VARIABLE)
    if not uid or any(run.id == uid and run.is_of_this_process for run in open_runs()):
        return None
    try:
        return Run(home, home.catalog.runs.get(uid))
    except RunNotFound:
        warn(
            f"{RUN_ID_VARIABLE} names a run that is not in this store; a run of its own is started"
        )
        return None


def _spectator(home: RunHome) -> Run | None:
    """For a process that is one of many and not the first, where no run is known that it could join."""
    is_recording = any(not isinstance(run, SpectatorRun) for run in open_runs())
    if is_recording or not rank_from_environment():
        return None
    now = home.catalog.now()
    nothing: dict[str, Json] = {}
    record = RunRecord(
        uid="",
        name="spectator",
        job=None,
        status="running",
        parent_uid=None,
        started_at=now,
        ended_at=None,
        heartbeat_at=now,
        params=nothing,
        metrics=nothing,
        tags=(),
        git=nothing,
        command=nothing,
        environment=nothing,
        error=None,
        host=host_name(),
        pid=os.getpid(),
        process_started="",
        user=home.user,
    )
    return SpectatorRun(home, record)
