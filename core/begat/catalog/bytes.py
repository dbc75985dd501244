"""Where blobs lie, which versions hold which objects, and what garbage collection may remove."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Connection, Select, select, tuple_

from begat.catalog.changes import Change
from begat.catalog.engine import Engine
from begat.catalog.labels import kept_because
from begat.catalog.placing import move_blobs, place
from begat.catalog.rows import (
    BLOBS,
    OBJECTS,
    VERSIONS,
    blob_location,
    blob_locations,
    is_among,
    is_among_many,
    object_record,
    version_record,
)
from begat.catalog.statements import Prepared, chunks, insert_many
from begat.model import (
    BlobLocation,
    Digest,
    Holder,
    ObjectRecord,
    RecipeRecord,
    StagedObject,
    VersionRecord,
)
from begat.tables import artifacts, blobs, holds, objects, recipes, versions

_PAGE = 10_000

_RECIPES = Prepared(
    select(recipes.c.file, recipes.c.recipe, recipes.c.splitter, recipes.c.size_bytes).where(
        is_among_many(recipes.c.file, "files")
    )
)
_NAMED_OBJECTS = OBJECTS.where(is_among(objects.c.name, "names"))
_NEXT_OBJECTS = OBJECTS.where(objects.c.name > "").order_by(objects.c.name).limit(_PAGE)
_IS_HELD = select(holds.c.object).where(holds.c.object == objects.c.name).exists()
_DEAD = OBJECTS.where(~_IS_HELD)

_NEXT_BLOBS = select(
    blobs.c.object, blobs.c.offset, blobs.c.digest, blobs.c.stored_length
).order_by(blobs.c.object, blobs.c.offset, blobs.c.digest)
_NEXT_HOLDS = (
    select(holds.c.object, holds.c.version_uid, versions.c.root, versions.c.record)
    .select_from(holds.join(versions, versions.c.uid == holds.c.version_uid))
    .order_by(holds.c.object, holds.c.version_uid)
)
_NEXT_RECIPES = select(recipes.c.file, recipes.c.recipe).order_by(recipes.c.file)
_BLOBS_OF = select(blobs.c.digest).where(is_among(blobs.c.object, "names"))


class Bytes:
    """What the catalog knows of blobs and objects; it never looks at the bytes themselves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    # --- blobs ---

    def locations(self, digests: Iterable[Digest]) -> dict[Digest, BlobLocation]:
        """Where these blobs lie; what is not in the answer is to be stored."""
        with self._engine.read() as connection:
            return blob_locations(connection, digests)

    def readable_locations(self, digests: Iterable[Digest]) -> dict[Digest, BlobLocation]:
        """Where to look for these blobs, in damaged objects too: most of a damaged pack may be sound.

        For readers, who check what they read; never for a log, which would rely on it.
        """
        with self._engine.read() as connection:
            return blob_locations(connection, digests, with_damaged=True)

    def recipes(self, files: Iterable[Digest]) -> dict[Digest, RecipeRecord]:
        """How these files are cut into parts, of those that are."""
        found: dict[Digest, RecipeRecord] = {}
        with self._engine.read() as connection:
            for chunk in chunks(files):
                for row in _RECIPES.all(connection, files=chunk):
                    found[row[0]] = RecipeRecord(*row)
        return found

    def all_recipes(self) -> Iterator[tuple[Digest, Digest]]:
        """Every file that is cut into parts, in order, with its recipe: read in pages, as `all_objects`."""
        for row in self._pages(_NEXT_RECIPES, (recipes.c.file,), ("",)):
            yield row[0], row[1]

    # --- objects ---

    def objects(self, names: Iterable[str]) -> dict[str, ObjectRecord]:
        """The objects with these names, live and damaged, by name."""
        found: dict[str, ObjectRecord] = {}
        with self._engine.read() as connection:
            for chunk in chunks(names):
                for row in connection.execute(_NAMED_OBJECTS, {"names": chunk}):
                    found[row[0]] = object_record(row)
        return found

    def all_objects(self) -> Iterator[ObjectRecord]:
        """Every object, by name, in pages: one that comes or goes meanwhile may be in it or not."""
        last = ""
        while True:
            # No transaction stays open between pages: it would keep the write-ahead log from being emptied.
            with self._engine.read() as connection:
                page = connection.execute(_NEXT_OBJECTS.where(objects.c.name > last)).all()
            yield from (object_record(row) for row in page)
            if len(page) < _PAGE:
                return
            last = page[-1][0]

    def blobs_in(self, name: str) -> list[BlobLocation]:
        """The blobs that lie in an object, by offset."""
        statement = BLOBS.where(blobs.c.object == name).order_by(blobs.c.offset, blobs.c.digest)
        with self._engine.read() as connection:
            return [blob_location(row) for row in connection.execute(statement)]

    def mark_damaged(self, name: str) -> bool:
        """No longer offer what lies in an object; False if it is marked already, or not known."""
        with self._engine.write(f"marking the object {name!r} as damaged") as connection:
            marked = connection.execute(
                objects.update()
                .where(objects.c.name == name, objects.c.state == "live")
                .values(state="damaged")
            ).rowcount
            if marked:
                Change(connection, self._engine.now(), "").note("object-damaged", name, {})
            return bool(marked)

    def mark_sound(self, name: str) -> bool:
        """Offer what lies in an object again; False if it is offered, or not known. Its bytes were just compared."""
        with self._engine.write(f"marking the object {name!r} as sound") as connection:
            marked = connection.execute(
                objects.update()
                .where(objects.c.name == name, objects.c.state == "damaged")
                .values(state="live")
            ).rowcount
            if marked:
                Change(connection, self._engine.now(), "").note("object-sound", name, {})
            return bool(marked)

    def blobs_by_object(self) -> Iterator[tuple[str, list[tuple[Digest, int]]]]:
        """Every object that has blobs, by name: the digests of its blobs and their stored lengths, by offset.

        Read in pages, as `all_objects`; what comes or goes meanwhile may be in it or not.
        """
        last = ("", -1, "")
        rows = self._pages(_NEXT_BLOBS, (blobs.c.object, blobs.c.offset, blobs.c.digest), last)
        for name, group in groupby(rows, key=itemgetter(0)):
            yield name, [(row[2], row[3]) for row in group]

    # --- versions and objects ---

    def holders(self) -> Iterator[tuple[str, list[Holder]]]:
        """Every object that versions need something in, by name, with those versions, by uid."""
        rows = self._pages(_NEXT_HOLDS, (holds.c.object, holds.c.version_uid), ("", ""))
        for name, group in groupby(rows, key=itemgetter(0)):
            yield name, [Holder(*row[1:]) for row in group]

    def holders_of(self, name: str) -> list[Holder]:
        """The versions that need something in an object, by uid."""
        statement = _NEXT_HOLDS.where(holds.c.object == name)
        with self._engine.read() as connection:
            return [Holder(*row[1:]) for row in connection.execute(statement)]

    def is_any_held(self, names: tuple[str, str]) -> bool:
        """Whether some version needs something in an object whose name lies between two."""
        statement = select(holds.c.object).where(holds.c.object.between(*names)).limit(1)
        with self._engine.read() as connection:
            return connection.execute(statement).first() is not None

    def _pages(
        self, statement: Select[*tuple[Any, ...]], key: Sequence[Column[Any]], last: tuple[Any, ...]
    ) -> Iterator[Sequence[Any]]:
        """The rows of a statement that is ordered by its first columns, `key`; no transaction stays open between."""
        while True:
            after = tuple_(*key) > tuple_(*last)
            with self._engine.read() as connection:
                page = connection.execute(statement.where(after).limit(_PAGE)).all()
            yield from page
            if len(page) < _PAGE:
                return
            last = tuple(page[-1][: len(key)])

    def versions_holding(self, name: str) -> list[VersionRecord]:
        """The versions that need something in an object, by name and number."""
        statement = (
            VERSIONS.join(holds, holds.c.version_uid == versions.c.uid)
            .where(holds.c.object == name)
            .order_by(artifacts.c.name, versions.c.number)
        )
        with self._engine.read() as connection:
            return [version_record(row) for row in connection.execute(statement)]

    def held_objects(self, version_uid: str) -> list[ObjectRecord]:
        """The objects that a version needs, by name."""
        statement = (
            OBJECTS.join(holds, holds.c.object == objects.c.name)
            .where(holds.c.version_uid == version_uid)
            .order_by(objects.c.name)
        )
        with self._engine.read() as connection:
            return [object_record(row) for row in connection.execute(statement)]

    def place(self, staged: Sequence[StagedObject]) -> None:
        """Record durable objects before the version that they were stored for, so that nobody must remember them.

        Only of small files and pages: a large one is placed with the version, which tells its new way to all who had
        it before.
        """
        with self._engine.write("recording stored objects") as connection:
            place(connection, staged, at=self._engine.now())

    # --- garbage collection ---

    def relocate(
        self,
        moves: Sequence[tuple[Digest, str, BlobLocation]],
        new_objects: Sequence[StagedObject],
        *,
        emptied: Sequence[str] = (),
    ) -> None:
        """Move blobs into new, durable objects: (digest, old object, new place).

        Only blobs that are still in the old object move. Versions hold what their blobs moved to, and let go of an old
        object in which none is left. What is left in the `emptied` objects is needed by no version, and forgotten.
        """
        with self._engine.freeing("moving blobs into new objects") as connection:
            at = self._engine.now()
            rows = [(each.name, each.size_bytes, "live", at) for each in new_objects]
            insert_many(connection, objects, rows)
            move_blobs(connection, moves)
            for chunk in chunks(emptied):
                _forget_blobs(connection, chunk)
                connection.execute(holds.delete().where(holds.c.object.in_(chunk)))

    def dead_objects(self, limit: int | None = None) -> list[ObjectRecord]:
        """Objects that no version needs, by name: at most `limit`."""
        statement = _DEAD.order_by(objects.c.name).limit(limit)
        with self._engine.read() as connection:
            return [object_record(row) for row in connection.execute(statement)]

    def forget_objects(self, names: Iterable[str], *, by: str = "gc") -> list[str]:
        """Remove objects that no version needs from the catalog; those really removed.

        Called under the lock of garbage collection, which removes their bytes only afterwards: rows go before bytes.
        """
        with self._engine.freeing("forgetting objects that no version needs") as connection:
            change = Change(connection, self._engine.now(), by)
            dead: list[str] = []
            for chunk in chunks(names):
                statement = _DEAD.where(is_among(objects.c.name, "names"))
                dead += [row[0] for row in connection.execute(statement, {"names": chunk})]
            for chunk in chunks(dead):
                _forget_blobs(connection, chunk)
                connection.execute(objects.delete().where(objects.c.name.in_(chunk)))
            if dead:
                change.note("objects-removed", f"{len(dead)} objects", {"names": dead})
            return dead

    def forget_blobs(self, name: str, most: int) -> bool:
        """Forget so many of the blobs in an object that no version needs; False when none is left.

        For a disk that has no room for all of them in one transaction. What is left of them can be relied on as ever.
        """
        with self._engine.freeing("forgetting blobs that no version needs") as connection:
            if connection.execute(_DEAD.where(objects.c.name == name)).first() is None:
                return False
            digests = select(blobs.c.digest).where(blobs.c.object == name).limit(most)
            found = list(connection.execute(digests).scalars())
            connection.execute(recipes.delete().where(recipes.c.recipe.in_(found)))
            connection.execute(blobs.delete().where(blobs.c.digest.in_(found)))
            return bool(found)

    def retired_candidates(self) -> list[tuple[VersionRecord, str | None]]:
        """Every retired version with the reason why its bytes are kept; None if they may go."""
        statement = VERSIONS.where(versions.c.state == "retired").order_by(
            artifacts.c.name, versions.c.number
        )
        with self._engine.read() as connection:
            retired = [version_record(row) for row in connection.execute(statement)]
            return [(version, kept_because(connection, version)) for version in retired]


def _forget_blobs(connection: Connection, names: Sequence[str]) -> None:
    gone = {"names": names}
    connection.execute(recipes.delete().where(recipes.c.recipe.in_(_BLOBS_OF)), gone)
    connection.execute(blobs.delete().where(is_among(blobs.c.object, "names")), gone)
