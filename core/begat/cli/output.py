"""What commands print: aligned columns for people, JSON for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from begat.wording import printable, size_text

if TYPE_CHECKING:
    from begat.model import ArtifactRecord, VersionRecord
    from begat.version import Version

# What versions hold, what storing them added, and what was there already.
BYTES = ("LOGICAL", "NEW", "SHARED")
# What a shell reports for a program that SIGPIPE ended; `begat ls | head` is no failure of begat.
BROKEN_PIPE = 141


def say(text: str = "") -> None:
    """Print one line on stdout."""
    try:
        sys.stdout.write(f"{text}\n")
    except BrokenPipeError:
        raise typer.Exit(BROKEN_PIPE) from None


def note(text: str) -> None:
    """Print one line on stderr, where it is in nobody's way."""
    sys.stderr.write(f"{printable(text)}\n")


# What messages say in Python's words, and how the terminal says it. A test finds what is missing here.
_IN_PYTHON = (
    (r"overwrite='(\w+)'", r"--overwrite \1"),
    (r"if_unchanged='(\w+)'", r"--if-unchanged \1"),
    (r"bump='(\w+)'", r"--bump \1"),
    (r"force=True", "--force"),
    (
        r"overwrite=True replaces it",
        "Two of the paths hold it: leave one out, or that file (--exclude)",
    ),
    (r"begat\.start_run", "begat run"),
    (
        r"read the file with version\.open\(.*\), or give the path to begat get",
        "get the file with begat get",
    ),
)


def in_flags(message: str) -> str:
    """A message of the library as the terminal says it: `force=True` -> `--force`."""
    for python, terminal in _IN_PYTHON:
        message = re.sub(python, terminal, message)
    return message


def say_json(value: Any) -> None:
    """Print one JSON value; ASCII only, so that no terminal or log can spoil it."""
    say(json.dumps(value, indent=2))


def say_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Iterable[str] = ()
) -> None:
    """Print rows in columns under headings; those named in `right` are aligned to the right.

    Nothing is cut, whatever the terminal's width: the lines are also read by grep. Columns without any value are left
    out, and so is everything if there are no rows.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    if not cells:
        return
    kept = [at for at in range(len(headings)) if any(row[at] for row in cells)]
    width = _measure(cells)
    widths = [max(len(headings[at]), *(width(row[at]) for row in cells)) for at in kept]
    is_right = [headings[at] in set(right) for at in kept]
    for row in [list(headings), *cells]:
        padded: list[str] = []
        for at, wanted, to_right in zip(kept, widths, is_right, strict=True):
            space = " " * (wanted - width(row[at]))
            padded.append(space + row[at] if to_right else row[at] + space)
        say("  ".join(padded).rstrip())


def say_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print a title and below it a line for each fact that has a value; of equal names only the first is printed."""
    say(printable(title))
    told = [(name, printable(value)) for name, value in facts if value]
    width = max((len(name) for name, _ in told), default=0)
    before = ""
    for name, value in told:
        say(f"  {'' if name == before else name:<{width}}  {value}")
        before = name


def moment(time_us: int | None) -> str:
    """Microseconds since 1970 -> `2026-11-23 15:46` here; empty for None."""
    if time_us is None:
        return ""
    return datetime.fromtimestamp(time_us / 1_000_000).strftime("%Y-%m-%d %H:%M")


def short_json(value: Any) -> str:
    """A value in one line, for people: letters of all languages as they are."""
    return json.dumps(value, ensure_ascii=False)


def _measure(cells: list[list[str]]) -> Callable[[str], int]:
    """How many columns a text takes in a terminal; ASCII, the common case, does not load the tables for it."""
    if all(cell.isascii() for row in cells for cell in row):
        return len
    from rich.cells import cell_len

    return cell_len


def bytes_cells(record: ArtifactRecord | VersionRecord) -> tuple[str, str, str]:
    """What stands below the headings of `BYTES`."""
    return size_text(record.size_bytes), size_text(record.new_bytes), size_text(record.shared_bytes)


def new_and_shared(record: VersionRecord | Version) -> str:
    """`1.2 MB new, 2.2 MB shared`."""
    return f"{size_text(record.new_bytes)} new, {size_text(record.shared_bytes)} shared"
