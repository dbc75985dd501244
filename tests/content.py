"""What tests say of content: it is the same, or different, by its fingerprint."""

from typing import Any

from begat import fingerprint


def digest(value: Any) -> str:
    found = fingerprint(value)
    assert found.digest is not None, found
    return found.digest


def are_same(*values: Any) -> None:
    assert len({digest(value) for value in values}) == 1, [fingerprint(value) for value in values]


def are_different(*values: Any) -> None:
    assert len({digest(value) for value in values}) == len(values), values
