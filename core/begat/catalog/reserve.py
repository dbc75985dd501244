"""Room that is kept for what frees room: a file of real blocks beside the catalog, given up when its disk is full.

A full disk has no room for the transaction either that would let bytes go. File systems keep a share for such a day;
begat keeps this. It is no part of what is stored: without it, all that works is what works on a disk that is not full.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from begat import files

RESERVE_FILE = "reserve"
# Enough for the index that SQLite's connections share, and for the log of a transaction of a few hundred rows.
RESERVE_BYTES = 1 << 20


class Reserve:
    """The reserve of the catalog at `catalog`."""

    def __init__(self, catalog: Path) -> None:
        self.path = catalog.with_name(RESERVE_FILE)
        self.is_spent = False

    def keep(self, beside_bytes: int = 0) -> bool:
        """Have it whole, and so many bytes free beside it; False if the disk is too full for that: it is given up."""
        self.is_spent = not (self._is_held(beside_bytes) or self._is_held(beside_bytes))
        return not self.is_spent

    def _is_held(self, beside_bytes: int) -> bool:
        try:
            files.hold_blocks(self.path, RESERVE_BYTES, beside_bytes=beside_bytes)
            return True
        except OSError:
            # Whatever is the matter with this file, it is not what the caller is about. A file system with a journal
            # gives blocks out again only once their removal is durable, so one attempt after this is not in vain.
            with contextlib.suppress(OSError):
                files.sync_directory(self.path.parent)
            return False
