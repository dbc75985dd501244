"""How a recorder behaves when it has a choice: what it keeps, how long it waits, and what it does with errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from begat.reference import check_name

OnError = Literal["warn", "raise"]
Keep = Literal["mirror", "all"]

MAX_PENDING = 3
DRAIN_TIMEOUT_S = 300.0
# After Ctrl-C frameworks ignore a second one: nobody should have to wait for long then.
DRAIN_TIMEOUT_INTERRUPTED_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a recorder behaves; see `Recorder.attach`."""

    name: str
    type: str
    on_error: OnError
    keep: Keep
    max_pending: int
    drain_timeout_s: float

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.on_error not in ("warn", "raise"):
            raise TypeError(f"on_error is 'warn' or 'raise', not {self.on_error!r}")
        if self.keep not in ("mirror", "all"):
            raise TypeError(f"keep is 'mirror' or 'all', not {self.keep!r}")
