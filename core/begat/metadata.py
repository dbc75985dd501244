"""What metadata may be: a JSON object, checked when it is given, with one canonical text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, cast

from begat.errors import BadMetadata, LimitExceeded

MAX_METADATA_BYTES = 16 * 1024 * 1024
MAX_DEPTH = 100
# What the integers of every store, and of most readers of JSON that have integers at all, can hold.
MAX_INTEGER = 2**63 - 1


def check_metadata(value: object, *, what: str = "metadata") -> dict[str, Any]:
    """A deep copy of a JSON object, so that later changes of the caller's object change nothing.

    Accepts dict, list, tuple (kept as list), str, bool, int (64 bits), finite float and None; keys are str.
    Numbers of NumPy and torch are converted when they have `.item()` and no more than one element.

    Raises `BadMetadata` naming the place (`metadata.params[2]`), `LimitExceeded` above 16 MiB.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadMetadata(
            f"{what} must be a dict of JSON values, not {type(value).__name__}; nothing was stored"
        )
    copy = cast("dict[str, Any]", _checked(cast("object", value), what, 0))
    size_bytes = len(canonical_json(copy).encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_METADATA_BYTES:
        raise LimitExceeded(
            f"{what} has {size_bytes} bytes as JSON; the limit is {MAX_METADATA_BYTES}. "
            "Nothing was stored; log large values as a file"
        )
    return copy


# Made once: `json.dumps` with options makes an encoder for each call.
_CANONICAL = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(value: object) -> str:
    """The one text of a JSON value: sorted keys, no spaces, UTF-8, no NaN.

    In the manner of RFC 8785 (JSON canonicalisation): equal values give equal text, whatever order they were built in.
    """
    return _CANONICAL.encode(value)


def storable(text: str) -> str:
    """The text without what metadata may not hold; arguments and paths that are not UTF-8 lose what is not."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").replace("\0", "")


def _checked(value: object, where: str, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise BadMetadata(f"{where} is nested deeper than {MAX_DEPTH} levels; nothing was stored")
    if isinstance(value, str):
        return _checked_text(value, where)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise BadMetadata(
                f"{where} is an integer beyond 64 bits; give it as text. Nothing was stored"
            )
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise BadMetadata(
                f"{where} is {value!r}, which JSON does not have; give None or text. Nothing was stored"
            )
        return float(value)
    if isinstance(value, Mapping):
        return _checked_object(cast("Mapping[object, object]", value), where, depth)
    if isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        return [_checked(item, f"{where}[{i}]", depth + 1) for i, item in enumerate(items)]
    scalar = _scalar_of(value)
    if scalar is not value:
        return _checked(scalar, where, depth + 1)
    raise BadMetadata(f"{where} is a {type(value).__name__}, which is not JSON; nothing was stored")


def _checked_object(value: Mapping[object, object], where: str, depth: int) -> dict[str, object]:
    out: dict[str, object] = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise BadMetadata(
                f"{where} has the key {key!r}; JSON keys are text. Nothing was stored"
            )
        # Shown so that a key cannot break the line or the terminal of the message.
        place = f".{key}" if key.isprintable() and len(key) <= 60 else f"[{key[:60]!r}]"
        out[_checked_text(key, where)] = _checked(item, where + place, depth + 1)
    return out


def _checked_text(value: str, where: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise BadMetadata(
            f"{where} holds a lone surrogate, which UTF-8 cannot say; nothing was stored"
        ) from None
    if "\x00" in value:
        # PostgreSQL's text has no NUL: what one store accepts, every store must.
        raise BadMetadata(f"{where} holds a NUL character; nothing was stored")
    return str.__str__(
        value
    )  # plain text also for an enum of text, whose str() is the name of its member


def _scalar_of(value: object) -> object:
    """`numpy.float32(0.5)` -> 0.5, without importing NumPy; anything else -> itself."""
    item = getattr(value, "item", None)
    size = getattr(value, "size", 1)
    if callable(size):  # torch: a method
        size = getattr(value, "numel", lambda: 2)()
    # A datetime64 in nanoseconds would become a bare integer.
    is_time = getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M")
    if not callable(item) or size != 1 or is_time:
        return value
    try:
        return item()
    except (RuntimeError, TypeError, ValueError):  # a tensor without data (meta, fake)
        return value
