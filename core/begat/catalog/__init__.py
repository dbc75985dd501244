"""The catalog: names, versions, runs, edges and the places of bytes, in one SQL database.

    catalog.commits   the one commit point
    catalog.versions  artifacts and versions, by name, reference or id
    catalog.labels    aliases, tags, descriptions, states
    catalog.runs      runs, what they used and made, lineage
    catalog.bytes     blobs, objects, what garbage collection may remove
    catalog.events    the store's history
    catalog.fingerprints  data in memory that came from a version
    catalog.restoring  rows of a catalog that is rebuilt

Every method that writes is one transaction, and so is every method that reads, or all of them inside `reading`.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import weakref
from collections.abc import Callable, Generator
from pathlib import Path

from msgspec.structs import replace
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.pool import NullPool

from begat import files
from begat.catalog.bytes import Bytes
from begat.catalog.checks import problems
from begat.catalog.commits import Commits, StageAgain
from begat.catalog.engine import Engine, copy_database
from begat.catalog.events import Events, Fingerprints
from begat.catalog.labels import Labels
from begat.catalog.opening import (
    file_system_of,
    kept_from_writers,
    refuse_network,
    way_to_read,
    way_to_read_a_copy,
    way_to_write,
)
from begat.catalog.reserve import RESERVE_FILE
from begat.catalog.restoring import Restoring
from begat.catalog.runs import Runs
from begat.catalog.trouble import how_to_free, told_as
from begat.catalog.versions import Versions
from begat.errors import Corrupt, DestinationDiffers, FormatTooNew, StoreUnavailable
from begat.removing import remove_tree
from begat.tables import HEAD, REVISIONS, schema_version, settings

__all__ = ["RESERVE_FILE", "Catalog", "StageAgain", "how_to_free", "kept_from_writers"]

_STORE_UID = "store_uid"
_MODE = 0o644


class Catalog:
    """One catalog, open; safe to use from many threads, and again after a fork."""

    def __init__(self, engine: Engine, path: Path, store_uid: str) -> None:
        self._engine = engine
        self.path = path
        self.store_uid = store_uid
        self.versions = Versions(engine)
        self.commits = Commits(engine)
        self.labels = Labels(engine)
        self.runs = Runs(engine)
        self.bytes = Bytes(engine)
        self.events = Events(engine)
        self.fingerprints = Fingerprints(engine)
        self.restoring = Restoring(engine)
        self._clean = weakref.finalize(self, _clean_up, engine, os.getpid())

    @classmethod
    def create(
        cls,
        path: Path,
        store_uid: str,
        *,
        file_system: Callable[[Path], str | None] = file_system_of,
    ) -> Catalog:
        """A new, empty catalog; `DestinationDiffers` if the file is there, `StoreUnavailable` on network disks."""
        refuse_network(path, file_system(path))
        with files.told_as(f"making the catalog {path}"), files.NewFile(path.parent, ".tmp") as new:
            with told_as("making the catalog", str(path)):
                _make_tables(new.path, store_uid)
            files.sync_file(new.fd, new.path)
            files.set_mode(new.path, _MODE)
            # A link never replaces: of two processes that make the same store, one learns that it was second.
            _give_name(new, path)
        return cls.open(path, file_system=file_system)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        file_system: Callable[[Path], str | None] = file_system_of,
    ) -> Catalog:
        """An existing catalog, brought to the newest schema first; if it is `read_only`, in a private copy of it.

        Raises `FormatTooNew` (nothing is written), `StoreUnavailable` where there is no catalog or the disk is a
        network file system, `Corrupt`.
        """
        refuse_network(path, file_system(path))
        if not path.is_file():
            raise StoreUnavailable(
                f"there is no catalog at {path}, though a store is there. Nothing was changed; "
                "restore a backup of it, or make it anew from the objects (begat rebuild)"
            )
        engine = Engine(way_to_read(path) if read_only else way_to_write(path), str(path))
        try:
            if _is_older(engine, path):
                engine = _brought_up_to_date(engine, path)
            with engine.read("opening the catalog") as connection:
                wanted = select(settings.c.value).where(settings.c.key == _STORE_UID)
                store_uid = connection.execute(wanted).scalar()
        except BaseException:
            _clean_up(engine, os.getpid())
            raise
        return cls(engine, path, store_uid or "")

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be changed through this catalog."""
        return self._engine.way.is_read_only

    def now(self) -> int:
        """The catalog's clock: microseconds since 1970-01-01 UTC."""
        return self._engine.now()

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """All that this thread reads inside the block is read in one transaction: a few look-ups, one after the other.

        What others change meanwhile is not seen, nor what this thread changes.
        """
        return self._engine.reading()

    def backup(self, target: Path) -> None:
        """Copy all that is committed now into one new file, durably, while others go on writing."""
        with (
            files.told_as(f"writing a backup of the catalog to {target}"),
            files.NewFile(target.parent, ".tmp") as new,
        ):
            copy_database(self._engine, str(new.path))
            new.publish(target, mode=_MODE)

    def check(self) -> list[str]:
        """What is wrong with the catalog, each as a sentence; empty if nothing is. Reads all of it."""
        with self._engine.read("checking the catalog") as connection:
            return problems(connection)

    def keep_reserve(self) -> None:
        """Make the file of blocks that gc and others give up on a full disk, if it is missing and there is room."""
        self._engine.keep_reserve()

    def close(self) -> None:
        """Close all connections; what is used again opens them again."""
        self._engine.close()
        if self._engine.way.private is not None:
            self._clean()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Catalog {self.path}{' (read only)' if self.is_read_only else ''}>"


def _clean_up(engine: Engine, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked child: the private copy is its parent's
    engine.close()
    if engine.way.private is not None:
        remove_tree(engine.way.private)


# --- making ---


def _make_tables(path: Path, store_uid: str) -> None:
    from begat.tables import migrations

    with _plain_connection(path) as connection:
        migrations.create(connection)
        connection.execute(settings.insert().values(key=_STORE_UID, value=store_uid))


@contextlib.contextmanager
def _plain_connection(path: Path) -> Generator[Connection]:
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(path, isolation_level=None),
        poolclass=NullPool,
    )
    with engine.connect() as connection:
        # The file has no name that anyone opens yet: what a failure leaves is thrown away, so no journal is kept on
        # disk, and none is left behind.
        connection.exec_driver_sql("PRAGMA journal_mode = MEMORY")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
        connection.commit()
        # Noted in the file, so that no opener needs to be alone to turn the log on. Last: tables that went through the
        # log would come into the file when it is closed, and SQLite tells nobody if that fails.
        mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar()
        if mode != "wal":
            raise StoreUnavailable(
                f"SQLite did not take write-ahead logging (it said {mode}), so no store was made; "
                "put its catalog on another local disk"
            )


def _give_name(new: files.NewFile, path: Path) -> None:
    try:
        files.hard_link(new.path, path)
    except FileExistsError as error:
        raise DestinationDiffers(
            f"there is a catalog at {path} already; it was not changed. Open it, or choose another place"
        ) from error
    except OSError:
        # Some file systems have no hard links.
        if path.exists():
            raise
        new.publish(path, mode=_MODE)
    files.sync_directory(path.parent)


# --- the schema ---


def _is_older(engine: Engine, path: Path) -> bool:
    """Whether the schema is an older one than ours; `FormatTooNew` if it is newer."""
    with engine.read("opening the catalog") as connection:
        revision = _revision(connection, path)
    if revision is not None and revision not in REVISIONS:
        raise FormatTooNew(
            f"the catalog {path} was written by a newer begat (schema {revision}; this one knows {HEAD}). "
            "Nothing was changed; update begat"
        )
    return revision != HEAD


def _brought_up_to_date(engine: Engine, path: Path) -> Engine:
    """The same catalog in the newest schema: the file itself, or a private copy where it must not be written to."""
    if not engine.way.is_read_only:
        _upgrade(engine, path)
        return engine
    copy = engine.way if engine.way.private is not None else way_to_read_a_copy(path)
    engine.close()
    writer = Engine(replace(copy, is_read_only=False), str(path))
    try:
        _upgrade(writer, path)
    except BaseException:
        _clean_up(writer, os.getpid())
        raise
    writer.close()
    return Engine(copy, str(path))


def _upgrade(engine: Engine, path: Path) -> None:
    from begat.tables import migrations

    with engine.write("bringing the catalog to the newest schema") as connection:
        # Another process may have been faster.
        if _revision(connection, path) != HEAD:
            migrations.upgrade(connection)


def _revision(connection: Connection, path: Path) -> str | None:
    tables = {
        row[0]
        for row in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
    }
    if schema_version.name not in tables:
        raise Corrupt(
            f"{path} is a database, but not a catalog of begat. Nothing was changed; check the path, restore a backup "
            "of the catalog, or make it anew from the objects (begat rebuild)"
        )
    return connection.execute(select(schema_version.c.version_num)).scalar()
