"""Versions and runs made up for tests of the catalog: the digests and objects stand for nothing on a disk."""

import hashlib
import sqlite3
from typing import Any

from msgspec.structs import replace
from sqlalchemy import event

from begat.catalog import Catalog
from begat.identity import Digest, new_uid
from begat.model import BlobLocation, NewRun, NewVersion, StagedObject


def digest(text: str) -> Digest:
    return Digest("b3:" + hashlib.sha256(text.encode()).hexdigest())


def object_name(text: str) -> str:
    return f"ab/{digest(text)[3:]}-00000001"


def staged(name: str, *contents: str, kind: str = "file") -> StagedObject:
    """An object with a blob for each content."""
    place = object_name(name)
    blobs = tuple(
        BlobLocation(digest(text), place, 10 * i, 10, 10, "none", kind)  # type: ignore[arg-type]
        for i, text in enumerate(contents)
    )
    return StagedObject(place, 10 * len(contents), blobs)


def new_version(name: str = "digits", content: str = "one", **fields: object) -> NewVersion:
    """A version whose root and one file lie in an object of their own, all named after the content."""
    root, body = f"root of {content}", f"file of {content}"
    pack = staged(f"pack of {content}", root, body)
    given: dict[str, object] = {
        "uid": new_uid(),
        "token": new_uid(),
        "name": name,
        "digest": digest(content),
        "root": digest(root),
        "record": None,
        "staged": (pack,),
        "needs": (digest(root), digest(body)),
        "created_by": "ann",
        **fields,
    }
    return NewVersion(**given)  # type: ignore[arg-type]


def unstaged(version: NewVersion) -> NewVersion:
    """The same content and a new attempt, by a log that expects it to be the latest already."""
    return replace(version, uid=new_uid(), token=new_uid(), root=None, record=None, staged=())


def again(version: NewVersion, **fields: object) -> NewVersion:
    """The same content, logged once more."""
    return replace(version, uid=new_uid(), token=new_uid(), **fields)


def new_run(**fields: object) -> NewRun:
    given: dict[str, object] = {"uid": new_uid(), "name": "train", "user": "ann", **fields}
    return NewRun(**given)  # type: ignore[arg-type]


def statements_read(catalog: Catalog) -> list[str]:
    """Every query that the catalog asks from now on, as SQLite gets it; the list grows."""
    seen: list[str] = []

    def note(statement: str) -> None:
        if not statement.startswith(("BEGIN", "COMMIT", "ROLLBACK")):
            seen.append(statement)

    def listen(connection: sqlite3.Connection, *rest: Any) -> None:
        connection.set_trace_callback(note)

    catalog.close()  # what is open already was not told
    event.listen(catalog._engine._reader.engine, "connect", listen)
    return seen
