"""The store's history, and the fingerprints by which data in memory is known again."""

from __future__ import annotations

from sqlalchemy import select

from begat.catalog.engine import Engine, insert_many
from begat.catalog.rows import is_given, json_value
from begat.model import Event
from begat.tables import events, fingerprints, versions

_EVENTS = select(
    events.c.uid, events.c.at, events.c.kind, events.c.subject, events.c.detail, events.c.by
).order_by(events.c.at.desc(), events.c.uid.desc())
_FIND = (
    select(fingerprints.c.version_uid, fingerprints.c.path)
    .select_from(fingerprints.join(versions, versions.c.uid == fingerprints.c.version_uid))
    .where(is_given(fingerprints.c.fingerprint, "fingerprint"), versions.c.state != "deleted")
    .order_by(fingerprints.c.at.desc(), fingerprints.c.version_uid.desc(), fingerprints.c.path)
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
        with self._engine.write("noting a fingerprint") as connection:
            row = (fingerprint, version_uid, path, kind, self._engine.now())
            insert_many(connection, fingerprints, [row])

    def find(self, fingerprint: str) -> list[tuple[str, str]]:
        """(uid of a version, path) of what looks like this, the newest first; not of deleted versions."""
        with self._engine.read() as connection:
            rows = connection.execute(_FIND, {"fingerprint": fingerprint})
            return [(row[0], row[1]) for row in rows]
