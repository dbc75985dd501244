"""What things are known by: content by its digest, versions, runs and events by an id.

A digest is BLAKE3-256, written `b3:` and 64 hexadecimal digits; the prefix is part of the value.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from typing import NewType

from blake3 import blake3

Digest = NewType("Digest", str)

_COUNTER_BITS = 42
_TAIL_BITS = 32
_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62

_lock = threading.Lock()
_last_ms = -1
_counter = 0


class Digests:
    """Many digests, compact: a version of a million files relies on as many blobs."""

    def __init__(self, digests: Iterable[Digest] = ()) -> None:
        self._raw = bytearray()
        self.extend(digests)

    def add(self, digest: Digest) -> None:
        """One more; the same one may come again."""
        self._raw += bytes.fromhex(digest[3:])

    def extend(self, digests: Iterable[Digest]) -> None:
        """Some more."""
        self._raw += bytes.fromhex("".join([digest[3:] for digest in digests]))

    def __len__(self) -> int:
        return len(self._raw) // 32

    def __iter__(self) -> Iterator[Digest]:
        raw = self._raw
        return (Digest(f"b3:{raw[at : at + 32].hex()}") for at in range(0, len(raw), 32))


def digest_of(data: bytes | memoryview) -> Digest:
    """The digest of these bytes: `b3:af1349b9...` for none."""
    return Digest(f"b3:{blake3(data).hexdigest()}")


def new_uid() -> str:
    """A new id that sorts after every id this process made before.

    A UUIDv7 of RFC 9562 in lower case: 48 bits of milliseconds since 1970, then a counter of 42 bits that starts
    at a random place in each millisecond (section 6.2, method 1), then 32 random bits. Uids of other processes sort by
    their clocks only. Safe to call from threads and after a fork.
    """
    global _last_ms, _counter
    with _lock:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > _last_ms:
            _last_ms = now_ms
            # The upper half stays free, so that counting up does not overflow within the millisecond.
            _counter = secrets.randbits(_COUNTER_BITS - 1)
        else:  # the same millisecond, or a clock that was set back
            _counter += 1
            if _counter >> _COUNTER_BITS:
                _last_ms += 1
                _counter = secrets.randbits(_COUNTER_BITS - 1)
        milliseconds, counter = _last_ms, _counter
    low_bits = (counter << _TAIL_BITS) | secrets.randbits(_TAIL_BITS)  # 74 bits: 12 + 62
    high, low = low_bits >> 62, low_bits & ((1 << 62) - 1)
    text = f"{(milliseconds << 80) | _VERSION_7 | (high << 64) | _VARIANT | low:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _start_anew() -> None:
    # A child that went on with its parent's counter could make its parent's next id.
    global _lock, _last_ms
    _lock = threading.Lock()  # another thread of the parent may have held it
    _last_ms = -1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)
