"""The errors are one tree, the drawing of it is true, and their messages are shown as they are."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
from pathlib import Path

import pytest

import begat
from begat import errors
from begat.errors import BegatError

CLASSES: list[type[BegatError]] = [
    found
    for _, found in inspect.getmembers(errors, inspect.isclass)
    if issubclass(found, BegatError)
]
MESSAGE = "'digits:v9' does not exist\nthe newest is \"digits:v7\""


def drawn_tree() -> dict[str, tuple[str, set[str]]]:
    """Class -> (its parent, its built-in kinds), read from the docstring."""
    assert errors.__doc__ is not None
    tree: dict[str, tuple[str, set[str]]] = {}
    above: list[str] = ["BegatError"]
    for line in errors.__doc__.splitlines():
        found = re.match(r"    ([│├└─ ]+)(\w+)(?: \((\w+)\))?", line)
        if not found:
            continue
        depth = len(found[1]) // 4
        builtins = {found[3]} if found[3] else set[str]()
        tree[found[2]] = (above[depth - 1], builtins)
        above[depth:] = [found[2]]
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    actual = {
        found.__name__: (
            next(base.__name__ for base in found.__bases__ if issubclass(base, BegatError)),
            {base.__name__ for base in found.__bases__ if not issubclass(base, BegatError)},
        )
        for found in CLASSES
        if found is not BegatError
    }
    # AmbiguousReference is drawn beside BadReference, by what a handler would do; it is a kind of it.
    assert actual.pop("AmbiguousReference") == ("BadReference", set())
    drawn = drawn_tree()
    assert drawn.pop("AmbiguousReference") == ("BadInput", set())
    assert actual == drawn


def test_all_is_sorted_and_complete() -> None:
    public = {found.__name__ for found in CLASSES} | {"BegatWarning", "warn"}
    assert errors.__all__ == sorted(public)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_message_is_shown_as_it_is(kind: type[BegatError]) -> None:
    # KeyError would show its repr; OSError and ImportError have ideas of their own.
    assert str(kind(MESSAGE)) == MESSAGE


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_and_copying(kind: type[BegatError]) -> None:
    error = kind(MESSAGE)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is kind
        assert str(twin) == twin.message == MESSAGE


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_says_in_a_line_what_it_is(kind: type[BegatError]) -> None:
    assert kind.__doc__
    assert kind.__doc__.splitlines()[0].endswith(".")


def test_ordinary_except_clauses_work() -> None:
    assert issubclass(errors.ArtifactNotFound, KeyError)
    assert issubclass(errors.BadMetadata, ValueError)
    assert issubclass(errors.DestinationDiffers, FileExistsError)
    assert issubclass(errors.MissingExtra, ImportError)


def test_a_warning_is_not_an_error() -> None:
    assert issubclass(errors.BegatWarning, UserWarning)
    assert not issubclass(errors.BegatWarning, BegatError)


def test_a_warning_names_the_line_that_called_begat_however_deep_it_came_from(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    (folder / ".git").mkdir(parents=True)
    for name in ("a", "A"):  # one name elsewhere
        (folder / name).write_bytes(b"1")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        store = begat.open_store(tmp_path / "store")
        version = store.log_artifact("data", folder)
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy/a").write_bytes(b"2")
        version.download(tmp_path / "copy", overwrite="preserve")
    assert [one.filename for one in told] == [__file__] * 3
    said = [str(one.message) for one in told]
    assert [
        any(word in text for text in said) for word in ("left out", "one name", "preserved")
    ] == [True] * 3
    store.close()
