"""How content is hashed: streams of bytes within a budget, and facts about them as canonical JSON.

A fingerprint is the digest of facts: what kind of thing it is, its type and shape, and the digests of the streams that
hold its values. Both use BLAKE3 with a key context of their own, so no file and no manifest has such a digest. What
the facts of each kind are is written down in `core/README.md`; they never change, since digests are kept in stores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from begat.identity import Digest
from begat.metadata import canonical_json
from begat.model import Json
from begat.wording import size_text

CONTEXT = "begat fingerprint v1"
# What is hashed, or copied to lie in one piece, before the clock is looked at again.
BLOCK_BYTES = 16 << 20
# Of a list of thousands of samples the parts are not kept, only what they come to.
MOST_PARTS = 1_024
MAX_SCHEMA_CHARACTERS = 2_000


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What an object holds: equal digests mean equal content, in whatever layout and process.

    `kind` is what it is as content (`array`, `table`, `list`, `folder`, ...), `schema` its types in words. Without a
    digest, `how` says why. `exact` is False where what a training reads from the object may be more than was hashed.
    `parts` are the fingerprints of what it is made of: the columns of a table, the tensors of a data set.
    """

    kind: str
    digest: Digest | None
    schema: str | None
    n_rows: int | None
    how: str
    exact: bool
    parts: Mapping[str, Fingerprint] = field(
        default_factory=dict[str, "Fingerprint"], repr=False, compare=False
    )


class Unknown(Exception):
    """The content of an object cannot be known, or not within the budget; says why."""


class Budget:
    """How much may be hashed, and until when."""

    def __init__(self, max_bytes: int, max_seconds: float) -> None:
        self.max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._spent = 0
        self._deadline = time.monotonic() + max_seconds

    def spend(self, size_bytes: int) -> None:
        """Take this much from what is left; `Unknown` if there is not as much, or no time."""
        self._spent += size_bytes
        if self._spent > self.max_bytes:
            raise Unknown(f"it has more than {size_text(self.max_bytes)}, the limit")
        self.check_time()

    def check_size(self, size_bytes: int) -> None:
        """`Unknown` if this much is not left; nothing is taken."""
        if self._spent + size_bytes > self.max_bytes:
            raise Unknown(f"it has more than {size_text(self.max_bytes)}, the limit")

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._deadline

    def check_time(self) -> None:
        """`Unknown` if the time is over."""
        if self.is_late:
            raise Unknown(f"hashing it takes longer than {self._max_seconds:g} s, the limit")


class Stream:
    """The digest of bytes that come in pieces; how they are cut does not matter."""

    def __init__(self, budget: Budget) -> None:
        self._hasher = blake3(derive_key_context=CONTEXT)
        self._budget = budget

    def feed(self, data: Any) -> None:
        """Take in what lies in a buffer, as it is."""
        view = memoryview(data)
        view = view if view.nbytes == 0 else view.cast("B")
        for start in range(0, view.nbytes, BLOCK_BYTES):
            piece = view[start : start + BLOCK_BYTES]
            self._budget.spend(piece.nbytes)
            self._hasher.update(piece)

    @property
    def digest(self) -> Digest:
        """The digest of what was fed."""
        return Digest(f"b3:{self._hasher.hexdigest()}")


def digest_of_facts(facts: Json) -> Digest:
    """The digest of a JSON value; `Unknown` for text that is not Unicode."""
    try:
        text = canonical_json(facts).encode()
    except (UnicodeEncodeError, ValueError) as error:
        raise Unknown("a name in it is no text that can be stored") from error
    return Digest(f"b3:{blake3(text, derive_key_context=CONTEXT).hexdigest()}")


def known(
    kind: str,
    facts: Mapping[str, Json],
    *,
    schema: str | None,
    n_rows: int | None,
    exact: bool = True,
    how: str = "all of it was hashed",
    parts: Mapping[str, Fingerprint] | None = None,
) -> Fingerprint:
    """The fingerprint of these facts."""
    digest = digest_of_facts({"kind": kind, **facts})
    return Fingerprint(
        kind, digest, _short(schema), n_rows, how, exact, dict(parts or {}) if _few(parts) else {}
    )


def unknown(
    kind: str,
    why: str,
    *,
    schema: str | None = None,
    n_rows: int | None = None,
    parts: Mapping[str, Fingerprint] | None = None,
) -> Fingerprint:
    """The fingerprint of what cannot be known."""
    kept = dict(parts or {}) if _few(parts) else {}
    return Fingerprint(kind, None, _short(schema), n_rows, f"not known: {why}", False, kept)


def why_unknown(parts: Iterable[tuple[str, Fingerprint]]) -> str | None:
    """What the first part without a digest says; None if all have one."""
    for name, part in parts:
        if part.digest is None:
            return f"{name}: {part.how.removeprefix('not known: ')}"
    return None


def loaded(name: str) -> Any:
    """A module that this process has imported already, else None: begat imports no framework for its user."""
    return sys.modules.get(name)


def is_a(value: object, module: str, *names: str) -> bool:
    """Whether an object is of one of these classes of a module, subclasses included; its own code is not asked."""
    return is_kind(type(value), module, *names)


def is_kind(kind: type, module: str, *names: str) -> bool:
    """Whether a class is one of these of a module, or a subclass."""
    found = loaded(module)
    known = (getattr(found, name, None) for name in names) if found is not None else ()
    return any(isinstance(one, type) and issubclass(kind, one) for one in known)


def is_exactly(value: object, module: str, *names: str) -> bool:
    """Whether an object is of one of these classes itself, so that nothing of it can mean something else."""
    found = loaded(module)
    return found is not None and any(type(value) is getattr(found, name, None) for name in names)


def blocks(length: int, most: int) -> Iterator[slice]:
    """Slices of at most `most` that cover a length."""
    for start in range(0, length, most):
        yield slice(start, min(start + most, length))


def _few(parts: Mapping[str, Fingerprint] | None) -> bool:
    return len(parts or {}) <= MOST_PARTS


def _short(schema: str | None) -> str | None:
    if schema is None or len(schema) <= MAX_SCHEMA_CHARACTERS:
        return schema
    return f"{schema[: MAX_SCHEMA_CHARACTERS - 3]}..."
