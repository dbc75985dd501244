"""How numbers and names are said to people: `21.3 kB`, `1.5 h`, `2,000 files`."""

from __future__ import annotations

_UNITS = ("kB", "MB", "GB", "TB", "PB")


def printable(text: str) -> str:
    """The text with every character that is not seen (controls, bidi marks, lone surrogates) written as its code.

    A name could otherwise steer a terminal, turn text around it, or be no XML.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else f"\\u{ord(one):04x}" for one in text)


def shortened(text: str, most: int) -> str:
    """At most so many characters: `a-very-long…-name`, the end kept because names differ there."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - 1]}…{text[len(text) - end :]}"


def size_text(size_bytes: int) -> str:
    """Decimal units, as disks are sold: 21,300 -> `21.3 kB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    size, power = size_bytes / 1000, 0
    # 999.95 would be rounded to 1000.0 of the smaller unit.
    while size >= 999.95 and power < len(_UNITS) - 1:
        size, power = size / 1000, power + 1
    return f"{size:.1f} {_UNITS[power]}"


def duration_text(duration_us: int) -> str:
    """The two-digit sense of a duration: `350 ms`, `2 s`, `4 min`, `1.5 h`, `2.1 d`."""
    seconds = duration_us / 1_000_000
    if seconds < 0.9995:
        return f"{max(0, round(seconds * 1000))} ms"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    if seconds < 119.5 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"


def counted(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
