"""What changed between two versions (pure: over their entries)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from begat.model import EmptyDirectory, Entry, RemoteAsset, StoredFile
from begat.paths import path_key

_SHOWN = 10


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """What is in one version and not in the other; entries sorted by path.

    `changed` and `renamed` hold pairs (old, new). A file is renamed if it is gone from one path and its bytes and
    executable bit came up at another; it then counts neither as removed nor as added. The byte counts are of whole
    files: `added_bytes` sums what is added or changed, as it is now; `removed_bytes` what is removed or changed, as it
    was.
    """

    added: tuple[Entry, ...] = ()
    removed: tuple[Entry, ...] = ()
    changed: tuple[tuple[Entry, Entry], ...] = ()
    renamed: tuple[tuple[Entry, Entry], ...] = ()
    unchanged_count: int = 0
    added_bytes: int = field(init=False)
    removed_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        added = sum(
            entry.size_bytes or 0 for entry in (*self.added, *(new for _, new in self.changed))
        )
        removed = sum(
            entry.size_bytes or 0 for entry in (*self.removed, *(old for old, _ in self.changed))
        )
        object.__setattr__(self, "added_bytes", added)
        object.__setattr__(self, "removed_bytes", removed)

    @property
    def is_empty(self) -> bool:
        """True if both versions hold the same."""
        return not (self.added or self.removed or self.changed or self.renamed)

    def summary(self) -> str:
        """One line: `2 added, 1 changed, 7 unchanged (+1204 B, -310 B)`."""
        counts = {
            "added": len(self.added),
            "removed": len(self.removed),
            "changed": len(self.changed),
            "renamed": len(self.renamed),
            "unchanged": self.unchanged_count,
        }
        words = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        if self.is_empty:
            return f"no difference ({words})" if words else "no difference"
        return f"{words} (+{self.added_bytes} B, -{self.removed_bytes} B)"

    def to_dict(self) -> dict[str, Any]:
        """The difference as JSON: the attributes by name, entries as objects."""
        return {
            "added": [_to_dict(entry) for entry in self.added],
            "removed": [_to_dict(entry) for entry in self.removed],
            "changed": [{"old": _to_dict(old), "new": _to_dict(new)} for old, new in self.changed],
            "renamed": [{"old": _to_dict(old), "new": _to_dict(new)} for old, new in self.renamed],
            "unchanged_count": self.unchanged_count,
            "added_bytes": self.added_bytes,
            "removed_bytes": self.removed_bytes,
        }

    def __bool__(self) -> bool:
        return not self.is_empty

    def __repr__(self) -> str:
        lines = [
            *(f"  + {entry.path}" for entry in self.added),
            *(f"  - {entry.path}" for entry in self.removed),
            *(f"  ~ {new.path}" for _, new in self.changed),
            *(f"  > {old.path} -> {new.path}" for old, new in self.renamed),
        ]
        if len(lines) > _SHOWN:
            lines[_SHOWN:] = [f"  ... and {len(lines) - _SHOWN} more"]
        return "\n".join([f"<Diff: {self.summary()}>", *lines])


def diff(old: Sequence[Entry], new: Sequence[Entry]) -> Diff:
    """What changed from `old` to `new`, each sorted by path as a manifest is.

    Metadata of entries does not count. Where several files of equal content are gone and came up, they are paired in
    the order of their paths.
    """
    added: list[Entry] = []
    removed: list[Entry] = []
    changed: list[tuple[Entry, Entry]] = []
    unchanged_count = 0
    at_old = at_new = 0
    while at_old < len(old) and at_new < len(new):
        before, after = old[at_old], new[at_new]
        if before.path == after.path:
            if before == after:
                unchanged_count += 1
            else:
                changed.append((before, after))
            at_old += 1
            at_new += 1
        elif path_key(before.path) < path_key(after.path):
            removed.append(before)
            at_old += 1
        else:
            added.append(after)
            at_new += 1
    removed.extend(old[at_old:])
    added.extend(new[at_new:])
    renamed = _take_renamed(removed, added)
    return Diff(tuple(added), tuple(removed), tuple(changed), renamed, unchanged_count)


def _take_renamed(removed: list[Entry], added: list[Entry]) -> tuple[tuple[Entry, Entry], ...]:
    """Pairs of one content at two paths, taken out of both lists."""
    gone: dict[object, list[Entry]] = {}
    for entry in reversed(removed):  # so that pop() takes the first by path
        key = _content(entry)
        if key is not None:
            gone.setdefault(key, []).append(entry)
    renamed: list[tuple[Entry, Entry]] = []
    for entry in added:
        sources = gone.get(_content(entry))
        if sources:
            renamed.append((sources.pop(), entry))
    old_paths = {old.path for old, _ in renamed}
    new_paths = {new.path for _, new in renamed}
    removed[:] = [entry for entry in removed if entry.path not in old_paths]
    added[:] = [entry for entry in added if entry.path not in new_paths]
    return tuple(renamed)


def _content(entry: Entry) -> object:
    """What an entry is apart from its path, if that says enough to know it again: empty files are all alike."""
    if isinstance(entry, StoredFile) and entry.size_bytes:
        return (entry.digest, entry.is_executable)
    if isinstance(entry, RemoteAsset):
        return (entry.uri, entry.size_bytes, entry.pin)
    return None


def _to_dict(entry: Entry) -> dict[str, Any]:
    out: dict[str, Any] = {"path": entry.path, "kind": entry.kind}
    if isinstance(entry, StoredFile):
        out |= {
            "size_bytes": entry.size_bytes,
            "digest": entry.digest,
            "is_executable": entry.is_executable,
        }
    elif isinstance(entry, RemoteAsset):
        out |= {"uri": entry.uri, "size_bytes": entry.size_bytes, "pin": entry.pin}
    elif not isinstance(entry, EmptyDirectory):
        out |= {"target": entry.target}
    return out
