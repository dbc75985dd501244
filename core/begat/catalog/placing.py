"""Where bytes lie, written inside a transaction: staged objects, healed blobs, and which version holds which object."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select, union_all

from begat.catalog.rows import is_among, is_among_many, is_given
from begat.catalog.statements import Prepared, chunks, insert, insert_many
from begat.model import BlobLocation, Digest, StagedObject
from begat.tables import blobs, holds, objects, recipes

_LOST_PLACES = (
    select(blobs.c.digest, blobs.c.object)
    .select_from(blobs.outerjoin(objects, objects.c.name == blobs.c.object))
    .where(is_among(blobs.c.digest, "digests"), objects.c.state.is_distinct_from("live"))
)
_MOVE = (
    blobs.update()
    .where(blobs.c.digest == bindparam("of"), blobs.c.object == bindparam("was"))
    .values(
        {
            column.name: bindparam(f"new_{column.name}")
            for column in blobs.c
            if column.name != "digest"
        }
    )
)
_COPY_HOLDS = (
    insert(holds)
    .from_select(
        ["version_uid", "object"],
        select(holds.c.version_uid, bindparam("new", type_=holds.c.object.type)).where(
            is_given(holds.c.object, "old")
        ),
    )
    .on_conflict_do_nothing()
)
_theirs = holds.alias("theirs")
_STILL_THERE = select(blobs.c.digest).where(is_given(blobs.c.object, "object")).limit(1)


def place(connection: Connection, staged: Sequence[StagedObject], *, at: int) -> list[str]:
    """Record durable objects and the blobs in them; gives the objects whose holders are to be told, for `share`.

    A blob that is known keeps its place, so the copy in the new object is garbage; unless its place is damaged or
    gone: then the new place is taken, and whoever held the old object holds the new one as well.
    """
    outdated = _outdated(connection, staged)
    for each in staged:
        insert_many(connection, objects, [(each.name, each.size_bytes, "live", at)])
        # In the order of the key, so that each page of its index is written to once.
        inserted = insert_many(connection, blobs, sorted(each.blobs))
        if inserted < len(each.blobs):
            _heal(connection, each.blobs)
        if each.recipes:
            _place_recipes(connection, each)
    return outdated


# Where a file was to be found so far, in one piece or by its recipe.
_WAYS = union_all(
    select(blobs.c.object).where(is_among(blobs.c.digest, "files")),
    select(blobs.c.object)
    .select_from(recipes.join(blobs, blobs.c.digest == recipes.c.recipe))
    .where(is_among(recipes.c.file, "files")),
)
# No smaller file has a recipe.
_LEAST_CUT_BYTES = 1 << 20


def _outdated(connection: Connection, staged: Sequence[StagedObject]) -> list[str]:
    """The objects by which large files were read so far that are now stored in another way."""
    files = {recipe.file for each in staged for recipe in each.recipes}
    files |= {
        blob.digest
        for each in staged
        for blob in each.blobs
        if blob.kind == "file" and blob.raw_length >= _LEAST_CUT_BYTES
    }
    found: dict[str, None] = {}
    for chunk in chunks(files):
        found.update((row[0], None) for row in connection.execute(_WAYS, {"files": chunk}))
    return list(found)


_SHARE_HOLDS = (
    insert(holds)
    .from_select(
        ["version_uid", "object"],
        select(_theirs.c.version_uid, holds.c.object)
        .select_from(_theirs.join(holds, is_given(holds.c.version_uid, "version")))
        .where(is_given(_theirs.c.object, "old")),
    )
    .on_conflict_do_nothing()
)


def share(connection: Connection, outdated: Sequence[str], version_uid: str) -> None:
    """Let whoever holds one of these objects hold all that a version holds.

    A file has one recipe, for all versions that have the file. When it is stored in another way, because two writers
    were at it or because its parts were damaged, older versions read it by the new way too, and must keep its bytes.
    """
    for old in outdated:
        connection.execute(_SHARE_HOLDS, {"old": old, "version": version_uid})


def _heal(connection: Connection, fresh: Sequence[BlobLocation]) -> None:
    by_digest = {blob.digest: blob for blob in fresh}
    moves: list[tuple[Digest, str, BlobLocation]] = []
    for chunk in chunks(by_digest):
        for digest, was in connection.execute(_LOST_PLACES, {"digests": chunk}):
            moves.append((digest, was, by_digest[digest]))
    move_blobs(connection, moves)


def move_blobs(connection: Connection, moves: Sequence[tuple[Digest, str, BlobLocation]]) -> None:
    """Give blobs a new place, where they are still at the old one.

    `moves` are (digest, old object, new place). Versions that hold an old object hold the new ones too, and the old
    one no longer once no blob is left in it.
    """
    if not moves:
        return
    names = [f"new_{column.name}" for column in blobs.c][1:]
    for chunk in chunks(moves):
        connection.execute(
            _MOVE,
            [
                {"of": digest, "was": was, **dict(zip(names, new[1:], strict=True))}
                for digest, was, new in chunk
            ],
        )
    for old, new in dict.fromkeys((was, new.object) for _, was, new in moves):
        connection.execute(_COPY_HOLDS, {"old": old, "new": new})
    for old in dict.fromkeys(was for _, was, _ in moves):
        if connection.execute(_STILL_THERE, {"object": old}).first() is None:
            connection.execute(holds.delete().where(holds.c.object == old))


def _place_recipes(connection: Connection, staged: StagedObject) -> None:
    # Any recipe of a file is as good as another; the newest is sure to have its parts in place.
    statement = insert(recipes)
    statement = statement.on_conflict_do_update(
        index_elements=[recipes.c.file],
        set_={
            "recipe": statement.excluded.recipe,
            "splitter": statement.excluded.splitter,
            "size_bytes": statement.excluded.size_bytes,
        },
    )
    rows: list[dict[str, Any]] = [
        {
            "file": recipe.file,
            "recipe": recipe.recipe,
            "splitter": recipe.splitter,
            "size_bytes": recipe.size_bytes,
        }
        for recipe in staged.recipes
    ]
    connection.execute(statement, rows)


_PLACED = blobs.join(objects, objects.c.name == blobs.c.object)
_IS_NEEDED = (objects.c.state == "live", is_among_many(blobs.c.digest, "digests"))
_NEEDED = Prepared(select(blobs.c.digest).select_from(_PLACED).where(*_IS_NEEDED))
_NEEDED_BY_OBJECT = Prepared(
    select(blobs.c.object, func.count())
    .select_from(_PLACED)
    .where(*_IS_NEEDED)
    .group_by(blobs.c.object)
)


def hold(connection: Connection, version_uid: str, needs: Iterable[Digest]) -> set[Digest]:
    """Note which objects a version needs for these blobs; the blobs that have no place.

    Read from what the catalog says after all staged objects were placed, never from the writer's own list: of two
    writers that stored the same blob, only the first one's object counts.
    """
    missing: set[Digest] = set()
    names: set[str] = set()
    for some in chunks(needs):
        chunk = list(dict.fromkeys(some))
        # Counted, and not fetched: a version may need a million blobs, which lie in a few objects.
        found = dict(_NEEDED_BY_OBJECT.all(connection, digests=chunk))
        names.update(found)
        if sum(found.values()) < len(chunk):
            placed = {row[0] for row in _NEEDED.all(connection, digests=chunk)}
            missing.update(digest for digest in chunk if digest not in placed)
    insert_many(connection, holds, [(version_uid, name) for name in sorted(names)])
    return missing


_HELD_DAMAGED = holds.delete().where(
    is_given(holds.c.version_uid, "version"),
    holds.c.object.in_(select(objects.c.name).where(objects.c.state != "live")),
)


def let_go_of_damaged(connection: Connection, version_uid: str) -> None:
    """Let a version no longer hold damaged objects, once all that it needs was found to lie in live ones."""
    connection.execute(_HELD_DAMAGED, {"version": version_uid})


_ANY_HELD_DAMAGED = (
    select(holds.c.object)
    .select_from(holds.outerjoin(objects, objects.c.name == holds.c.object))
    .where(is_given(holds.c.version_uid, "version"), objects.c.state.is_distinct_from("live"))
    .limit(1)
)


def holds_damaged(connection: Connection, version_uid: str) -> bool:
    """Whether a version needs something that lies in a damaged object."""
    return connection.execute(_ANY_HELD_DAMAGED, {"version": version_uid}).first() is not None


def is_placed(connection: Connection, digest: Digest) -> bool:
    """Whether a blob lies in a live object."""
    return _NEEDED.first(connection, digests=[digest]) is not None
