"""Bytes by digest: stored once, packed, and read back verified.

`BlobWriter` takes the bytes of one log: what the catalog offers already is not stored again, the rest goes into packs
or, for a large new file, into an object of its own. `BlobReader` hands out bytes only after their digest was checked.
"""

from begat.blobs.cutting import CutFile, LargeFile
from begat.blobs.hashing import READ_BYTES, hash_fd
from begat.blobs.index import BlobIndex, recipes_around
from begat.blobs.opened import open_stored
from begat.blobs.reader import BlobReader, other_bytes, verified
from begat.blobs.runs import Buffer
from begat.blobs.writer import SMALL_FILE_BYTES, BlobWriter
from begat.packs import Encoded

__all__ = [
    "READ_BYTES",
    "SMALL_FILE_BYTES",
    "BlobIndex",
    "BlobReader",
    "BlobWriter",
    "Buffer",
    "CutFile",
    "Encoded",
    "LargeFile",
    "hash_fd",
    "open_stored",
    "other_bytes",
    "recipes_around",
    "verified",
]
