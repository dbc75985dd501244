"""Fingerprints of arrays, data sets and folders: equal content has one digest, and any change of it another."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    TensorDataset,
    random_split,
)

import begat
from begat import fingerprint
from content import are_different, are_same, digest

TYPES = ["bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64", "complex64"]


@st.composite
def arrays(draw: st.DrawFn) -> Any:
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    type = draw(st.sampled_from(TYPES))
    seed = draw(st.integers(0, 2**32 - 1))
    bits = np.random.default_rng(seed).integers(0, 2, size=(*shape, 16), dtype="u1")
    return np.asarray(bits.sum(axis=-1) * 3).astype(type).reshape(shape)


# --- arrays ---


@given(arrays())
def test_an_array_is_the_same_in_any_layout(array: Any) -> None:
    wide = np.repeat(array[..., None], 2, axis=-1)
    are_same(
        array,
        array.copy(order="F"),
        array.astype(array.dtype.newbyteorder(">")),
        wide[..., 0],
        np.flip(np.flip(array).copy()) if array.ndim else array,
        torch.from_numpy(array.copy()),
    )


@given(arrays(), st.data())
def test_an_array_with_one_changed_value_is_another(array: Any, data: st.DataObject) -> None:
    assume(array.size)
    at = data.draw(st.integers(0, array.size - 1))
    changed = array.copy()
    changed.flat[at] = not changed.flat[at] if array.dtype == bool else changed.flat[at] + 1
    are_different(array, changed)


@given(arrays(), st.sampled_from(TYPES))
def test_an_array_of_another_type_or_shape_is_another(array: Any, other: str) -> None:
    assume(array.dtype != other)
    are_different(array, array.real.astype(other), array[None])


def test_large_arrays_are_hashed_in_pieces_that_leave_no_trace() -> None:
    array = np.random.default_rng(0).random((301, 500, 100))
    are_same(array, np.asfortranarray(array), np.concatenate([array, array])[:301])
    are_same(array, array.transpose(2, 1, 0).copy().transpose(2, 1, 0))
    changed = np.asfortranarray(array)
    changed[-1, -1, -1] += 1
    are_different(array, changed)


JAX_TYPES = ["int32", "float32", "uint8", "bool", "bfloat16", "float16"]


def test_numpy_torch_and_jax_hold_the_same_arrays() -> None:
    # In a process of its own: JAX warns of every fork in one that has loaded it, and other tests fork.
    code = f"""
import sys; sys.path[:0] = {[path for path in sys.path if path]!r}
import jax, jax.numpy as jnp, numpy as np, begat
for type in {JAX_TYPES!r}:
    held = jnp.arange(6).reshape(2, 3).astype(type)
    assert begat.fingerprint(held) == begat.fingerprint(np.asarray(held))
    print(begat.fingerprint(held).digest)
traced = []
jax.jit(lambda x: traced.append(begat.fingerprint(x).digest) or x)(held)
print(traced, begat.fingerprint(jax.random.key(0)).digest)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *of_jax, unknown = told.stdout.splitlines()
    rows = torch.arange(6).reshape(2, 3)
    assert of_jax == [digest(rows.to(getattr(torch, type))) for type in JAX_TYPES]
    assert unknown == "[None] None"


def test_tensors_of_torch_of_all_kinds() -> None:
    t = torch.arange(6.0).reshape(2, 3)
    are_same(t, t.clone().requires_grad_(), torch.nn.Parameter(t), t.numpy())
    z = torch.complex(t, t)
    are_same(z.conj(), z.conj().resolve_conj(), z.numpy().conj())
    assert fingerprint(t.to("meta")).digest is None
    assert fingerprint(t.to_sparse()).digest is None
    are_different(t, t.half(), t.double(), t.bfloat16())


def test_bits_decide_about_zero_and_nan() -> None:
    # Documented: what has other bits is other content.
    are_different(np.array([0.0]), np.array([-0.0]))
    quiet, other = np.array([0x7FF8 << 48, (0x7FF8 << 48) + 1], dtype="u8").view("f8")
    are_different(np.array([quiet]), np.array([other]))
    are_same(np.array([np.nan]), np.array([quiet]))


def test_arrays_of_words_records_and_masks() -> None:
    are_same(["a", "b"], np.array(["a", "b"], dtype=object), pa.array(["a", "b"]))
    records = np.zeros(3, dtype=np.dtype([("a", "i1"), ("b", "f8"), ("c", "O")], align=True))
    records["c"] = "x"
    are_same(records, records[::-1])
    renamed = records.astype(np.dtype([("a", "i1"), ("b", "f8"), ("d", "O")], align=True))
    are_different(records, renamed)
    masked = np.ma.masked_array([1, 2, 3], [False, True, False])
    are_same(masked, np.ma.masked_array([1, 9, 3], [False, True, False]))
    are_different(masked, np.ma.masked_array([1, 2, 3], [False, False, True]), np.array([1, 2, 3]))


def test_padding_between_the_fields_of_a_record_is_no_content() -> None:
    layout = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    zeros = np.frombuffer(bytes(layout.itemsize * 2), layout)
    dirty = np.frombuffer(b"\0\xff" + bytes(layout.itemsize * 2 - 2), layout)
    are_same(zeros, dirty)


@given(st.lists(st.none() | st.text(max_size=5) | st.just(float("nan")), max_size=20))
def test_words_are_the_same_in_python_numpy_pandas_and_arrow(words: list[Any]) -> None:
    text = [word if isinstance(word, str) else None for word in words]
    values = np.array([*words, None], dtype=object)[:-1]
    try:
        of_arrow = pa.array(text, pa.string())
    except UnicodeEncodeError:
        return
    middle = pa.array(["z", *text, None], pa.large_string())[1 : len(text) + 1]
    parts = pa.chunked_array([of_arrow[:2], of_arrow[2:]])
    are_same(of_arrow, middle, parts, of_arrow.cast("string_view"))
    if any(isinstance(word, str) for word in words):
        of_pandas = [pd.array(text, dtype="string")]
        # Before pandas 3 "str" is numpy's, which has no None.
        if isinstance(pd.api.types.pandas_dtype("str"), pd.StringDtype):
            of_pandas.append(pd.array(text, dtype="str"))
        are_same(words, values, of_arrow, *of_pandas)


def test_lists_of_numbers_are_the_arrays_that_numpy_makes_of_them() -> None:
    are_same([1, 2, 3], (1, 2, 3), np.array([1, 2, 3]), pa.array([1, 2, 3]))
    are_same([1.5, 2.0], np.array([1.5, 2.0]))
    are_same([True, False], np.array([True, False]))
    are_different([1, 2], [1.0, 2.0], [True, False], ["1", "2"], [1, "2"], [1, 2.0], [2**70, 1])
    are_different(["ab", "c"], ["a", "bc"], ["abc"], [b"ab", b"c"])
    are_different(["a", None], [None, "a"], ["a"], ["a", ""])


# --- sparse ---


def test_a_sparse_matrix_is_the_same_in_any_format() -> None:
    values = np.random.default_rng(0).integers(0, 3, (30, 20)).astype(float)
    matrix = scipy.sparse.csr_matrix(values)
    shuffled = matrix.tocoo()
    order = np.random.default_rng(0).permutation(shuffled.nnz)
    halves = [shuffled.data[order] / 2] * 2
    twice = scipy.sparse.coo_matrix(
        (np.concatenate(halves), [np.tile(one[order], 2) for one in (shuffled.row, shuffled.col)]),
        shape=matrix.shape,
    )
    held = matrix.copy()
    held.data[0], was = 0.0, held.data[0]
    before = held.data.tolist()
    are_different(matrix, held)
    assert held.data.tolist() == before  # the explicit zero of the user's own stays
    held.data[0] = was
    are_same(matrix, held, matrix.tocsc(), matrix.tocoo(), scipy.sparse.csr_array(matrix), twice)
    are_different(matrix, matrix.astype("f4"), matrix.T, matrix[:-1])


# --- torch's data sets ---


def test_torch_data_sets_are_their_tensors() -> None:
    x: Any = torch.rand(10, 3)
    y: Any = torch.arange(10)
    data = TensorDataset(x, y)
    are_same(data, (x, y), [x.numpy(), y.numpy()], StackDataset(x, y), DataLoader(data))
    found = fingerprint(data)
    assert (found.n_rows, found.exact) == (10, True)
    assert [part.digest for part in found.parts.values()] == [digest(x), digest(y)]
    first, second = random_split(data, [7, 3])
    are_same(first, Subset(data, list(first.indices)), Subset(data, np.array(first.indices)))  # pyright: ignore[reportArgumentType]
    are_different(data, first, second, Subset(data, range(10)), ConcatDataset([data]))
    assert fingerprint(first).parts["of"].digest == digest(data)
    assert (fingerprint(first).n_rows, fingerprint(ConcatDataset([data, first])).n_rows) == (7, 17)


def test_a_class_of_the_users_own_is_never_exact() -> None:
    class Augmented(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("an item was asked for")

    class Own(Dataset[Any]):
        def __init__(self) -> None:
            self.x = np.arange(6).reshape(3, 2)
            self.labels = ["a", "b", "c"]
            self.transforms = [lambda value: value]

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("an item was asked for")

        def __len__(self) -> int:
            raise AssertionError("its length was asked for")

    data = Augmented(torch.arange(3))
    assert fingerprint(data).exact is False
    found = fingerprint(DataLoader(Own(), sampler=[0]))
    assert (found.kind, found.exact, found.n_rows) == ("dataset", False, 3)
    assert sorted(found.parts) == ["labels", "x"]
    other = Own()
    other.x[2, 1] = 9
    are_different(Own(), other)


def test_a_data_set_that_names_a_folder_has_what_lies_there(tmp_path: Path) -> None:
    class Folder:
        def __init__(self, root: Path) -> None:
            self.root = str(root)

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("an item was asked for")

    (tmp_path / "a").write_text("a")
    found = fingerprint(Folder(tmp_path))
    assert (found.exact, found.parts["root"].digest) == (False, digest(tmp_path))


def test_names_and_labels_of_files_are_not_what_is_in_the_files(tmp_path: Path) -> None:
    class Images:
        def __init__(self, root: Path) -> None:
            self.root = root
            self.classes = ["cat", "dog"]
            self.samples = [(str(root / "a.png"), 0)]

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("an item was asked for")

    (tmp_path / "a.png").write_text("a")
    before = fingerprint(Images(tmp_path))
    assert sorted(before.parts) == ["classes", "root"]
    (tmp_path / "a.png").write_text("b")
    assert fingerprint(Images(tmp_path)).digest != before.digest


def test_a_list_of_very_many_objects_is_given_up_in_time() -> None:
    parts: list[Any] = [(0, object())] * 3_000_000
    started = time.monotonic()
    assert fingerprint(parts, max_seconds=0.1).digest is None
    assert time.monotonic() - started < 2


def test_nothing_is_consumed_and_no_random_state_moves() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("the stream was read")

    def states() -> list[Any]:
        of_numpy: Any = np.random.get_state()
        return [random.getstate(), of_numpy[1].tolist(), torch.get_rng_state().tolist()]

    before = states()
    generator = (number for number in range(3))
    data = TensorDataset(torch.arange(9))
    values = [generator, iter([1]), Stream(), DataLoader(Stream()), map(str, [1]), open]
    assert [fingerprint(value).digest for value in values] == [None] * 6
    assert all(fingerprint(value).how.startswith("not known: ") for value in values)
    fingerprint([DataLoader(data, shuffle=True), *random_split(data, [4, 5], torch.Generator())])
    assert list(generator) == [0, 1, 2]
    assert states() == before


# --- files, folders, versions ---


def test_a_folder_has_the_digest_of_the_version_that_is_made_of_it() -> None:
    folder = Path("data")
    (folder / "in" / "empty").mkdir(parents=True)
    (folder / "in" / "a.txt").write_text("a")
    (folder / "run.sh").write_text("b")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("run.sh")
    version = begat.open_store().log_artifact("data", folder)
    are_same(folder, "data", version, version.path, version.download("copy"))
    assert digest(folder / "run.sh") == getattr(version.entries[-1], "digest")  # noqa: B009
    assert fingerprint("nowhere").digest is None


# --- bounds ---


def test_what_is_larger_than_the_limit_or_takes_too_long_is_unknown() -> None:
    array = np.zeros((1 << 20,), "u1")
    found = fingerprint(array, max_bytes=(1 << 20) - 1)
    assert (found.digest, found.how) == (None, "not known: it has more than 1.0 MB, the limit")
    assert fingerprint(array, max_bytes=1 << 20).digest == digest(array)
    assert fingerprint([array, array], max_bytes=3 << 19).digest is None
    late = fingerprint(array, max_seconds=0)
    assert late.how == "not known: hashing it takes longer than 0 s, the limit"
    huge = np.broadcast_to(np.zeros(1), (1 << 40,))
    assert fingerprint(huge).digest is None


def test_what_holds_itself_or_is_very_deep_is_unknown() -> None:
    loop: list[Any] = [object()]
    loop.append(loop)
    deep: Any = np.zeros(1)
    for _ in range(100):
        deep = [deep]
    for value in (loop, deep, {"a": loop}):
        assert fingerprint(value).digest is None


@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, "a\0b", b"x", object(), object, {1: {2: 3}}, {object(): 1}, [], {}, ()),
        *(np.array([object()]), np.array([1], "g"), np.zeros((0, 3)), np.zeros(())),
        pd.DataFrame([[1]], columns=pd.Index(["\ud800"], dtype=object)),
        pd.DataFrame({"a": pd.period_range("2020", periods=2)}),
        pa.table({"a": pa.nulls(3), "b": pa.array([[("k", 1)]] * 3, pa.map_("string", "int8"))}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_nothing_raises(value: Any) -> None:
    found = fingerprint(value)
    assert found.digest is not None or found.how.startswith("not known: ")


# --- digests stay what they are ---

GOLDEN: dict[str, tuple[Callable[[], Any], str]] = {
    "array": (
        lambda: np.arange(6, dtype="int64").reshape(2, 3),
        "b3:51960f7b31003dd5705f22148eddecce98436bc7c7c2458721827157ad854329",
    ),
    "tensor": (
        lambda: torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "b3:4f7dc48c201feb0558f542512e5c035fe4ba71454417e52aece26fd61d1afab0",
    ),
    "words": (
        lambda: ["a", None, "bc"],
        "b3:a44d9b34707276ff4131b6fda0e255c206fc4be373a07d53bc49419d6a062e67",
    ),
    "mixed": (
        lambda: np.array(["a", 1, 2.5, True, None], dtype=object),
        "b3:370f0cb436ba5c90a2b103582ce55ecca7e89961e4394db823304ae791ba1737",
    ),
    "table": (
        lambda: pd.DataFrame({"n": [1, 2], "w": ["a", None], "f": [True, False]}),
        "b3:b3fc2171fe0acf9cce9441ccbf6cbaa5df496ada857feb8daddd58c3a7719675",
    ),
    "index": (
        lambda: pd.DataFrame({"n": [1.0]}, index=pd.Index(["x"], name="i")),
        "b3:9bf25ece888cc2c64c32a7ac24fdd437b1e88a22d311eb906538384c1d99282a",
    ),
    "times": (
        lambda: pa.table({"t": pa.array([0, None, 1], pa.timestamp("us", "UTC"))}),
        "b3:3ce7e14189f546643c4862e6cd676f986a1334115b46b0b114a1a0040bea3b50",
    ),
    "lists": (
        lambda: pa.table({"l": [[1], None, [2, 3]]}),
        "b3:09ec2f861408c91e2b9e19a67dc768135681bce45124e358b89a9fd6a71f01ef",
    ),
    "structs": (
        lambda: pa.table({"s": [{"x": 1}, None, {"x": None}]}),
        "b3:2d98c9d09eb4b0564a384f1b5043002c56769615c09d2143bc5be23c16174e39",
    ),
    "categories": (
        lambda: pd.Series(pd.Categorical(["b", "a", "b"]), name="c"),
        "b3:af07d03ea91cc0a9bb7c42877b854ba2665ef2cfdf458499879ad9eb09a95f1d",
    ),
    "sparse": (
        lambda: scipy.sparse.coo_matrix(([1.0, 2.0], ([0, 2], [1, 0])), (3, 2)),
        "b3:a07fc542962d6cb039d4a165128cb3809838e5caafbbe1e3f1932dc9de15a418",
    ),
    "list": (
        lambda: (np.zeros(2), ["a", "b"]),
        "b3:cba368516f198e081655448089172b95853eb624104651f84c0fdcaec9654ed6",
    ),
    "dict": (
        lambda: {"x": np.zeros(2), "y": None},
        "b3:4cbe0b316fce799a6e692a160d6c39217b50254f35cfd9820139ecf1a30bcbd1",
    ),
    "subset": (
        lambda: Subset(TensorDataset(torch.zeros(4)), [2, 0]),
        "b3:42d8e36c327511d3febbdce75b0ebf060145c533fb4667a82a53419959446860",
    ),
    "concat": (
        lambda: ConcatDataset([TensorDataset(torch.zeros(2))] * 2),
        "b3:e94b1872b09e83b5a3f1caf06967e77c3ebef02a7709ecccb870883ba5f2cd37",
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_digests_are_those_of_every_other_begat(name: str) -> None:
    make, expected = GOLDEN[name]
    assert digest(make()) == expected
