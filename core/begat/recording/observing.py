"""What a training really reads: versions that begat handed out, and content that is a version's.

An object is asked only for what is stored in it. None of its code runs: no property, no `__getattr__`, no iteration of
a loader (which would consume it, or change the random state), no item of a dataset.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import PurePath
from types import MappingProxyType, MemberDescriptorType
from typing import Any, TypeAlias, cast

from begat import handed_out
from begat.facts import DATA_KEY, data_facts
from begat.fingerprints import MAX_BYTES, MAX_SECONDS, Fingerprint, read
from begat.fingerprints.containers import HOLDERS as HELD_IN
from begat.fingerprints.containers import PLACES, words_of
from begat.fingerprints.hashing import Budget
from begat.identity import Digest
from begat.listeners import tell_inputs_changed
from begat.model import Edge, VersionRecord
from begat.recording.matching import Matching, recognized
from begat.run import Run, RunHome
from begat.version import Version

# Attributes that hold what has attributes of such names as `PLACES`; also Lightning's `_hparams`.
HOLDERS = HELD_IN | {"hparams"}
# Of what nobody trains on.
OTHERS = frozenset(("eval", "predict", "test", "val", "valid", "validation"))

MOST_OF_ONE_ROLE = 8

MOST_OBJECTS = 2_000
MOST_ATTRIBUTES = 1_000
MOST_PARTS = 256
MOST_SAMPLES = 16
MOST_LEVELS = 8

# Called by these names, so that a subclass which iterates in its own way is not asked.
_DICT: Any = dict
_LIST: Any = list
_TUPLE: Any = tuple
_TELLING = (str, PurePath, dict, list, tuple, Version)

# What the attributes of a class tell is looked up once for all its objects.
_OfClasses: TypeAlias = "dict[type, list[tuple[str, Any]]]"


@dataclass(frozen=True, slots=True)
class Observed:
    """The versions that data was found to come from; `mismatch` if others of the same artifact were declared."""

    refs: tuple[str, ...]
    mismatch: str | None


def observe(run: Run, data: object, *, role: str) -> Observed:
    """Record, as detected inputs of a run, the versions that an object's data lies in.

    A version whose content the run has used already gets its own (first) edge marked. Where another version of the same
    artifact was declared, and no declared one of it was found, the declared edge tells so; `mismatch` does so once.
    """
    runs = run.home.catalog.runs
    used: dict[str, Edge] = {}
    for edge in runs.edges_of_run(run.id):
        if edge.kind == "used":
            used.setdefault(edge.version_uid, edge)
    records = run.home.catalog.versions.get_many(used)
    search = _Search(run.home, records)
    found: dict[str, VersionRecord] = {}
    reached = list(_reached(data))
    for place in _places_among(reached):
        version = search.version_at(place)
        if version is not None:
            found[version.uid] = version
    content = read(data, Budget(MAX_BYTES, MAX_SECONDS), reads_paths=not found)
    matching = Matching(run.home, records, used)
    for value in reached:
        known = recognized(run.home, value)
        if known is not None and matching.is_still(value, known[1], content):
            found.setdefault(known[0], search.version_of(known[0]))
    for version in matching.versions_with(content, is_explained=bool(found)):
        found.setdefault(version.uid, version)
    new = [uid for uid in found if uid not in used or not used[uid].is_detected]
    for uid in new:
        runs.use(run.id, uid, requested=None, role=role, declared=False, detected=True)
    if new:
        tell_inputs_changed(run)
    mismatch = _record_mismatch(run, found, used, records) if found else None
    _record_content(run, role, content, [version.ref for version in found.values()])
    return Observed(tuple(version.ref for version in found.values()), mismatch)


def _record_content(run: Run, role: str, content: Fingerprint, refs: list[str]) -> None:
    """Keep what was trained on with the run, also where no version has it; a second content of a role beside it."""
    if content.kind == "value" or (content.digest is None and content.kind == "file"):
        return
    before: Any = run.params.get(DATA_KEY)
    known = cast("dict[str, Any]", before) if isinstance(before, dict) else {}
    if content.digest is None and role in known:
        return  # looked at again, as whatever holds the data: nothing is learnt from that
    facts = data_facts(content, refs)
    names = [role, *(f"{role}-{count}" for count in range(2, MOST_OF_ONE_ROLE + 1))]
    for name in names:
        if known.get(name, facts) == facts:
            if name not in known:
                run.log_params({DATA_KEY: {**known, name: facts}})
            return


def places(data: object) -> Iterator[str | Version]:
    """Where an object says that its data is, nearest first: any text that may be a path, and versions.

    Bounded in depth and number: of a long list the first entries must speak for all.
    """
    return _places_among(_reached(data))


def _places_among(values: Iterable[object]) -> Iterator[str | Version]:
    for value in values:
        # Not isinstance, which asks the object itself for its class.
        kind = type(value)
        if issubclass(kind, str):
            yield str.__str__(cast("str", value))
        elif issubclass(kind, PurePath):
            yield str(value)
        elif issubclass(kind, Version):
            yield cast("Version", value)


def _reached(data: object) -> Iterator[object]:
    """The object and what it holds that may tell more, nearest first."""
    waiting: deque[tuple[object, int, int]] = deque([(data, 0, MOST_PARTS)])
    seen: dict[int, object] = {}
    classes: _OfClasses = {}
    while waiting and len(seen) < MOST_OBJECTS:
        value, level, most = waiting.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value  # kept, or another object might get its id
        yield value
        is_end = issubclass(type(value), str | PurePath | Version)
        if level < MOST_LEVELS and not is_end:
            waiting.extend((part, level + 1, limit) for part, limit in _parts(value, most, classes))


def _parts(value: object, most: int, classes: _OfClasses) -> Iterator[tuple[object, int]]:
    """What an object holds that may tell more, each with how many parts of it are looked at."""
    kind = type(value)
    if issubclass(kind, dict):
        for key, part in islice(_DICT.items(value), most):
            if not words_of(key) & OTHERS:
                yield part, most
    elif issubclass(kind, list | tuple):
        own = _LIST if issubclass(kind, list) else _TUPLE
        for part in islice(own.__iter__(value), most):
            yield part, most
    else:
        for name, part in _stored(value, classes):
            limit = _limit_of(name, part)
            if limit:
                yield part, limit


def _limit_of(name: str, part: object) -> int:
    """How many parts of an attribute's value are looked at; 0 if it does not tell where data is."""
    words = words_of(name)
    if words & OTHERS:
        return 0
    if words & HOLDERS:
        return MOST_PARTS
    return MOST_SAMPLES if issubclass(type(part), _TELLING if words & PLACES else Version) else 0


def _stored(value: object, classes: _OfClasses) -> Iterator[tuple[str, object]]:
    """The attributes that are stored in an object, in its slots and in its classes, by name."""
    own: Any = None
    with contextlib.suppress(AttributeError):  # an object of slots alone
        own = object.__getattribute__(value, "__dict__")
    if not issubclass(type(own), dict | MappingProxyType):
        own = {}
    for name, part in islice(own.items(), MOST_ATTRIBUTES):
        if isinstance(name, str):
            yield name, part
    kind = type(value)
    if kind not in classes:
        classes[kind] = _of_class(kind)
    for name, part in classes[kind]:
        if name in own:
            continue
        if type(part) is not MemberDescriptorType:
            yield name, part
            continue
        with contextlib.suppress(AttributeError):  # a slot that was never filled
            yield name, part.__get__(value)


def _of_class(kind: type) -> list[tuple[str, Any]]:
    """What of a class may tell where the data of its objects is: that of torch's tensors has 700 attributes."""
    found: dict[str, Any] = {}
    for one in kind.__mro__[:-1]:
        space: Any = one.__dict__
        for name, part in islice(space.items(), MOST_ATTRIBUTES):
            if isinstance(name, str):  # any object may be put in as a name
                found.setdefault(name, part)
    return [
        (name, part)
        for name, part in found.items()
        if type(part) is MemberDescriptorType or _limit_of(name, part)
    ]


class _Search:
    """Which version a place belongs to; each version and each content is asked of the catalog once."""

    def __init__(self, home: RunHome, used: Mapping[str, VersionRecord]) -> None:
        self._home = home
        self._used = used
        self._by_uid: dict[str, VersionRecord | None] = {}
        self._by_digest: dict[Digest, VersionRecord | None] = {}

    def version_at(self, place: str | Version) -> VersionRecord | None:
        """The version that was handed out there; a used one of the same content counts as that one."""
        given = self._by_id(place.uid) if isinstance(place, Version) else self._given_at(place)
        if given is not None:
            same = [one for one in self._used.values() if one.digest == given.digest]
            # The very one comes first, then one of its artifact.
            return max(
                same,
                key=lambda one: (one.uid == given.uid, one.artifact_uid == given.artifact_uid),
                default=given,
            )
        if isinstance(place, Version):
            return None
        # Given to another process that has the same cache: the one whose run this one joined, or its parent.
        digest = self._home.cache.digest_at(place)
        return None if digest is None else self._with_content(digest)

    def version_of(self, uid: str) -> VersionRecord:
        """The version with this id, of this store."""
        return self._home.catalog.versions.get(uid)

    def _given_at(self, path: str) -> VersionRecord | None:
        for given in handed_out.find(path):
            if given.store_uid == self._home.catalog.store_uid:
                record = self._by_id(given.version_uid)
                if record is not None and (
                    not (given.is_shared and given.inside) or self._has(record, given.inside)
                ):
                    return record
        return None

    def _has(self, record: VersionRecord, path: str) -> bool:
        """Whether a path is of the version, where other files may lie beside it."""
        entries = self._home.version_of(record).entries
        return any(entry.path == path or entry.path.startswith(f"{path}/") for entry in entries)

    def _by_id(self, uid: str) -> VersionRecord | None:
        if uid not in self._by_uid:
            # A version of another store is not known here.
            self._by_uid[uid] = self._home.catalog.versions.get_many([uid]).get(uid)
        return self._by_uid[uid]

    def _with_content(self, digest: Digest) -> VersionRecord | None:
        if digest not in self._by_digest:
            artifacts = {one.artifact_uid for one in self._used.values()}
            self._by_digest[digest] = max(
                self._home.catalog.versions.find_digest(digest),
                key=lambda one: (
                    one.uid in self._used,
                    one.artifact_uid in artifacts,
                    one.created_at,
                ),
                default=None,
            )
        return self._by_digest[digest]


def _record_mismatch(
    run: Run,
    found: Mapping[str, VersionRecord],
    used: Mapping[str, Edge],
    records: Mapping[str, VersionRecord],
) -> str | None:
    """Note on each declared edge that only other versions of its artifact were found; what was noted now."""
    declared = [records[uid] for uid, edge in used.items() if edge.is_declared]
    fitting = {
        version.artifact_uid
        for version in declared
        if version.uid in found or used[version.uid].is_detected
    }
    told: list[str] = []
    for version in declared:
        edge = used[version.uid]
        others = [one.ref for one in found.values() if one.artifact_uid == version.artifact_uid]
        if not others or version.artifact_uid in fitting or edge.mismatch is not None:
            continue
        asked = f" (as {edge.requested})" if edge.requested not in (None, version.ref) else ""
        text = (
            f"declared {version.ref}{asked}, but the training data comes from {', '.join(others)}"
        )
        run.home.catalog.runs.use(run.id, version.uid, requested=None, mismatch=text)
        told.append(text)
    return "; ".join(told) or None
