"""What goes wrong while a training is recorded: each kind is said once, and all of it is kept for the run."""

from __future__ import annotations

import threading

from begat.errors import warn

# A store that is away for a long training would otherwise fill the run with the same words.
MOST_TEXTS = 100


class Troubles:
    """The troubles of one training. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: set[str] = set()
        self._not_logged: list[str] = []
        self._count = 0

    @property
    def not_logged(self) -> list[str]:
        """In words, what is missing from the store because of them."""
        with self._lock:
            more = self._count - len(self._not_logged)
            return [*self._not_logged, *([f"and {more} more"] if more else [])]

    def add(self, text: str, *, kind: str) -> None:
        """Keep what was not logged, and warn of it if it is the first of its kind."""
        with self._lock:
            self._count += 1
            if len(self._not_logged) < MOST_TEXTS:
                self._not_logged.append(text)
        self.warn(text, kind=kind)

    def warn(self, text: str, *, kind: str | None = None) -> None:
        """Warn, once of a kind, in the name of the code that called begat."""
        if kind is not None:
            with self._lock:
                if kind in self._kinds:
                    return
                self._kinds.add(kind)
        warn(text)
