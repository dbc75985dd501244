"""What holds other data: lists and dicts, torch's data sets and loaders, and data sets of the user's own.

Of the user's own only what is stored in the object is looked at, and none of its code runs. What it does with that is
not known, so such a fingerprint is never exact.
"""

from __future__ import annotations

import os
import re
from array import array as packed
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any, TypeAlias, cast

from begat.fingerprints.arrays import feed_numpy, values_content
from begat.fingerprints.folders import path_content
from begat.fingerprints.hashing import (
    MOST_PARTS,
    Budget,
    Fingerprint,
    Stream,
    Unknown,
    is_a,
    is_exactly,
    is_kind,
    known,
    loaded,
    unknown,
    why_unknown,
)
from begat.fingerprints.samples import samples_content

MOST_LEVELS = 16
MOST_ATTRIBUTES = 1_000
# Words in the names of attributes that tell where data is: `root`, `data_dir`, `train_files`, `_csv_path`.
PLACES = frozenset(
    (
        *("dir", "dirs", "directory", "file", "files", "filename", "filenames", "filepath"),
        *("filepaths", "folder", "folders", "imgs", "path", "paths", "root", "samples"),
    )
)
# Of attributes that hold what has such attributes.
HOLDERS = frozenset(("dataset", "datasets"))
# Kinds of what a data set may keep its data in.
CONTENT = frozenset(("array", "dict", "list", "sparse", "table", "torch"))

_TORCH = "torch.utils.data"
_OWN_SETS = ("TensorDataset", "Subset", "ConcatDataset", "StackDataset")
PLAIN = (type(None), bool, int, float, str, bytes)
_WORD = re.compile(r"[a-z]+")
# Called by these names, so that a subclass which iterates in its own way is not asked.
_DICT: Any = dict
_LIST: Any = list
_TUPLE: Any = tuple

Way: TypeAlias = "tuple[str, Callable[[Any, Reader], Fingerprint]]"


class Reader:
    """Reads objects that may hold others, within one budget; what fails is unknown and raises nothing."""

    def __init__(
        self, budget: Budget, way_of: Callable[[type], Way], *, reads_paths: bool = True
    ) -> None:
        self.budget = budget
        self.reads_paths = reads_paths
        self._way_of = way_of
        self._ways: dict[type, Way] = {}
        self._level = 0

    def way_of(self, value: object) -> Way:
        """What kind of content an object is, and how it is read; by its class alone."""
        kind = type(value)
        if kind not in self._ways:
            self._ways[kind] = self._way_of(kind)
        return self._ways[kind]

    def read(self, value: object) -> Fingerprint:
        """The fingerprint of an object."""
        kind, read = self.way_of(value)
        return self.guarded(kind, lambda: read(value, self))

    def read_path(self, path: str | PurePath) -> Fingerprint:
        """The fingerprint of a file or folder."""
        if not self.reads_paths:
            raise Unknown("its files were not read")
        return path_content(path, self.budget)

    def guarded(self, kind: str, read: Callable[[], Fingerprint]) -> Fingerprint:
        """What this gives, or a fingerprint that says why it is unknown."""
        if self._level >= MOST_LEVELS:
            return unknown(kind, f"it is nested deeper than {MOST_LEVELS} levels")
        self._level += 1
        try:
            self.budget.check_time()
            return read()
        except Unknown as why:
            return unknown(kind, str(why))
        except Exception as error:  # noqa: BLE001 - code of other libraries, on whatever a user made
            return unknown(kind, f"reading it failed: {type(error).__name__}")
        finally:
            self._level -= 1


# --- of Python ---


def plain_value(value: Any, reader: Reader) -> Fingerprint:
    """The fingerprint of None, a number, a word or bytes, as part of something."""
    if isinstance(value, bytes):
        stream = Stream(reader.budget)
        stream.feed(value)
        facts: dict[str, Any] = {"type": "bytes", "data": stream.digest}
    else:
        text = float.hex(value) if isinstance(value, float) else str(value)
        facts = {"type": type(value).__name__, "value": text}
    return known("value", facts, schema=facts["type"], n_rows=None)


def items(value: Any, reader: Reader) -> Fingerprint:
    """The fingerprint of a list or tuple: of numbers and words an array, else its parts in order."""
    held = list((_LIST if issubclass(type(value), list) else _TUPLE).__iter__(value))
    if held and all(type(one) in PLAIN for one in held):
        return values_content(held, (len(held),), reader.budget)
    if len(held) > MOST_PARTS:
        alike = samples_content(held, reader.read, reader.budget)
        if alike is not None:
            return alike
    return several(held, reader)


def several(held: Iterable[Any], reader: Reader, *, kind: str = "list") -> Fingerprint:
    """The fingerprint of parts in their order."""
    parts = dict(_read_each(((str(at), one) for at, one in enumerate(held)), reader))
    rows = {part.n_rows for part in parts.values()}
    n_rows = rows.pop() if len(rows) == 1 else len(parts)
    if kind == "concat":
        counts = [part.n_rows for part in parts.values() if part.n_rows is not None]
        n_rows = sum(counts) if len(counts) == len(parts) else None
    facts = {"parts": [part.digest for part in parts.values()]}
    return _of_parts(kind, facts, parts, n_rows)


def mapping(value: Any, reader: Reader) -> Fingerprint:
    """The fingerprint of a dict: its parts by name, in whatever order."""
    held = dict[Any, Any](_DICT.items(value))
    if not all(type(key) in (str, int) for key in held):
        raise Unknown("its keys are neither words nor numbers")
    names = sorted(held, key=lambda key: (type(key).__name__, key))
    parts = dict(_read_each(((str(name), held[name]) for name in names), reader))
    rows = {part.n_rows for part in parts.values() if part.n_rows is not None}
    digests = [part.digest for part in parts.values()]
    facts = {"parts": [list(pair) for pair in zip(names, digests, strict=False)]}
    return _of_parts("dict", facts, parts, rows.pop() if len(rows) == 1 else None)


def _read_each(
    held: Iterable[tuple[str, Any]], reader: Reader
) -> Iterator[tuple[str, Fingerprint]]:
    for name, one in held:
        reader.budget.check_time()  # else a list of a million would be gone through for nothing
        yield name, reader.read(one)


def _of_parts(
    kind: str,
    facts: Mapping[str, Any],
    parts: Mapping[str, Fingerprint],
    n_rows: int | None,
    *,
    exact: bool = True,
) -> Fingerprint:
    schema = "; ".join(f"{name}: {part.schema or part.kind}" for name, part in parts.items())
    why = why_unknown(parts.items())
    if why is not None:
        return unknown(kind, why, schema=schema, n_rows=n_rows, parts=parts)
    exact = exact and all(part.exact for part in parts.values())
    how = "all of it was hashed" if exact else "what is stored in it was hashed"
    return known(kind, facts, schema=schema, n_rows=n_rows, exact=exact, how=how, parts=parts)


# --- of torch ---


def is_of_torch(kind: type) -> bool:
    """Whether a class is one of torch's own data sets and loaders, whose content is known."""
    return is_kind(kind, _TORCH, *_OWN_SETS, "DataLoader")


def of_torch(value: Any, reader: Reader) -> Fingerprint:
    """The fingerprint of one of torch's own data sets; a loader's is that of its data set."""
    stored = cast("dict[str, Any]", vars(value))
    if is_a(value, _TORCH, "DataLoader"):
        return _loader(stored, reader)
    if is_a(value, _TORCH, "TensorDataset"):
        found = several(stored["tensors"], reader)
    elif is_a(value, _TORCH, "Subset"):
        found = _subset(stored["dataset"], stored["indices"], reader)
    elif is_a(value, _TORCH, "ConcatDataset"):
        found = several(stored["datasets"], reader, kind="concat")
    else:
        found = reader.read(stored["datasets"])
    if found.exact and not is_exactly(value, _TORCH, *_OWN_SETS):
        how = "what is stored in it was hashed; its class may do more"
        return replace(found, exact=False, how=how)
    return found


def _loader(stored: Mapping[str, Any], reader: Reader) -> Fingerprint:
    found = reader.read(stored["dataset"])
    takes_all = is_exactly(
        stored.get("sampler"), _TORCH, "SequentialSampler", "RandomSampler"
    ) or is_exactly(stored.get("sampler"), f"{_TORCH}.distributed", "DistributedSampler")
    if found.digest is None or takes_all:
        return found
    return replace(
        found, exact=False, how="its data set was hashed; its sampler may leave out some"
    )


def _subset(dataset: Any, indices: Any, reader: Reader) -> Fingerprint:
    base = reader.read(dataset)
    chosen = Stream(reader.budget)
    np = loaded("numpy")
    if np is None:
        chosen.feed(packed("q", indices))
    else:
        feed_numpy(chosen, np.asarray(indices, dtype="<i8"))
    facts = {"of": base.digest, "indices": chosen.digest}
    return _of_parts("subset", facts, {"of": base}, len(indices))


# --- of the user ---


def map_style(value: Any, reader: Reader) -> Fingerprint:
    """The fingerprint of a data set of the user's own, by what is stored in it; never exact."""
    stored = _stored(value)
    found: dict[str, Fingerprint] = {}
    has_data = False
    for name, held in stored.items():
        kind, _ = reader.way_of(held)
        is_loose = kind in ("list", "dict")
        if is_loose and words_of(name) & PLACES:
            continue  # where files are is not what is in them
        if kind in CONTENT or (HOLDERS & words_of(name) and kind not in ("value", "file")):
            part = reader.read(held)
            has_data = has_data or not is_loose
            # A list of callbacks, say, is nothing that is trained on.
            if part.digest is not None or not is_loose:
                found[name] = part
    # Else what was left out would depend on how quick the machine is.
    reader.budget.check_time()
    reader.budget.check_size(0)
    if not has_data:  # but names and labels, say
        found |= _at_places(stored, reader)
    if not found:
        raise Unknown(f"nothing that is stored in a {type(value).__name__} tells what it holds")
    facts = {"parts": [[name, part.digest] for name, part in sorted(found.items())]}
    rows = {part.n_rows for part in found.values() if part.n_rows is not None}
    n_rows = rows.pop() if len(rows) == 1 else None
    return _of_parts("dataset", facts, dict(sorted(found.items())), n_rows, exact=False)


def words_of(name: object) -> set[str]:
    """The words in the name of an attribute."""
    return set(_WORD.findall(name.lower())) if isinstance(name, str) else set()


def _stored(value: Any) -> dict[str, Any]:
    try:
        own: Any = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    if type(own) is not dict:
        return {}
    held = list(cast("dict[Any, Any]", own).items())[:MOST_ATTRIBUTES]
    return {name: part for name, part in held if isinstance(name, str)}


def _at_places(stored: Mapping[str, Any], reader: Reader) -> dict[str, Fingerprint]:
    found: dict[str, Fingerprint] = {}
    for name, held in stored.items():
        if words_of(name) & PLACES and issubclass(type(held), str | PurePath):
            if os.path.exists(held):
                found[name] = reader.guarded("file", lambda held=held: reader.read_path(held))
    return found


# --- of others ---


def loader_or_stream(value: Any, reader: Reader) -> Fingerprint:
    """The fingerprint of the data set that a loader holds; what can only be iterated is not."""
    held = _stored(value).get("dataset")
    if held is None or is_a(value, _TORCH, "IterableDataset"):
        raise Unknown(f"{type(value).__name__} would have to be read to its end")
    found = reader.read(held)
    if found.digest is None:
        return found
    return replace(found, exact=False, how="its data set was hashed; the loader may leave out some")


def strange(value: Any, _reader: Reader) -> Fingerprint:
    """What any other object comes to."""
    raise Unknown(f"content of the class {type(value).__name__} is not known")
