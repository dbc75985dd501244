"""The store's history, and the fingerprints by which data in memory is known again."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec.structs import astuple
from sqlalchemy import select

from begat.catalog.engine import Engine
from begat.catalog.rows import is_given, json_value
from begat.catalog.statements import insert_many
from begat.model import Event, Seen
from begat.tables import events, fingerprints, versions

# Versions with the same content, as of a column that never changes: the newest speak for all.
MOST_OF_ONE_CONTENT = 200

_EVENTS = select(
    events.c.uid, events.c.at, events.c.kind, events.c.subject, events.c.detail, events.c.by
).order_by(events.c.at.desc(), events.c.uid.desc())
_FIND = (
    select(fingerprints.c.version_uid, fingerprints.c.path, fingerprints.c.kind)
    .select_from(fingerprints.join(versions, versions.c.uid == fingerprints.c.version_uid))
    .where(is_given(fingerprints.c.fingerprint, "fingerprint"), versions.c.state != "deleted")
    .order_by(fingerprints.c.at.desc(), fingerprints.c.version_uid.desc(), fingerprints.c.path)
    .limit(MOST_OF_ONE_CONTENT)
)


class Events:
    """What changed, when and by whom; lines are only ever added."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(self, *, limit: int | None = None, subject: str | None = None) -> list[Event]:
        """The newest lines first; of one subject (`digits:v3`, `digits:best`, a run's id), or of all."""
        statement = _EVENTS.limit(limit)
        if subject is not None:
            statement = statement.where(events.c.subject == subject)
        with self._engine.read() as connection:
            rows = connection.execute(statement).all()
        return [Event(*row[:4], json_value(row[4]), row[5]) for row in rows]


class Fingerprints:
    """Which version handed out an object in memory, by a digest of what is in it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, version_uid: str, path: str, *, fingerprint: str, kind: str) -> None:
        """Note that a file of a version looks like this in memory; `kind` says how it was computed."""
        self.add_many([Seen(fingerprint, version_uid, path, kind)])

    def add_many(self, seen: Iterable[Seen]) -> None:
        """Note all of these at once; what is known already stays as it is."""
        rows = [astuple(one) for one in seen]
        with self._engine.write("noting fingerprints") as connection:
            now = self._engine.now()
            insert_many(connection, fingerprints, [(*row, now) for row in rows])

    def find(self, fingerprint: str) -> list[tuple[str, str]]:
        """(uid of a version, path) of what looks like this, the newest first; not of deleted versions."""
        return [(one.version_uid, one.path) for one in self.find_many([fingerprint])]

    def find_many(self, wanted: Iterable[str]) -> list[Seen]:
        """What looks like one of these, the newest of each first; not of deleted versions."""
        with self._engine.read() as connection:
            return [
                Seen(fingerprint, *row)
                for fingerprint in dict.fromkeys(wanted)
                for row in connection.execute(_FIND, {"fingerprint": fingerprint})
            ]
