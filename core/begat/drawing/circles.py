"""Circles in a drawing: a run may use what it made itself, and confirm what it came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def in_order(
    after: Mapping[str, Sequence[str]], beginnings: Iterable[str]
) -> tuple[list[str], set[tuple[str, str]]]:
    """The keys so that arrows (key -> what follows it) lead forward, and the arrows that lead back.

    In a circle that nothing leads into, the earliest of the beginnings stands first.
    """
    entered = {target for targets in after.values() for target in targets}
    starts = [*(key for key in after if key not in entered), *beginnings, *after]
    finished: list[str] = []
    back: set[tuple[str, str]] = set()
    is_open: dict[str, bool] = {}
    # Depth first with an own stack: a chain of versions may be longer than Python's.
    for start in starts:
        if start in is_open:
            continue
        is_open[start] = True
        waiting = [(start, iter(after[start]))]
        while waiting:
            key, targets = waiting[-1]
            for target in targets:
                if target not in is_open:
                    is_open[target] = True
                    waiting.append((target, iter(after[target])))
                    break
                if is_open[target]:
                    back.add((key, target))
            else:
                is_open[key] = False
                finished.append(key)
                waiting.pop()
    return finished[::-1], back
