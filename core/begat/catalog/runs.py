"""Runs, what they used and made, and the lineage that follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Literal

from msgspec import structs
from sqlalchemy import Connection, and_, or_, select

from begat.catalog.changes import Change, locked_version, next_position, put_tags
from begat.catalog.commits import check_running
from begat.catalog.engine import Engine
from begat.catalog.rows import (
    EDGES,
    RUNS,
    edge_record,
    edge_row,
    fetch_run,
    fetch_runs,
    fetch_versions,
    is_given,
    json_text,
    run_record,
)
from begat.catalog.statements import Prepared, insert, insert_many
from begat.catalog.states import with_bytes
from begat.catalog.walks import Found, Way, add_confirmed, reached, walk
from begat.errors import AmbiguousReference, BadReference, RunNotFound
from begat.model import Edge, Json, NewRun, RunRecord, RunStatus, VersionRecord
from begat.reference import parse_reference
from begat.tables import edges, ref_pins, runs, tags

_MAX_SUGGESTIONS = 3

_USES = Prepared(
    EDGES.where(
        is_given(edges.c.run_uid, "run"),
        is_given(edges.c.version_uid, "version"),
        edges.c.kind == "used",
    ).order_by(edges.c.position)
)
_MADE_AT = Prepared(
    select(edges.c.position).where(
        is_given(edges.c.run_uid, "run"),
        is_given(edges.c.version_uid, "version"),
        edges.c.kind == "made",
    )
)
_USED = Prepared(
    EDGES.where(is_given(edges.c.run_uid, "run"), edges.c.kind == "used").order_by(edges.c.position)
)
_PINNED = Prepared(
    select(ref_pins.c.version_uid).where(
        is_given(ref_pins.c.run_uid, "run"), is_given(ref_pins.c.reference, "reference")
    )
)


class Runs:
    """What the catalog knows of runs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- the life of a run ---

    def start(self, new: NewRun) -> RunRecord:
        """Record a run; starting one with the same uid again gives the record of the first time."""
        with self._engine.write("starting a run") as connection:
            now = self._engine.now()
            started_at = now if new.started_at is None else new.started_at
            row = (
                *(new.uid, new.name, new.job, new.status, new.parent_uid, started_at, new.ended_at),
                *(new.ended_at or now, json_text(new.params), json_text(new.metrics)),
                *(json_text(new.git), json_text(new.command), json_text(new.environment)),
                *(None if new.error is None else json_text(new.error), new.host, new.pid),
                *(new.process_started, new.boot_id, new.user, None, None),
            )
            if insert_many(connection, runs, [row]):
                change = Change(connection, now, new.user, new.uid)
                put_tags(change, "run", new.uid, labels=new.tags)
                change.note("run-started", new.uid, {"name": new.name, "job": new.job})
            return _existing(connection, new.uid)

    def update(
        self,
        uid: str,
        *,
        params: Mapping[str, Json] | None = None,
        metrics: Mapping[str, Json] | None = None,
        name: str | None = None,
    ) -> RunRecord:
        """Add params and metrics to a run (a key that is given again gets the new value), or rename it."""
        with self._engine.write("updating a run") as connection:
            run = _existing(connection, uid)
            values: dict[str, Any] = {} if name is None else {"name": name}
            if params:
                values["params"] = json_text({**run.params, **params})
            if metrics:
                values["metrics"] = json_text({**run.metrics, **metrics})
            if values:
                connection.execute(runs.update().where(runs.c.uid == uid).values(values))
            return _existing(connection, uid)

    def heartbeat(self, uid: str) -> None:
        """Note that the run's process is there, by the catalog's clock."""
        with self._engine.write("noting that a run goes on") as connection:
            connection.execute(
                runs.update()
                .where(runs.c.uid == uid, runs.c.status == "running")
                .values(heartbeat_at=self._engine.now())
            )

    def finish(
        self, uid: str, status: RunStatus, *, error: Mapping[str, Json] | None = None
    ) -> RunRecord:
        """End a run; a run that has ended keeps its first ending. One that seemed lost may still tell how it ended."""
        with self._engine.write("finishing a run") as connection:
            run = _existing(connection, uid)
            if run.status in ("running", "lost"):
                now = self._engine.now()
                _end(connection, run, status, at=now, error=error)
                Change(connection, now, run.user, uid).note("run-ended", uid, {"status": status})
            return _existing(connection, uid)

    def mark_lost(self, uid: str) -> RunRecord:
        """Note that the process of a running run is gone; it ended when it was last heard of."""
        with self._engine.write("marking a run as lost") as connection:
            run = _existing(connection, uid)
            if run.status == "running":
                _end(connection, run, "lost", at=run.heartbeat_at, error=None)
                change = Change(connection, self._engine.now(), run.user, uid)
                change.note("run-ended", uid, {"status": "lost"})
            return _existing(connection, uid)

    # --- reading ---

    def get(self, uid: str) -> RunRecord:
        """The run with this id; else `RunNotFound`."""
        with self._engine.read() as connection:
            run = fetch_run(connection, uid)
        if run is None:
            raise RunNotFound(f"no run has the id {uid!r} (begat runs shows what there is)")
        return run

    def find(self, text: str) -> RunRecord:
        """The run that a user means: by its id, the beginning of its id, or its name.

        Raises `RunNotFound`, and `AmbiguousReference` naming the newest candidates.
        """
        # "g" comes after every character of an id.
        begins_so = and_(runs.c.uid >= text, runs.c.uid < text + "g")
        named = RUNS.where(or_(runs.c.name == text, begins_so)).order_by(runs.c.uid.desc())
        with self._engine.read() as connection:
            run = fetch_run(connection, text)
            if run is not None:
                return run
            found = [run_record(row) for row in connection.execute(named.limit(_MAX_SUGGESTIONS))]
        if len(found) == 1 and text:
            return found[0]
        if found and text:
            names = ", ".join(f"{run.uid} ({run.name})" for run in found)
            raise AmbiguousReference(
                f"{text!r} fits several runs, the newest are {names}; give more of the id (begat runs)"
            )
        raise RunNotFound(
            f"no run has the id or the name {text!r} (begat runs shows what there is)"
        )

    def edges_of_run(self, run_uid: str) -> list[Edge]:
        """What a run used, made and confirmed, in that order of time."""
        statement = EDGES.where(edges.c.run_uid == run_uid).order_by(edges.c.position)
        with self._engine.read() as connection:
            return [edge_record(row) for row in connection.execute(statement)]

    def uses(self, run_uid: str, *, before: str | None = None) -> list[Edge]:
        """What a run used, in that order of time; only until it made the version with the uid `before`, if it did."""
        with self._engine.read() as connection:
            used = [edge_record(row) for row in _USED.all(connection, run=run_uid)]
            if before is None:
                return used
            end = _MADE_AT.value(connection, run=run_uid, version=before)
        return used if end is None else [edge for edge in used if edge.position < end]

    def edges_of_version(self, version_uid: str) -> list[Edge]:
        """Which runs used, made and confirmed a version, oldest first."""
        statement = EDGES.where(edges.c.version_uid == version_uid).order_by(
            edges.c.at, edges.c.run_uid, edges.c.position
        )
        with self._engine.read() as connection:
            return [edge_record(row) for row in connection.execute(statement)]

    # --- using versions ---

    def use(
        self,
        run_uid: str,
        version_uid: str,
        *,
        requested: str | None,
        role: str | None = None,
        declared: bool = True,
        detected: bool = False,
        mismatch: str | None = None,
        pin: str | None = None,
    ) -> Edge:
        """Record that a run uses a version; a second time adds what is new to the same edge.

        `requested` is the reference as it was asked for. Each question is an edge of its own, since its answer changes
        by itself: `digits:best` and `digits:v3`, but not `digits` and `digits:latest`, of which the first text stays.
        Without it, what is told goes to the first edge of the version. `pin` is a reference that means this version in
        this run from now on. Raises `RunFinished`, `BytesRetired`, `VersionDeleted`.
        """
        with self._engine.write("recording that a run uses a version") as connection:
            check_running(connection, run_uid)
            with_bytes(connection, locked_version(connection, version_uid))
            uses = [
                edge_record(row) for row in _USES.all(connection, run=run_uid, version=version_uid)
            ]
            known = _use_that_asked(uses, requested)
            edge = known or Edge(
                run_uid,
                version_uid,
                "used",
                next_position(connection, run_uid),
                self._engine.now(),
                declared,
                requested=requested,
            )
            edge = structs.replace(
                edge,
                is_declared=edge.is_declared or declared,
                is_detected=edge.is_detected or detected,
                role=edge.role if edge.role is not None else role,
                requested=edge.requested if edge.requested is not None else requested,
                mismatch=mismatch if mismatch is not None else edge.mismatch,
            )
            if known is None:
                insert_many(connection, edges, [edge_row(edge)])
            else:
                _put_use(connection, known, edge)
            if pin is not None:
                _pin(connection, run_uid, pin, version_uid)
            return edge

    def pinned(self, run_uid: str, reference: str) -> str | None:
        """The uid of the version that a reference means in a run, if it was resolved there before."""
        with self._engine.read() as connection:
            return _PINNED.value(connection, run=run_uid, reference=reference)

    # --- lineage ---

    def reached(
        self, version_uids: Iterable[str], way: Way, *, through_confirmed: bool = False
    ) -> set[str]:
        """The uids of all versions upstream or downstream of some, those included."""
        with self._engine.read() as connection:
            return reached(connection, version_uids, way, through_confirmed=through_confirmed)

    def lineage(
        self,
        *,
        version_uids: Iterable[str] = (),
        run_uids: Iterable[str] = (),
        direction: Literal["upstream", "downstream", "both"] = "both",
        depth: int | None = None,
        through_confirmed: bool = False,
    ) -> tuple[dict[str, VersionRecord], dict[str, RunRecord], list[Edge]]:
        """What lies around versions and runs: versions and runs by uid, and the edges between them.

        `depth` counts versions: 1 is one run away. "both" is what lies upstream and what lies downstream, not what
        else came from the same inputs. `confirmed` edges of the versions met are added; they are walked along only
        with `through_confirmed` (a confirming run's inputs are then upstream of what it confirmed, and such a walk
        may meet cycles). Edges are sorted by run, then position.
        """
        ways: tuple[Way, ...] = ("upstream", "downstream") if direction == "both" else (direction,)
        starts, run_starts = list(version_uids), list(run_uids)
        with self._engine.read() as connection:
            found = Found(set(starts), set(run_starts))
            for way in ways:
                part = walk(
                    connection,
                    way,
                    version_uids=starts,
                    run_uids=run_starts,
                    depth=depth,
                    through_confirmed=through_confirmed,
                )
                found.versions |= part.versions
                found.runs |= part.runs
                found.edges |= part.edges
            add_confirmed(connection, found)
            met = sorted(found.edges, key=attrgetter("run_uid", "position"))
            return (
                fetch_versions(connection, sorted(found.versions)),
                fetch_runs(connection, sorted(found.runs)),
                met,
            )

    def list(
        self,
        *,
        job: str | None = None,
        status: RunStatus | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> list[RunRecord]:
        """Runs, the newest first: of a job, with a status, with a tag; at most `limit`."""
        statement = RUNS.order_by(runs.c.started_at.desc(), runs.c.uid.desc()).limit(limit)
        if job is not None:
            statement = statement.where(runs.c.job == job)
        if status is not None:
            statement = statement.where(runs.c.status == status)
        if tag is not None:
            tagged = select(tags.c.target_uid).where(tags.c.target_kind == "run", tags.c.tag == tag)
            statement = statement.where(runs.c.uid.in_(tagged))
        with self._engine.read() as connection:
            return [run_record(row) for row in connection.execute(statement)]


def _use_that_asked(uses: Iterable[Edge], requested: str | None) -> Edge | None:
    """The first use that asked the same, or that nothing asked for yet; any if nothing is asked."""
    asked = None if requested is None else _question(requested)
    return next(
        (
            edge
            for edge in uses
            if asked is None or edge.requested is None or _question(edge.requested) == asked
        ),
        None,
    )


def _put_use(connection: Connection, known: Edge, edge: Edge) -> None:
    statement = edges.update().where(
        edges.c.run_uid == known.run_uid,
        edges.c.version_uid == known.version_uid,
        edges.c.kind == known.kind,
        edges.c.requested == (known.requested or ""),
    )
    columns = [column.name for column in edges.columns]
    connection.execute(statement.values(dict(zip(columns, edge_row(edge), strict=True))))


def _question(text: str) -> str:
    try:
        return str(structs.replace(parse_reference(text), path=None))
    except BadReference:
        return text


def _existing(connection: Connection, uid: str) -> RunRecord:
    run = fetch_run(connection, uid)
    if run is None:
        raise RunNotFound(f"no run has the id {uid!r}; nothing was changed")
    return run


def _end(
    connection: Connection,
    run: RunRecord,
    status: RunStatus,
    *,
    at: int,
    error: Mapping[str, Json] | None,
) -> None:
    text = None if error is None else json_text(error)
    connection.execute(
        runs.update()
        .where(runs.c.uid == run.uid)
        .values(status=status, ended_at=at, heartbeat_at=at, error=text)
    )


def _pin(connection: Connection, run_uid: str, reference: str, version_uid: str) -> None:
    statement = insert(ref_pins).values(
        run_uid=run_uid, reference=reference, version_uid=version_uid
    )
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[ref_pins.c.run_uid, ref_pins.c.reference],
            set_={"version_uid": version_uid},
        )
    )
