"""Arrays: of NumPy, torch and JAX, sparse matrices of SciPy, and lists of numbers and words.

The same type, shape and values are the same content, whoever holds them. Values count by their bits: 0.0 and -0.0
differ, and so do two NaN with other payloads.
"""

from __future__ import annotations

import sys
from array import array as packed
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from begat.fingerprints.hashing import (
    BLOCK_BYTES,
    Budget,
    Fingerprint,
    Stream,
    Unknown,
    blocks,
    is_a,
    is_exactly,
    known,
    loaded,
)

# Copied from a device for being hashed: enough for most data that is kept there, little beside a training step.
MAX_DEVICE_BYTES = 512 << 20
BLOCK_VALUES = 65_536
# Kinds of NumPy types whose bytes are all value: not object, and not long double, which has padding.
_PLAIN = "biufcmMUSV"
_MAX_FLOAT_BYTES = {"f": 8, "c": 16}
_MISSING = ("NoneType", "NAType", "NaTType")
_TAGS = {"str": b"s", "int": b"i", "float": b"f", "bool": b"b", "bytes": b"y"}


def array_content(
    type: str,
    shape: Sequence[int],
    budget: Budget,
    data: Any,
    *,
    nulls: Any = None,
    exact: bool = True,
    more: dict[str, Any] | None = None,
) -> Fingerprint:
    """The fingerprint of NumPy data under a type's name; `nulls` are positions, and `data` then leaves them out."""
    stream = Stream(budget)
    feed_numpy(stream, data)
    facts: dict[str, Any] = {"type": type, "shape": list(map(int, shape)), "data": stream.digest}
    if nulls is not None and len(nulls):
        facts["nulls"] = positions(nulls, budget)
    return finished_array(facts, exact=exact, more=more)


def finished_array(
    facts: dict[str, Any], *, exact: bool = True, more: dict[str, Any] | None = None
) -> Fingerprint:
    """The fingerprint of an array's facts: `type`, `shape`, `data`, and where they are needed `nulls`, `lengths`."""
    shape = facts["shape"]
    return known(
        "array",
        {**facts, **(more or {})},
        schema=f"{facts['type']} ({', '.join(map(str, shape))})",
        n_rows=shape[0] if shape else None,
        exact=exact,
        how="all of it was hashed" if exact else "a class of its own may mean more than its values",
    )


def positions(where: Any, budget: Budget) -> str:
    """The digest of positions, as 64-bit integers."""
    stream = Stream(budget)
    feed_numpy(stream, loaded("numpy").asarray(where, dtype="<i8"))
    return stream.digest


# --- NumPy ---


def numpy_array(array: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of an ndarray."""
    np = loaded("numpy")
    if is_a(array, "numpy.ma", "MaskedArray"):
        mask = np.ma.getmaskarray(array)
        shown = numpy_array(np.where(mask, np.zeros((), array.dtype), array.data), budget)
        hidden = numpy_array(mask, budget)
        facts = {"type": "masked", "shape": list(array.shape), "data": shown.digest}
        return finished_array(facts, more={"mask": hidden.digest})
    is_plain = is_exactly(array, "numpy", "ndarray", "memmap", "matrix", "recarray")
    array = array.view(np.ndarray)
    dtype = array.dtype
    budget.check_size(array.nbytes)
    if dtype.names is not None:
        fields = [[name, numpy_array(array[name], budget).digest] for name in dtype.names]
        facts = {"type": "record", "shape": list(array.shape), "fields": fields}
        return finished_array(facts, exact=is_plain)
    if dtype.kind in "OT":
        return values_content(array.reshape(-1).tolist(), array.shape, budget, exact=is_plain)
    if dtype.kind not in _PLAIN or dtype.itemsize > _MAX_FLOAT_BYTES.get(
        dtype.kind, dtype.itemsize
    ):
        raise Unknown(f"values of the type {dtype.name} have no form that is the same everywhere")
    return array_content(dtype.name, array.shape, budget, array, exact=is_plain)


def numpy_scalar(value: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of one value of NumPy: that of an array without dimensions."""
    return numpy_array(loaded("numpy").asarray(value), budget)


def feed_numpy(stream: Stream, array: Any) -> None:
    """Feed the values of an array: little-endian, in C order, without a copy where they lie so."""
    if array.nbytes == 0:
        return
    np = loaded("numpy")
    is_ready = array.flags.c_contiguous and array.dtype == array.dtype.newbyteorder("<")
    if is_ready or array.nbytes <= BLOCK_BYTES:
        if not is_ready:
            array = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        stream.feed(array.reshape(-1).view(np.uint8))
        return
    rows = max(1, BLOCK_BYTES * len(array) // array.nbytes)
    for block in blocks(len(array), rows):
        feed_numpy(stream, array[block.start] if rows == 1 else array[block])


# --- torch, JAX, SciPy ---


def torch_tensor(tensor: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a tensor; what is on a device is copied, if it is not too much."""
    torch = loaded("torch")
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise Unknown(f"a tensor with the layout {tensor.layout} on {tensor.device} is not read")
    size_bytes = tensor.numel() * tensor.element_size()
    budget.check_size(size_bytes)
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    name, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    with torch.no_grad():
        values = tensor.detach()
        if not is_plain:
            values = values.as_subclass(torch.Tensor)
        if values.device.type != "cpu":
            if size_bytes > MAX_DEVICE_BYTES:
                raise Unknown("it is large and on a device, from where it would have to be copied")
            values = values.cpu()
        values = values.resolve_conj().resolve_neg()
        if values.is_complex():
            values = torch.view_as_real(values)
        # As integers of the same size: NumPy does not know all of torch's types, and bits are what is hashed.
        as_bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        values = values.view(as_bits[values.element_size()]).numpy()
    return array_content(name, shape, budget, values, exact=is_plain)


def jax_array(array: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a JAX array, if all of it is here."""
    budget.check_size(array.nbytes)
    if not array.is_fully_addressable:
        raise Unknown("parts of it are on other hosts")
    return numpy_array(loaded("numpy").asarray(array), budget)


def sparse_matrix(matrix: Any, budget: Budget) -> Fingerprint:
    """The fingerprint of a sparse matrix of SciPy in whatever format: its values that are not 0, by row and column."""
    if matrix.ndim != 2:
        raise Unknown("sparse arrays are read with two dimensions only")
    np = loaded("numpy")
    rows = matrix.tocsr()
    if not rows.has_canonical_format or (rows.data == 0).any():
        rows = rows.copy() if rows is matrix else rows
        rows.sum_duplicates()
        rows.eliminate_zeros()
    inner = {
        "data": numpy_array(rows.data, budget),
        "columns": numpy_array(rows.indices.astype(np.int64), budget),
        "rows": numpy_array(rows.indptr.astype(np.int64), budget),
    }
    shape = list(map(int, matrix.shape))
    return known(
        "sparse",
        {"shape": shape, **{name: part.digest for name, part in inner.items()}},
        schema=f"sparse {rows.data.dtype.name} ({shape[0]}, {shape[1]})",
        n_rows=shape[0],
    )


# --- values of Python ---


def values_content(
    values: Sequence[Any], shape: Sequence[int], budget: Budget, *, exact: bool = True
) -> Fingerprint:
    """The fingerprint of numbers, words and missing values of Python, flat, as an array of this shape.

    Words alone are an array of strings, in which None, NaN and pandas' NA are all missing. Numbers of one type are
    the array that NumPy makes of them. In a mixture each value is told apart.
    """
    size = list(map(int, shape))
    kinds = {kind: _word_for(kind) for kind in set(map(type, values))}
    words = set(kinds.values())
    if len(words) == 1 and (plain := _packed(values, *words)) is not None:
        stream = Stream(budget)
        stream.feed(plain[1])
        facts = {"type": plain[0], "shape": size, "data": stream.digest}
        return finished_array(facts, exact=exact)
    is_missing = _missing_by(kinds)
    if "float" in words and all(is_missing(value) for value in values if isinstance(value, float)):
        words.remove("float")
    text = words - {"missing"}
    name = "binary" if text == {"bytes"} else "string" if text <= {"str"} else "mixed"
    if name == "mixed":
        is_missing = _missing_by({kind: word for kind, word in kinds.items() if word != "float"})
    data, lengths, nulls = Stream(budget), Stream(budget), packed("q")
    for block in blocks(len(values), BLOCK_VALUES):
        part = values[block]
        if len(kinds) > 1 or "missing" in words:
            nulls.extend(at for at, value in enumerate(part, block.start) if is_missing(value))
            part = [value for value in part if not is_missing(value)]
        texts = [_bytes_of(value, kinds[type(value)], is_mixed=name == "mixed") for value in part]
        lengths.feed(_little(packed("q", map(len, texts))))
        data.feed(b"".join(texts))
    facts = {"type": name, "shape": size, "data": data.digest, "lengths": lengths.digest}
    if nulls:
        stream = Stream(budget)
        stream.feed(_little(nulls))
        facts["nulls"] = stream.digest
    return finished_array(facts, exact=exact)


def _word_for(kind: type) -> str:
    for base, word in ((str, "str"), (bytes, "bytes"), (float, "float")):
        if issubclass(kind, base):
            return word
    if kind in (bool, int):
        return kind.__name__
    if kind.__name__ in _MISSING:
        return "missing"
    raise Unknown(f"it holds values of the type {kind.__name__}, whose content is not known")


def _missing_by(kinds: Mapping[type, str]) -> Callable[[Any], bool]:
    absent = {kind for kind, word in kinds.items() if word == "missing"}
    floats = {kind for kind, word in kinds.items() if word == "float"}
    return lambda value: (
        type(value) in absent or (type(value) in floats and bool(value != value))  # NaN
    )


def _packed(values: Sequence[Any], word: str) -> tuple[str, Any] | None:
    """The name of a type of NumPy and the bytes of values that all are of it; None if they are not."""
    if word == "bool":
        return "bool", bytes(values)
    try:
        if word == "int":
            return "int64", _little(packed("q", values))
        if word == "float":
            return "float64", _little(packed("d", values))
    except OverflowError:
        pass
    return None


def _little(values: packed[Any]) -> packed[Any]:
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _bytes_of(value: Any, word: str, *, is_mixed: bool) -> bytes:
    if word == "str":
        data = str.encode(value, "utf-8", "surrogatepass")
    elif word == "bytes":
        data = bytes(value)
    elif word == "float":
        data = float.hex(value).encode()
    else:
        data = str(int(value)).encode()
    return _TAGS[word] + data if is_mixed else data
