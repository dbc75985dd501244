"""Thousands of samples of one form: a list of dicts or tuples of arrays and labels that differ in their values alone.

Read one by one, such a list costs far more in Python than its bytes do in hashing. Here the arrays of one name are laid
side by side for a block of samples, and the text of the facts, which is the same but for the digests in it, is made
once a block. The digests are those that reading one by one gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple, cast

from blake3 import blake3

from begat.fingerprints.hashing import (
    BLOCK_BYTES,
    CONTEXT,
    MAX_SCHEMA_CHARACTERS,
    Budget,
    Fingerprint,
    blocks,
    digest_of_facts,
    known,
    loaded,
)
from begat.identity import Digest
from begat.metadata import canonical_json
from begat.model import Json

BLOCK_SAMPLES = 256
# Larger arrays cost more in hashing than in Python, and they would be copied.
MAX_ARRAY_BYTES = BLOCK_BYTES // BLOCK_SAMPLES
# Wider samples are tables of their own, or lists of numbers.
MOST_COLUMNS = 64
# Stands for a digest in the text of facts.
_MARK = f"b3:{blake3(b'any digest').hexdigest()}"


class Alike(NamedTuple):
    """The digests of values of one form. Values of two blocks are alike if the forms, as text, are equal."""

    form: str
    digests: list[Digest]


def samples_content(
    samples: Sequence[Any], read: Callable[[Any], Fingerprint], budget: Budget
) -> Fingerprint | None:
    """The fingerprint of a list of samples, whose parts are not kept; None if not all are of the form of the first.

    Of the first one alone it is asked how it is read.
    """
    form, first = "", None
    digests: list[Digest] = []
    for block in blocks(len(samples), BLOCK_SAMPLES):
        budget.check_time()
        found = _samples(samples[block], budget)
        if found is None or (first is not None and found.form != form):
            return None
        if first is None:
            form, first = found.form, read(samples[0])
            if found.digests[0] != first.digest:
                return None
        digests += found.digests
    if first is None:
        return None
    numbers = range(min(len(samples), MAX_SCHEMA_CHARACTERS))
    schema = "; ".join(f"{at}: {first.schema}" for at in numbers)
    return known("list", {"parts": [*digests]}, schema=schema, n_rows=first.n_rows)


# --- what holds values ---


def _samples(block: Sequence[Any], budget: Budget) -> Alike | None:
    kind = type(cast("object", block[0]))
    if any(type(sample) is not kind for sample in block):
        return None
    if kind is dict:
        return _dicts(block, budget)
    if kind in (list, tuple):
        return _tuples(block, budget)
    return _values(block, budget)


def _dicts(block: Sequence[dict[Any, Any]], budget: Budget) -> Alike | None:
    names = block[0].keys()
    if set(map(type, chain.from_iterable(block))) != {str}:
        return None
    if any(sample.keys() != names for sample in block):
        return None
    keys = sorted(names)
    facts = {"kind": "dict", "parts": [[name, _MARK] for name in keys]}
    return _of_columns(block, keys, facts, budget)


def _tuples(block: Sequence[Sequence[Any]], budget: Budget) -> Alike | None:
    size = len(block[0])
    if any(len(sample) != size for sample in block):
        return None
    facts = {"kind": "list", "parts": [_MARK] * size}
    return _of_columns(block, range(size), facts, budget)


def _of_columns(
    block: Sequence[Any], keys: Sequence[Any], facts: Mapping[str, Json], budget: Budget
) -> Alike | None:
    text = _text_around(facts, len(keys))
    if text is None or not 0 < len(keys) <= MOST_COLUMNS:
        return None
    columns: list[Alike] = []
    for key in keys:
        column = _values([sample[key] for sample in block], budget)
        if column is None:
            return None
        columns.append(column)
    rows = zip(*(column.digests for column in columns), strict=True)
    form = "\n".join((text, *(column.form for column in columns)))
    return Alike(form, [_of_text(text % row) for row in rows])


# --- values ---


def _values(block: Sequence[Any], budget: Budget) -> Alike | None:
    kind = type(cast("object", block[0]))
    if any(type(value) is not kind for value in block):
        return None
    torch, np = loaded("torch"), loaded("numpy")
    if kind in (bool, int, float, str):
        return _labels(block, kind)
    if torch is not None and kind is torch.Tensor:
        return _tensors(torch, block, budget)
    if np is not None and (kind is np.ndarray or issubclass(kind, np.generic)):
        return _arrays(np, block, budget)
    return None


def _labels(block: Sequence[Any], kind: type[Any]) -> Alike:
    texts = [float.hex(value) if kind is float else str(value) for value in block]
    digests = {
        text: digest_of_facts({"kind": "value", "type": kind.__name__, "value": text})
        for text in set(texts)
    }
    return Alike(kind.__name__, [digests[text] for text in texts])


def _tensors(torch: Any, block: Sequence[Any], budget: Budget) -> Alike | None:
    first = block[0]
    forms = {(one.dtype, one.shape, one.layout, one.device, one.is_neg()) for one in block}
    if len(forms) > 1 or first.layout is not torch.strided or first.device.type != "cpu":
        return None
    if first.is_quantized or first.is_complex() or first.is_neg():
        return None
    if not 0 < first.numel() * first.element_size() <= MAX_ARRAY_BYTES:
        return None
    # As integers of the same size, like a single tensor.
    as_bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    with torch.no_grad():
        rows = torch.stack(block).view(as_bits[first.element_size()]).numpy()
    return _rows(str(first.dtype).removeprefix("torch."), first.shape, rows, budget)


def _arrays(np: Any, block: Sequence[Any], budget: Budget) -> Alike | None:
    first = block[0]
    if len({(one.dtype, one.shape) for one in block}) > 1:
        return None
    if first.dtype.kind not in "biuf" or first.dtype.itemsize > 8:
        return None
    if not 0 < first.nbytes <= MAX_ARRAY_BYTES:
        return None
    return _rows(first.dtype.name, first.shape, np.stack(block), budget)


def _rows(type: str, shape: Sequence[int], rows: Any, budget: Budget) -> Alike | None:
    facts: dict[str, Json] = {"type": type, "shape": list(map(int, shape)), "data": _MARK}
    text = _text_around({"kind": "array", **facts}, 1)
    if text is None:
        return None
    budget.spend(rows.nbytes)
    data = rows.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes()
    size = len(data) // len(rows)
    pieces = (data[at : at + size] for at in range(0, len(data), size))
    return Alike(text, [_of_text(text % _hash(piece)) for piece in pieces])


# --- the text of facts ---


def _text_around(facts: Mapping[str, Json], count: int) -> str | None:
    """The text of facts with `%s` in the place of each mark; None if a name in them looks like one."""
    pieces = canonical_json(facts).replace("%", "%%").split(_MARK)
    return "%s".join(pieces) if len(pieces) == count + 1 else None


def _of_text(text: str) -> Digest:
    return _hash(text.encode())


def _hash(data: bytes) -> Digest:
    return Digest(f"b3:{blake3(data, derive_key_context=CONTEXT).hexdigest()}")
