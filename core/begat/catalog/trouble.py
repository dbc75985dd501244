"""SQLite's errors in the words of the tree."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

import msgspec
from sqlalchemy.exc import DBAPIError

from begat.errors import (
    AccessDenied,
    BegatError,
    CatalogBusy,
    Corrupt,
    ReadOnly,
    StoreFull,
    StoreUnavailable,
)
from begat.files import disk_of, lacks_names

BUSY_WAIT_S = 60.0  # how long a transaction waits for other processes before it gives up
_ODD = ("no such table", "no such column", "no such index", "unsupported file format")
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


@contextlib.contextmanager
def told_as(what: str, name: str) -> Generator[None]:
    """Errors of the database inside the block leave it as errors of our tree."""
    try:
        yield
    except DBAPIError as error:
        known = translated(error.orig, what, name)
        if known is None:
            raise
        raise known from error
    except sqlite3.Error as error:
        known = translated(error, what, name)
        if known is None:
            raise
        raise known from error
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        # SQLite quoted a damaged name in its own error, or what was JSON is none any more.
        raise _damaged(what, name, error) from error


def translated(error: BaseException | None, what: str, name: str) -> BegatError | None:
    """The error of our tree for one of SQLite; None where it shows a mistake in begat itself."""
    code = code_of(error)
    safe = "Nothing that was stored before is lost"
    if code in BUSY:
        return busy(what, name)
    if code == sqlite3.SQLITE_READONLY:
        return ReadOnly(f"{what} failed: the catalog {name} cannot be written ({error}). {safe}")
    if lacks_index(error) or code == sqlite3.SQLITE_FULL:
        return StoreFull(
            f"{what} failed: no space is left for the catalog {name}. {safe}; {how_to_free(Path(name))}"
        )
    if code == sqlite3.SQLITE_CANTOPEN and lacks_names(Path(name)):
        return StoreFull(
            f"{what} failed: beside the catalog {name} no file can be made, though there may be space: the disk "
            f"{disk_of(Path(name))} holds as many as it can (df -i). {safe}; remove some of its files and try again"
        )
    if code in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
        return AccessDenied(f"{what} failed: access to the catalog {name} is denied. {safe}")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM):
        return StoreUnavailable(
            f"{what} failed: {error} ({name}). {safe}; look at the disk and try again"
        )
    # Python's own error, without a code of SQLite, for a text with a flipped bit in it.
    is_garbled = code == 0 and "decode to UTF-8" in str(error)
    # Or of SQLite, where a bit of the header flipped, or of a name: what begat asks for is always the same.
    is_garbled |= code == sqlite3.SQLITE_ERROR and any(odd in str(error) for odd in _ODD)
    if is_garbled or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(what, name, error)
    return None


def how_to_free(path: Path) -> str:
    """What to do where the disk that holds a part of a store is full."""
    return f"free some space on {disk_of(path)} (begat gc --delete removes what no version needs)"


def lacks_index(error: BaseException | None) -> bool:
    """Whether SQLite had no room for the file that its readers and writers share: only a full disk keeps it small."""
    return getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE


def _damaged(what: str, name: str, error: BaseException | None) -> Corrupt:
    return Corrupt(
        f"{what} failed: the catalog {name} is damaged ({error}). The objects are not touched; "
        "restore a backup of the catalog, or make it anew from the objects (begat rebuild)"
    )


def busy(what: str, name: str) -> CatalogBusy:
    return CatalogBusy(
        f"{what} failed: other processes hold the catalog {name} for longer than {BUSY_WAIT_S:.0f} s. "
        "Nothing was changed; try again"
    )


def code_of(error: BaseException | None) -> int:
    """What SQLite says is the matter; 0 if it was not SQLite that said something."""
    # The low byte is the primary code; what is above it tells SQLite's authors where it happened.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
