"""Files and folders: the digest of a file's bytes, and the content digest that a version of a folder would have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from begat.blobs import hash_fd
from begat.files import open_source
from begat.fingerprints.hashing import Budget, Fingerprint, Unknown
from begat.listing import LocalFile
from begat.manifest import Manifest
from begat.model import Entry, StoredFile
from begat.walk import scan

# A folder is listed before it is hashed; between so many names the clock is looked at.
NAMES_BETWEEN = 256


def path_content(path: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of what lies at a path."""
    place = Path(os.path.realpath(path))
    if place.is_dir():
        manifest = Manifest.of(_entries(place, budget))
        how = "the content digest that a version of this folder has"
        return Fingerprint(
            "folder", manifest.digest, f"{manifest.file_count} files", None, how, exact=True
        )
    if place.is_file():
        digest = _digest(place, place.stat().st_size, budget)
        return Fingerprint("file", digest, None, None, "the digest of its bytes", exact=True)
    raise Unknown("no file or folder is there")


def _entries(root: Path, budget: Budget) -> Iterator[Entry]:
    listed = list[tuple[str, Any]]()
    total = 0
    for count, (path, source) in enumerate(scan(root, left_out=_ignored)):
        listed.append((path, source))
        total += source.size_bytes or 0 if isinstance(source, LocalFile) else 0
        if count % NAMES_BETWEEN == 0:
            budget.check_time()
            budget.check_size(total)
    budget.check_size(total)
    for path, source in listed:
        if isinstance(source, LocalFile):
            digest = _digest(Path(source.path), source.size_bytes, budget)
            yield StoredFile(path, source.size_bytes, digest, source.is_executable)
        else:
            yield source


def _digest(path: Path, size_bytes: int, budget: Budget) -> Any:
    budget.spend(size_bytes)
    fd = open_source(path)
    try:
        digest = hash_fd(fd)
        if os.fstat(fd).st_size != size_bytes:
            raise Unknown(f"{path.name} changed while it was read")
        return digest
    finally:
        os.close(fd)


def _ignored(_path: str) -> None:
    """Stores and folders of version control are no part of a version either."""
