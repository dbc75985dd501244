"""What only a rebuild writes: rows as they were in a catalog that was lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy import select

from begat.catalog.changes import Change, refresh_latest
from begat.catalog.commits import DEFAULT_TYPE
from begat.catalog.engine import Engine
from begat.catalog.placing import place
from begat.catalog.rows import blob_locations, edge_row
from begat.catalog.statements import insert_many
from begat.identity import Digest, new_uid
from begat.model import Edge, StagedObject
from begat.tables import artifacts, edges, holds, objects, versions

# Of a version of which nothing is left but its name.
UNKNOWN_DIGEST = Digest("b3:" + "0" * 64)


class Restoring:
    """Writes rows of a catalog that is being rebuilt; nobody else uses it yet."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def place(self, found: Sequence[StagedObject], *, damaged: Sequence[str] = ()) -> None:
        """Record objects that were found, and the blobs in them; none is offered of those that are damaged."""
        with self._engine.write("recording the objects that were found") as connection:
            place(connection, found, at=self._engine.now())
            for name in damaged:
                connection.execute(
                    objects.update().where(objects.c.name == name).values(state="damaged")
                )

    def hold(self, version_uid: str, needs: Iterable[Digest]) -> None:
        """Note which objects a version needs for these blobs; damaged ones too, for what is sound in them."""
        with self._engine.write("recording which objects a version needs") as connection:
            found = blob_locations(connection, needs, with_damaged=True)
            names = sorted({place.object for place in found.values()})
            insert_many(connection, holds, [(version_uid, name) for name in names])

    def add_tombstone(self, name: str, number: int, *, uid: str, at: int) -> None:
        """Record that a version was there: its number is not given again, and its place in the lineage is kept."""
        with self._engine.write("recording a version that is gone") as connection:
            row = connection.execute(
                select(artifacts.c.uid, artifacts.c.last_number).where(artifacts.c.name == name)
            ).first()
            artifact_uid, last_number = row or (new_uid(), 0)
            if row is None:
                fields = (artifact_uid, name, DEFAULT_TYPE, None, at, 0, None)
                insert_many(connection, artifacts, [fields])
            fields = (
                *(uid, artifact_uid, number, UNKNOWN_DIGEST, UNKNOWN_DIGEST, None, None, None),
                *("{}", "", 0, 0, 0, "deleted", None, uid, at, "", None, None, 0),
            )
            insert_many(connection, versions, [fields])
            connection.execute(
                artifacts.update()
                .where(artifacts.c.uid == artifact_uid)
                .values(last_number=max(last_number, number))
            )
            refresh_latest(Change(connection, at, ""), artifact_uid)

    def add_edges(self, found: Sequence[Edge]) -> None:
        """Record what runs used and made, at the positions given."""
        with self._engine.write("recording what runs used and made") as connection:
            insert_many(connection, edges, [edge_row(edge) for edge in found])
