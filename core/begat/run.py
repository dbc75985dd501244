"""One execution: what it used, what it made, and how it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import Token
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal, Protocol, TypeAlias

from begat import active, listeners
from begat.artifact import Artifact
from begat.config import without_secrets
from begat.errors import BegatError, Refused, RunFinished, warn
from begat.listing import SymlinkPolicy
from begat.metadata import check_metadata
from begat.model import Edge, Expect, Json, RunRecord, RunStatus, VersionRecord
from begat.process import is_process_alive
from begat.reference import Bump, check_tag, parse_version_reference
from begat.version import Home, Version

if TYPE_CHECKING:
    from begat.ignore import Globs

# After this long without a heartbeat, a run of another host is shown as lost.
LOST_AFTER_US = 600 * 1_000_000
MAX_ERROR_TEXT = 2_000

Content: TypeAlias = str | os.PathLike[str] | bytes | IO[bytes]


class RunHome(Home, Protocol):
    """What a run asks of its store, beside what versions ask."""

    def log_artifact(
        self,
        artifact_or_name: Artifact | str,
        path: Content | None = None,
        *,
        type: str | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        metadata: Mapping[str, Json] | None = None,
        description: str | None = None,
        if_unchanged: Literal["reuse", "new"] = "reuse",
        expect: Expect | str = Expect.ANY,
        include: Globs | None = None,
        exclude: Globs | None = None,
        symlinks: SymlinkPolicy = "keep",
        portable: bool = False,
        stat_cache: bool = True,
        run: Run | None = None,
    ) -> Version: ...

    def version_of(self, record: VersionRecord) -> Version: ...


class Run:
    """One execution; made by `begat.start_run`, or read back with `store.get_run`.

    As a context manager it ends with the block: finished, failed (an exception, or `sys.exit` with another code than
    0), or interrupted (Ctrl-C). Without one, call `finish`; a run that is still open when Python exits is ended then:
    as failed after an uncaught exception, else as finished, since Python tells no exit handler the code of `sys.exit`.
    """

    def __init__(self, home: RunHome, record: RunRecord, *, is_owner: bool = False) -> None:
        self._home = home
        self._record = record
        self._is_owner = is_owner
        self._token: Token[Run | None] | None = None
        self._before_end: list[Callable[[], None]] = []
        self._pid = os.getpid()

    # --- what it is ---

    @property
    def id(self) -> str:
        """Its id: the same in every copy of the store."""
        return self._record.uid

    @property
    def name(self) -> str:
        """Its name, given or made up from job and id."""
        return self._record.name

    @property
    def job(self) -> str | None:
        """What kind of work it does; runs of one job are comparable."""
        return self._record.job

    @property
    def status(self) -> RunStatus:
        """running, finished, failed, interrupted, or lost (it never ended, and its process is gone)."""
        return status_of(self._now(), self._home.catalog.now())

    @property
    def started_at(self) -> int:
        """Microseconds since 1970 UTC, by the catalog's clock."""
        return self._record.started_at

    @property
    def ended_at(self) -> int | None:
        """Microseconds since 1970 UTC, or None while it has not ended."""
        return self._now().ended_at

    @property
    def params(self) -> Mapping[str, Json]:
        """What it was given: parameters by name."""
        return self._now().params

    @property
    def metrics(self) -> Mapping[str, Json]:
        """What came out: summary values by name."""
        return self._now().metrics

    @property
    def tags(self) -> tuple[str, ...]:
        """Its tags, sorted."""
        return self._now().tags

    @property
    def git(self) -> Mapping[str, Json]:
        """The commit it ran from, and what differed from it: `commit`, `branch`, `is_dirty`, `diff`; or empty."""
        return self._record.git

    @property
    def command(self) -> Mapping[str, Json]:
        """How it was started: `argv` (secrets masked), `cwd`."""
        return self._record.command

    @property
    def environment(self) -> Mapping[str, Json]:
        """`python`, `implementation`, `platform`, `machine`, `cpu_count`, `packages` {name: version}."""
        return self._record.environment

    @property
    def host(self) -> str:
        """The machine, or container, that it runs on."""
        return self._record.host

    @property
    def user(self) -> str:
        """The name of the user that it runs as."""
        return self._record.user

    @property
    def error(self) -> Mapping[str, Json] | None:
        """`type` and `message` of the exception that ended it, or None."""
        return self._now().error

    @property
    def parent(self) -> Run | None:
        """The run that it is part of, or None."""
        uid = self._record.parent_uid
        return None if uid is None else self._home.get_run(uid)

    @property
    def inputs(self) -> tuple[Version, ...]:
        """The versions it used, in order of first use."""
        return self._versions("used")

    @property
    def outputs(self) -> tuple[Version, ...]:
        """The versions it made, in order."""
        return self._versions("made")

    @property
    def edges(self) -> tuple[Edge, ...]:
        """All it used, made and confirmed, in order, with the text that was asked for."""
        return tuple(self._home.catalog.runs.edges_of_run(self.id))

    @property
    def is_owner(self) -> bool:
        """True if this object was made when the run was started, and not read back or joined."""
        return self._is_owner

    @property
    def is_of_this_process(self) -> bool:
        """True if this object was made in this process, and not before a fork."""
        return self._pid == os.getpid()

    # --- what it does ---

    def use_artifact(
        self, ref: str | Version, *, role: str | None = None, refresh: bool = False
    ) -> Version:
        """The version that a reference means; the run is recorded as its consumer, now.

        Within a run a reference means one version, however often it is asked for: the first answer is kept, also for
        processes that join the run, until `refresh=True` or until the run logs a newer version itself.

        Raises `BadReference`, `ArtifactNotFound`, `VersionNotFound`, `BytesRetired`, `RunFinished`.
        """
        catalog = self._home.catalog
        if isinstance(ref, Version):
            # By its id: what is called `digits:v3` in another store is another version.
            typed = text = ref.ref
            record = catalog.versions.get(ref.uid)
        else:
            asked, typed = parse_version_reference(ref), ref
            # `digits` and `digits:latest` are one question; the edge keeps what was typed.
            text = str(asked)
            known = None if refresh else catalog.runs.pinned(self.id, text)
            record = (
                catalog.versions.resolve(asked) if known is None else catalog.versions.get(known)
            )
        catalog.runs.use(self.id, record.uid, requested=typed, role=role, pin=text)
        listeners.tell_inputs_changed(self)
        return self._home.version_of(record)

    def log_artifact(
        self,
        artifact_or_name: Artifact | str,
        path: Content | None = None,
        *,
        type: str | None = None,
        version: str | None = None,
        bump: Bump | None = None,
        aliases: Iterable[str] = (),
        tags: Iterable[str] = (),
        metadata: Mapping[str, Json] | None = None,
        description: str | None = None,
        if_unchanged: Literal["reuse", "new"] = "reuse",
        expect: Expect | str = Expect.ANY,
        include: Globs | None = None,
        exclude: Globs | None = None,
        symlinks: SymlinkPolicy = "keep",
        portable: bool = False,
        stat_cache: bool = True,
    ) -> Version:
        """Store files as the next version, made by this run; returns when it is durable.

        `path` is a file, a folder (its contents), bytes or an open binary file; or give an `Artifact` alone. Content
        and metadata equal to the latest version make no new one: `is_new` is False, and the run has confirmed it
        (`if_unchanged="new"` makes one all the same). `version` is a SemVer label, `bump` the next one of that kind.
        With `expect` nothing is stored unless the latest version is that one (`"v3"`), or there is none (`ABSENT`): of
        two who change one version at the same time, the second is told with `AliasMoved` and can look again.
        A file of a folder that looks as it did when it was last read (size, times, inode) is not read again;
        `stat_cache=False` reads all files.

        Raises `BadName`, `BadPath`, `BadMetadata`, `UnsupportedFile`, `SourceChanged`, `VersionExists`,
        `TypeMismatch`, `RunFinished`, `StoreFull`, `ReadOnly`.
        """
        return self._home.log_artifact(
            artifact_or_name,
            path,
            type=type,
            version=version,
            bump=bump,
            aliases=aliases,
            tags=tags,
            metadata=metadata,
            description=description,
            if_unchanged=if_unchanged,
            expect=expect,
            include=include,
            exclude=exclude,
            symlinks=symlinks,
            portable=portable,
            stat_cache=stat_cache,
            run=self,
        )

    def log_params(self, params: Mapping[str, Json]) -> None:
        """Record parameters; a name given again takes the new value.

        Raises `RunFinished` when the run is over: what it was given does not change any more. `BadMetadata`.
        """
        checked = check_metadata(params, what="params")
        status = self._now().status
        if status != "running":
            raise RunFinished(
                f"the run {self.name} is over ({status}), so its params stay as they are. Nothing was stored; what is "
                "found out later goes to log_metrics"
            )
        self._record = self._home.catalog.runs.update(self.id, params=checked)

    def log_metrics(self, metrics: Mapping[str, Json]) -> None:
        """Record summary values; a name given again takes the new value. No curves: one value each.

        Also after the run has ended: a model is often evaluated later. Raises `BadMetadata`.
        """
        self._record = self._home.catalog.runs.update(
            self.id, metrics=check_metadata(metrics, what="metrics")
        )

    def set_tags(self, *tags: str) -> None:
        """Add tags to the run, also after it has ended. Raises `BadName`."""
        checked = [check_tag(tag) for tag in tags]
        self._home.catalog.labels.add_tags("run", self.id, checked, by=self._home.user)

    def finish(self, status: RunStatus = "finished", *, error: BaseException | None = None) -> None:
        """End the run; a second call changes nothing. In a process that joined the run, only its own part ends."""
        if status not in ("finished", "failed", "interrupted"):
            raise TypeError(f"a run ends as 'finished', 'failed' or 'interrupted', not {status!r}")
        acts, self._before_end = self._before_end, []
        try:
            for act in acts if self._pid == os.getpid() else ():
                act()
        finally:
            self._end(status, error)

    def before_end(self, act: Callable[[], None]) -> None:
        """Have something done when the run is about to end and can still make versions; for begat's own parts."""
        self._before_end.append(act)

    @property
    def home(self) -> RunHome:
        """The store that it is in; for begat's own parts."""
        return self._home

    def _end(self, status: RunStatus, error: BaseException | None) -> None:
        active.closed(self)
        if self._is_owner and self.is_of_this_process:
            told = None if error is None else _error_facts(error)
            self._record = self._home.catalog.runs.finish(self.id, status, error=told)

    def __enter__(self) -> Run:
        if self._token is None:
            self._token = active.enter(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        token, self._token = self._token, None
        if token is not None:
            active.leave(token)
        status, told = active.outcome(error)
        try:
            self.finish(status, error=told)
        except BegatError as failure:
            if error is None:
                raise
            # The exception of the user's own code says more than ours.
            warn(f"the run {self.name} could not be ended: {failure}")

    def heartbeat(self) -> None:
        """Say that the run goes on, for those who cannot see its process."""
        self._home.catalog.runs.heartbeat(self.id)

    # --- inside ---

    @property
    def record(self) -> RunRecord:
        """The facts as they were when last read."""
        return self._record

    def _now(self) -> RunRecord:
        self._record = self._home.catalog.runs.get(self.id)
        return self._record

    def _versions(self, kind: str) -> tuple[Version, ...]:
        edges = self._home.catalog.runs.edges_of_run(self.id)
        uids = dict.fromkeys(edge.version_uid for edge in edges if edge.kind == kind)
        records = self._home.catalog.versions.get_many(uids)
        return tuple(self._home.version_of(records[uid]) for uid in uids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<begat.Run {self.name!r} {self._record.status}, id {self.id}>"

    def _repr_html_(self) -> str:
        from html import escape

        rows = {
            "id": self.id,
            "job": self.job or "",
            "status": self.status,
            "used": ", ".join(version.ref for version in self.inputs),
            "made": ", ".join(version.ref for version in self.outputs),
            "params": ", ".join(f"{key}={value!r}" for key, value in self.params.items()),
            "metrics": ", ".join(f"{key}={value!r}" for key, value in self.metrics.items()),
        }
        body = "".join(
            f"<tr><th>{key}</th><td>{escape(value)}</td></tr>"
            for key, value in rows.items()
            if value
        )
        return f"<table><caption>run {escape(self.name)}</caption>{body}</table>"


class SpectatorRun(Run):
    """The run of a process that is one of many and not the one that records (a rank other than 0).

    It reads like any run, and records nothing. It refuses to make versions, since there is none that it could return:
    in a script that every rank runs, log on rank 0 only (`if rank == 0: run.log_artifact(...)`).
    """

    def __init__(self, home: RunHome, record: RunRecord) -> None:
        super().__init__(home, record)
        self._meant: dict[str, str] = {}  # reference -> uid, as the catalog keeps it for other runs

    def use_artifact(
        self, ref: str | Version, *, role: str | None = None, refresh: bool = False
    ) -> Version:
        """The version that a reference means, here the same until `refresh=True`; rank 0 records its use."""
        versions = self._home.catalog.versions
        # By its id: what is called `digits:v3` in another store is another version.
        text = versions.get(ref.uid).ref if isinstance(ref, Version) else ref
        asked = parse_version_reference(text)
        known = None if refresh else self._meant.get(str(asked))
        record = versions.resolve(asked) if known is None else versions.get(known)
        self._meant[str(asked)] = record.uid
        return self._home.version_of(record)

    def log_artifact(self, *args: object, **kwargs: object) -> Version:
        """Raises `Refused`: only rank 0 makes versions. Guard the call: `if rank == 0: run.log_artifact(...)`."""
        raise Refused(
            "this process is not rank 0 and makes no versions; nothing was stored. Log on rank 0 only: "
            "if rank == 0: run.log_artifact(...)"
        )

    def log_params(self, params: Mapping[str, Json]) -> None:
        """Nothing: rank 0 records."""

    def log_metrics(self, metrics: Mapping[str, Json]) -> None:
        """Nothing: rank 0 records."""

    def set_tags(self, *tags: str) -> None:
        """Nothing: rank 0 records."""

    def finish(self, status: RunStatus = "finished", *, error: BaseException | None = None) -> None:
        """Nothing: rank 0 records."""
        active.closed(self)

    def _now(self) -> RunRecord:
        return self._record


def status_of(record: RunRecord, now_us: int) -> RunStatus:
    """A run's status as it is shown: `lost` if it never ended and its process is gone."""
    if record.status != "running":
        return record.status
    is_alive = is_process_alive(
        record.host, record.pid, process_started=record.process_started, boot_id=record.boot_id
    )
    if is_alive is None:  # of another host
        is_alive = now_us - record.heartbeat_at < LOST_AFTER_US
    return "running" if is_alive else "lost"


def _error_facts(error: BaseException) -> dict[str, Json]:
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    text = without_secrets(str(error)).encode("utf-8", "replace").decode().replace("\x00", "")
    return {"type": name, "message": text[:MAX_ERROR_TEXT]}
