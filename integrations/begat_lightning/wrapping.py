"""A method of one object in place of its own, for a while. Classes and modules of others are never changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast


def replaced(owner: Any, name: str, wrapper: Callable[..., Any]) -> Callable[[], None]:
    """Put a wrapper in the place of a method of one object; calling the result puts it back."""
    own = cast("dict[str, Any]", vars(owner))
    before = own.get(name)
    setattr(owner, name, wrapper)

    def undo() -> None:
        # Whoever wrapped it after us holds on to ours, which does nothing from now on.
        if own.get(name) is not wrapper:
            return
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)

    return undo
