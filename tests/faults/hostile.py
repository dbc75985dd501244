"""Paths and names made to break out of a folder, a terminal or a parser, and odd ones that harm nobody.

Put together from pieces, each at every place in a path, since a check that looks at the whole, the first or the last
segment only is how most of the known escapes came to be (MLflow alone had five in a row: CVE-2023-1177, CVE-2023-2780,
CVE-2024-1560, CVE-2024-1593 and CVE-2024-3848).
"""

# Pieces that may be no segment of a path, wherever they stand.
_SEGMENTS = (
    *("..", ".", "..\\..", "..\\x", "\\", "\\\\host\\share", "a\\b", "\\..", ".\\"),
    *("C:", "c:x", "z:\\x", "C:..", "A:$DATA"),
    *("a\x00b", "\x00", "a\nb", "\r", "a\tb", "\x1b[2J", "\x07", "\x7f", "\x85", "\x9b31m"),
    *("\u202egnp.exe", "a\u202ab", "\u2066x", "\u200e", "\u061c", "\u2028", "a\u2029", "\ufeff"),
    *("\ufdd0", "\uffff", "\U0001fffe", "\U0010ffff"),
    *("n" * 256, "ü" * 128, "名" * 86, "\U0001f600" * 64),
)
# Text that is not Unicode: what a name on disk looks like whose bytes are not UTF-8.
_NOT_UNICODE = ("\udcff", "a\udc80b", "\ud800", "\udc2e\udc2e")
# Only refused as they stand: as segments they would end or begin one.
_WHOLE = (
    *("", "/", "//", "/etc/passwd", "//host/share", "///x", "/..", "/../x", "/./x", "/proc/self/environ"),
    *("a//b", "a/", "a//", "x/../../../../../../../../../../etc/shadow", "....//....//x", "a/b/../../.."),
    *("/".join("a" * 257), "a/" * 1200 + "b", "x" * 5000, "/".join(["a" * 255] * 17)),
    *("\\\\?\\C:\\x", "\\??\\C:\\x", "/C:/x", "file:///etc/passwd", "C:/windows/win.ini"),
)  # fmt: skip


def _placed(segment: str) -> tuple[str, ...]:
    return (segment, f"{segment}/a", f"a/{segment}", f"a/{segment}/b", f"a/b/{segment}")


REFUSED_TEXT = tuple(
    dict.fromkeys([*(path for segment in _SEGMENTS for path in _placed(segment)), *_WHOLE])
)
REFUSED_SURROGATES = tuple(path for segment in _NOT_UNICODE for path in _placed(segment))
REFUSED = (*REFUSED_TEXT, *REFUSED_SURROGATES)

# The names on Linux among them: one segment, at most 255 bytes, no NUL.
REFUSED_ON_DISK = tuple(
    segment
    for segment in (*_SEGMENTS, *_NOT_UNICODE[:2])
    if segment not in (".", "..")
    and "\x00" not in segment
    and "/" not in segment
    and len(segment.encode("utf-8", "surrogateescape")) <= 255
)

# What looks like an escape and is none where names are taken as they are: nothing is decoded, expanded or normalised.
HARMLESS = (
    *("%2e%2e%2fx", "%252e%252e%252fx", "..%2f..%2fx", "a%00b", "%5c..%5c", "..;", "..;x", "%c0%ae%c0%ae"),
    *("\uff0e\uff0e", "\u2024\u2024", "\u2025", "\u2215etc\u2215passwd", "\u29f5x", "\uff0fx"),
    *("...", "....", "..x", "x..", ".x", "..a..", "~", "~root", "-", "--", "-rf", "--help", "@file"),
    *("$HOME", "${IFS}", "$(id)", "`id`", "a;b", "a|b", "a&b", "a>b", "*", "?", "[a-z]", "{a,b}", "!x", "#x"),
    *(" ", "  a", "a  ", "a.", "'", '"', "a'b", "'; DROP TABLE versions; --", "%s%n%x", "{0.__class__}"),
    *("<script>alert(1)", "{{7*7}}", "?query=1", "#fragment", "a?b#c", "ab:c:d", ":", "::$DATA", "aa:b"),
    *("con", "NUL", "aux.txt", "LPT1", "desktop.ini", ".DS_Store", "Thumbs.db", "null", "None", "__proto__"),
    *("é", "e\u0301", "ﬀ", "ß", "İ", "\u212a", "名前", "العربية", "\U0001f600", "a\u00a0b", "a\u200bb", "\u200d"),
    *("n" * 255, "ü" * 127, "名" * 85, "\U0001f600" * 63, "\u0378", "\ue000", "\U0010fffd", "\ufffd"),
    *("latest", "v1", "tmp", "objects", "catalog.sqlite", "locks", ".begat-0123456789abcdef.tmp", "a.tmp"),
)  # fmt: skip

NAMES = (
    *("", " ", ".", "..", "../x", "a/..", "a/../b", "a//b", "/a", "a/", "/", "a/.b", ".a", "-rf", "--help", "_a"),
    *("a b", "a\\b", "..\\x", "C:x", "a:b", "a@b", "a:v1", "a\x00b", "a\nb", "\x1b[2J", "a\u202eb", "é", "名"),
    *("%2e%2e", "a%2fb", "$HOME", "$(id)", "a;b", "a|b", "*", "a'b", 'a"b', "a<b", "~", "\uff41", "\udcff", "a\n"),
    *("n" * 129, "a/" * 200 + "b", "a/" + "n" * 129, "x" * 100_000),
)  # fmt: skip
LABELS = (
    *("", " ", ".", "..", "../x", "a/b", "/a", "-a", "_a", ".a", "1a", "a b", "a:b", "a@b", "a\\b", "a\x00b", "a\nb"),
    *("\x1b[2J", "a\u202eb", "é", "%2e", "$HOME", "a;b", "*", "a'b", "\udcff", "a\n", "n" * 129, "x" * 100_000),
    *("v1", "V2", "v007", "latest", "LATEST", "Latest"),
)  # fmt: skip

# Target of a link at `d/link`.
LINK_TARGETS = (
    *("/", "/etc/passwd", "//x", "../..", "../../x", "../../../../../../etc/passwd", "x/../../..", "./../.."),
    *("x/..", "../d/../..", "..\\x", "C:/x", "a\nb", "\x1b[2J", "\u202ex", "n" * 256, "a//b", "a/" * 2100 + "b"),
)  # fmt: skip
