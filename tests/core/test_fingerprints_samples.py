"""Fingerprints of thousands of samples: hashed side by side, they have the digests that each has by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from begat import fingerprint
from begat.fingerprints import Fingerprint
from begat.fingerprints.hashing import MOST_PARTS, Budget, digest_of_facts
from begat.fingerprints.samples import BLOCK_SAMPLES, MAX_ARRAY_BYTES, samples_content

# Not a whole number of blocks, so that the last one is another size.
COUNT = MOST_PARTS + BLOCK_SAMPLES // 2

_random = torch.Generator().manual_seed(0)
_rows = torch.randn((COUNT, 2, 3), generator=_random, dtype=torch.float64)
_numbers = _rows.numpy()


def _typed(dtype: Any) -> Callable[[int], Any]:
    return lambda at: (_rows[at] * 9).to(dtype)


ALIKE: dict[str, Callable[[int], Any]] = {
    "tensors alone": lambda at: _rows[at],
    "dicts of tensors and labels": lambda at: {
        "x": _rows[at],
        "label": at % 3,
        "a%s%": f"row {at}",
    },
    "names in any order": lambda at: {"b": at, "a": 1.5} if at % 2 else {"a": 1.5, "b": at},
    "tuples of arrays": lambda at: (_numbers[at], np.float32(at), at % 2 == 0),
    "lists, in which 0.0 is not -0.0": lambda at: [_rows[at], 0.0 if at % 2 else -0.0],
    "strided": lambda at: (_rows[at].T, _numbers[at].T),
    "big-endian": lambda at: (_numbers[at].astype(">f4"), 1),
    "without dimensions": lambda at: {"x": torch.tensor(at), "y": np.array(at)},
    "with a gradient": lambda at: (_rows[at].clone().requires_grad_(), 1),
    **{
        str(dtype): _typed(dtype)
        for dtype in (torch.bool, torch.uint8, torch.int32, torch.bfloat16, torch.float16)
    },
}

_ODD = COUNT - 1  # in the last block


def _but_for_one(usual: Any, odd: Any) -> Callable[[int], Any]:
    return lambda at: odd if at == _ODD else usual


class Mine(torch.Tensor):
    """A tensor of the user's own class."""


OTHERS: dict[str, Callable[[int], Any]] = {
    "another type": _but_for_one((torch.zeros(2), 1), (torch.zeros(2, dtype=torch.float64), 1)),
    "another shape": _but_for_one({"x": torch.zeros(2)}, {"x": torch.zeros(3)}),
    "another name": _but_for_one({"x": torch.zeros(2)}, {"y": torch.zeros(2)}),
    "one more": _but_for_one((torch.zeros(2), 1), (torch.zeros(2), 1, 1)),
    "another class": _but_for_one(torch.zeros(2), torch.zeros(2).as_subclass(Mine)),
    "another kind of label": _but_for_one((torch.zeros(2), 1), (torch.zeros(2), "1")),
    "another kind of sample": _but_for_one((torch.zeros(2), 1), [torch.zeros(2), 1]),
    "another byte order": _but_for_one((np.zeros(2), 1), (np.zeros(2).astype(">f8"), 1)),
    "another form in a block of its own": lambda at: (torch.zeros(2 if at < MOST_PARTS else 3), 1),
    "other lengths": lambda at: {"x": torch.ones(at % 5)},
    "lists of numbers": lambda at: [at, 1, 2],
    "complex": lambda at: (torch.zeros(2, dtype=torch.complex64).conj(), 1),
    "a negative view": lambda at: (torch.zeros(2, dtype=torch.complex64).conj().imag, 1),
    "sparse": lambda at: {"x": torch.zeros(2, 2).to_sparse(), "y": 1},
    "dates": lambda at: (np.datetime64(at, "D"), 1),
    "nested": lambda at: {"x": {"y": _rows[at]}},
    "empty": lambda at: {},
    "nothing in them": lambda at: (torch.zeros(0), 1),
    "keys that are no words": lambda at: {1: _rows[at]},
}


def _one_by_one(samples: list[Any]) -> str | None:
    parts = [fingerprint(one).digest for one in samples]
    return None if None in parts else digest_of_facts({"kind": "list", "parts": [*parts]})


def _side_by_side(samples: list[Any]) -> Fingerprint | None:
    return samples_content(samples, fingerprint, Budget(1 << 30, 60))


@pytest.mark.parametrize("form", ALIKE)
def test_samples_of_one_form_have_the_digests_that_each_has_alone(form: str) -> None:
    samples = [ALIKE[form](at) for at in range(COUNT)]
    found, few = fingerprint(samples), fingerprint(samples[:MOST_PARTS])
    assert found == _side_by_side(samples)
    assert found.digest == _one_by_one(samples)
    # What is told beside the digest is what is told of few.
    assert len(few.parts) == MOST_PARTS
    assert (found.schema, found.n_rows, found.how) == (few.schema, few.n_rows, few.how)
    assert found.exact
    assert not found.parts


@pytest.mark.parametrize("form", OTHERS)
def test_where_one_sample_is_another_each_is_read_by_itself(form: str) -> None:
    samples = [OTHERS[form](at) for at in range(COUNT)]
    assert _side_by_side(samples) is None
    assert fingerprint(samples).digest == _one_by_one(samples)


def test_a_change_of_any_sample_is_seen() -> None:
    samples = [{"x": row, "label": 1} for row in _rows.clone()]
    digests = {fingerprint(samples).digest}
    for at in (0, BLOCK_SAMPLES - 1, BLOCK_SAMPLES, COUNT - 1):
        samples[at]["x"][1, 2] += 1
        digests.add(fingerprint(samples).digest)
        samples[at]["label"] = 2
        digests.add(fingerprint(samples).digest)
    samples[0], samples[1] = samples[1], samples[0]
    digests.add(fingerprint(samples).digest)
    assert None not in digests
    assert len(digests) == 10


def test_arrays_that_are_large_are_not_copied_side_by_side() -> None:
    large = torch.zeros(MAX_ARRAY_BYTES + 1, dtype=torch.uint8)
    assert _side_by_side([(large, 1)] * 2) is None
    assert _side_by_side([(large[1:], 1)] * 2) is not None


def test_samples_are_hashed_within_the_budget() -> None:
    samples = [(row, 1) for row in _rows]
    too_little = fingerprint(samples, max_bytes=COUNT * 48 - 1)
    assert too_little.digest is None
    assert "the limit" in too_little.how
    assert fingerprint(samples, max_bytes=(COUNT + 1) * 48).digest is not None
    too_late = fingerprint(samples, max_seconds=-1)
    assert too_late.digest is None
    assert "longer than" in too_late.how
