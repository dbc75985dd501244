"""What metadata may be, how it is kept, and where the place of a mistake is told."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import json
import math
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from begat import metadata
from begat.errors import BadMetadata, LimitExceeded
from begat.metadata import canonical_json, check_metadata


class Mode(str, enum.Enum):  # noqa: UP042 - users still have such ones, and their str() differs from StrEnum's
    FAST = "fast"


class Level(enum.IntEnum):
    HIGH = 3


# Text that UTF-8 and every database can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=5)


@given(OBJECTS)
def test_json_is_kept_as_it_is(value: dict[str, object]) -> None:
    kept = check_metadata(value)
    assert kept == value
    assert json.loads(canonical_json(kept)) == value


@given(OBJECTS)
def test_kept_metadata_is_good_metadata(value: dict[str, object]) -> None:
    kept = check_metadata(value)
    assert canonical_json(check_metadata(kept)) == canonical_json(kept)


@given(OBJECTS)
def test_the_canonical_text_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert canonical_json(turned) == canonical_json(value)


def test_the_canonical_text_is_short_and_readable() -> None:
    value = {"b": [1, 2.5, None, True], "a": "é\n", "ä": {}, "Z": -0.5}
    assert canonical_json(value) == '{"Z":-0.5,"a":"é\\n","b":[1,2.5,null,true],"ä":{}}'


def test_nothing_is_an_empty_object() -> None:
    assert check_metadata(None) == {}


def test_later_changes_of_the_callers_object_change_nothing() -> None:
    value = {"a": {"b": [1]}}
    kept = check_metadata(value)
    value["a"]["b"].append(2)
    assert kept == {"a": {"b": [1]}}


def test_a_tuple_is_kept_as_a_list() -> None:
    point = collections.namedtuple("point", "x y")
    assert check_metadata({"a": (1, (2,)), "p": point(1, 2)}) == {"a": [1, [2]], "p": [1, 2]}


def test_any_mapping_is_an_object() -> None:
    value = types.MappingProxyType({"a": collections.OrderedDict(b=collections.ChainMap({"c": 1}))})
    assert check_metadata(value) == {"a": {"b": {"c": 1}}}


def test_a_truth_value_stays_one() -> None:
    kept = check_metadata({"yes": True, "one": 1})
    assert kept["yes"] is True
    assert type(kept["one"]) is int
    assert canonical_json(kept) == '{"one":1,"yes":true}'


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        *[
            (np.float32(0.5), 0.5),
            (np.float64(0.1), 0.1),
            (np.int8(-3), -3),
            (np.uint64(7), 7),
            (np.bool_(True), True),
        ],
        *[
            (np.str_("a"), "a"),
            (np.array(2.5), 2.5),
            (np.array([3]), 3),
            (Mode.FAST, "fast"),
            (Level.HIGH, 3),
        ],
    ],
    ids=repr,
)
def test_a_number_or_word_of_another_kind_becomes_a_plain_one(value: object, plain: object) -> None:
    kept = check_metadata({"a": value})["a"]
    assert kept == plain
    assert type(kept) is type(plain)


def test_a_word_of_another_kind_is_a_plain_key() -> None:
    kept = check_metadata({Mode.FAST: 1, np.str_("b"): 2})
    assert canonical_json(kept) == '{"b":2,"fast":1}'
    assert {type(key) for key in kept} == {str}


def test_a_number_of_torch_becomes_a_plain_one() -> None:
    torch = pytest.importorskip("torch")
    kept = check_metadata(
        {"loss": torch.tensor(0.5), "n": torch.tensor([3]), "ok": torch.tensor(True)}
    )
    assert kept == {"loss": 0.5, "n": 3, "ok": True}
    assert type(kept["ok"]) is bool
    for bad in (
        torch.zeros(2),
        torch.zeros(0),
        torch.empty(1, device="meta"),
        torch.tensor(1 + 2j),
    ):
        with pytest.raises(BadMetadata):
            check_metadata({"a": bad})


class Opaque:
    def item(self) -> object:
        raise ValueError("cannot be said as one number")


BAD = [
    *[
        math.nan,
        math.inf,
        -math.inf,
        np.float32("nan"),
        np.array(np.inf),
        2**63,
        -(2**63),
        10**400,
        np.uint64(2**63),
    ],
    *[
        b"bytes",
        bytearray(b"x"),
        {1, 2},
        frozenset(),
        object(),
        Opaque(),
        1 + 2j,
        np.complex64(1),
        decimal.Decimal("0.1"),
    ],
    *[
        datetime.datetime(2026, 1, 1),
        datetime.date(2026, 1, 1),
        np.datetime64("2026", "ns"),
        np.timedelta64(1, "ns"),
    ],
    *[
        Path("x"),
        np.zeros(2),
        np.zeros((0,)),
        range(3),
        (x for x in [1]),
        len,
        int,
        ...,
        NotImplemented,
    ],
    *[
        "\ud800",
        "a\udfff",
        "a\x00b",
        {"\ud800": 1},
        {"a\x00": 1},
        {1: "a"},
        {None: 1},
        {True: 1},
        {(1, 2): 3},
        {b"a": 1},
    ],
    *[[math.nan], {"b": {"c": [{1}]}}, ([object()],)],
]


@pytest.mark.parametrize("value", BAD, ids=lambda value: ascii(value)[:30].split(" at 0x")[0])
def test_what_is_not_json_is_refused(value: object) -> None:
    with pytest.raises(BadMetadata) as caught:
        check_metadata({"a": value})
    message = str(caught.value)
    assert message.startswith("metadata.a")
    assert "othing was stored" in message
    assert message.isprintable()
    assert len(message) < 300


@pytest.mark.parametrize("value", [[], [("a", 1)], "a", 3, True, np.zeros(3), object(), [{}], {1}])
def test_metadata_is_an_object(value: object) -> None:
    with pytest.raises(BadMetadata, match="must be a dict"):
        check_metadata(value)


def test_a_message_names_the_place() -> None:
    with pytest.raises(BadMetadata, match=r"^params\.layers\[2\]\.rate is nan"):
        check_metadata({"layers": [0, 1, {"rate": math.nan}]}, what="params")


def test_a_message_is_one_line_whatever_the_keys_are() -> None:
    with pytest.raises(BadMetadata) as caught:
        check_metadata({"a\n\x1b[2J": {"k" * 10_000: math.nan}})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def nested(levels: int) -> dict[str, object]:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return {"a": value}


def test_deep_nesting_is_kept_up_to_the_limit() -> None:
    assert check_metadata(nested(metadata.MAX_DEPTH - 1)) == nested(metadata.MAX_DEPTH - 1)
    for levels in (metadata.MAX_DEPTH + 1, 100_000):
        with pytest.raises(BadMetadata, match="nested deeper") as caught:
            check_metadata(nested(levels))
        assert len(str(caught.value)) < 1000


def test_an_object_that_holds_itself_is_refused() -> None:
    ring: dict[str, object] = {}
    ring["again"] = ring
    with pytest.raises(BadMetadata, match="nested deeper"):
        check_metadata(ring)


def test_large_metadata_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "MAX_METADATA_BYTES", 100)
    assert check_metadata({"a": "x" * 90})
    with pytest.raises(LimitExceeded, match="log large values as a file"):
        check_metadata({"a": "é" * 50})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_canonical_text_has_no_nan(value: float) -> None:
    with pytest.raises(ValueError):
        canonical_json({"a": value})
