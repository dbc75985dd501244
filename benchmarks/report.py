"""The figures of a run as a table for the terminal, as a table for the README, and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from measure import Cost

HEADINGS = (
    *("work", "floor", "floor s", "begat s", "figure", "bar"),
    *("stored MB", "memory MB", "CPU s (floor)"),
)


@dataclass(frozen=True)
class Figure:
    """One number that something is judged by, and the bar it should keep: at most, or at least."""

    value: float
    unit: str = "x"
    bar: float | None = None
    is_least: bool = False

    @property
    def is_missed(self) -> bool:
        """Whether there is a bar, and the number is on the wrong side of it."""
        if self.bar is None:
            return False
        return self.value < self.bar if self.is_least else self.value > self.bar

    def text(self) -> str:
        """`1.42x`."""
        return f"{_number(self.value)}{self.unit if self.unit == 'x' else f' {self.unit}'}"

    def bar_text(self) -> str:
        """`<= 1.6x`, with what there is to say about it."""
        if self.bar is None:
            return ""
        sign = ">=" if self.is_least else "<="
        unit = self.unit if self.unit == "x" else f" {self.unit}"
        return f"{sign} {_number(self.bar)}{unit}{' MISSED' if self.is_missed else ''}"


@dataclass(frozen=True)
class Row:
    """One line: a work beside its floor, or something else that is known of the same work."""

    work: str
    text: str
    figure: Figure
    floor: str = ""
    floor_s: float | None = None
    ours_s: float | None = None
    size_bytes: int | None = None
    stored_bytes: int | None = None
    anonymous_bytes: int | None = None
    cpu_s: float | None = None
    floor_cpu_s: float | None = None
    turns: Sequence[tuple[float, float]] = field(default_factory=tuple)

    def cells(self) -> tuple[str, ...]:
        """What stands below the headings."""
        cpu = ""
        if self.cpu_s is not None:
            cpu = f"{self.cpu_s:.2f}"
            cpu += "" if self.floor_cpu_s is None else f" ({self.floor_cpu_s:.2f})"
        return (
            *(self.text, self.floor, _seconds(self.floor_s), _seconds(self.ours_s)),
            *(self.figure.text(), self.figure.bar_text()),
            *(_megabytes(self.stored_bytes), _megabytes(self.anonymous_bytes), cpu),
        )


def compared(
    work: str,
    text: str,
    floor_name: str,
    floor: Sequence[Cost],
    ours: Sequence[Cost],
    *,
    bar: float | None = None,
) -> Row:
    """The row of a work beside its floor: medians, and the median of the ratios of the turns."""
    ratio = statistics.median(b.seconds / a.seconds for a, b in zip(floor, ours, strict=True))
    return Row(
        work=work,
        text=text,
        figure=Figure(ratio, "x", bar),
        floor=floor_name,
        floor_s=statistics.median(cost.seconds for cost in floor),
        ours_s=statistics.median(cost.seconds for cost in ours),
        stored_bytes=ours[-1].told.get("stored_bytes"),
        anonymous_bytes=max(cost.anonymous_bytes for cost in ours),
        cpu_s=statistics.median(cost.cpu_seconds for cost in ours),
        floor_cpu_s=statistics.median(cost.cpu_seconds for cost in floor),
        turns=[(a.seconds, b.seconds) for a, b in zip(floor, ours, strict=True)],
    )


# --- tables ---

_WIDTHS = (72, 22, 9, 9, 12, 18, 10, 10, 14)


def line(cells: Iterable[str]) -> str:
    """One line for the terminal: text to the left, numbers to the right."""
    padded = [
        f"{cell:{'<' if at == 0 else '>'}{width}}"
        for at, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=False))
    ]
    return " ".join(padded).rstrip()


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the tables for the README: the works, the series, other tools; without columns that are empty."""
    others = ("dedup", "peers")
    for group in (
        [row.cells() for row in rows if row.work not in others],
        *([row.cells() for row in rows if row.work == other] for other in others),
    ):
        shown = [at for at in range(len(HEADINGS)) if any(cells[at] for cells in group)]
        for cells in [HEADINGS, ["---"] * len(HEADINGS), *group] if group else []:
            texts = [cells[at].replace("MISSED", "**missed**") for at in shown]
            yield f"| {' | '.join(texts)} |"
        if group:
            yield ""


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def machine_text(facts: dict[str, Any]) -> str:
    """`2026-01-31, 8 cores (AMD ...), 32 GB, Linux 6.1, Python 3.11.7`."""
    return (
        f"{facts['date']}, {facts['cores']} cores ({facts['cpu']}), {facts['memory_bytes'] / 1e9:.0f} GB, "
        f"{facts['system']}, Python {facts['python']}"
    )


def plain(row: Row) -> dict[str, Any]:
    """A row as JSON says it."""
    return {**asdict(row), "is_missed": row.figure.is_missed}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _megabytes(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:,.1f}"


def _number(value: float) -> str:
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
