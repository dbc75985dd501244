"""What may be stored as a path, and what never, with hostile ones from the field."""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from begat.errors import BadPath
from begat.paths import (
    check_path,
    check_segment,
    check_symlink,
    parents,
    path_key,
    portability_problems,
    resolve_link,
)

# Among them what MLflow's path checks let through (CVE-2023-1177, CVE-2023-2780, CVE-2024-1560, CVE-2024-1593), what
# node-tar's did (CVE-2026-23745) and what Python's tarfile did (CVE-2007-4559).
CLIMBING = [
    *(
        "..",
        "../x",
        "a/..",
        "a/../b",
        "a/../../b",
        "../../etc/passwd",
        "a/b/../../../c",
        "../",
        "a/../",
    ),
    *(".", "./", "./x", "a/.", "a/./b", "././x", "a/./../b", ".//x", "../.", "./.."),
    *(
        "..\\x",
        "..\\..\\windows\\win.ini",
        "a\\..\\b",
        "\\..\\x",
        "..\\/x",
        "..//x",
        "a/..//b",
        "....//../x",
    ),
    *(
        "x/../../../../../../etc/shadow",
        "models/../../.ssh/authorized_keys",
        "../.git/config",
        "a/../.begat/format.json",
    ),
]
ABSOLUTE = [
    *(
        "/",
        "//",
        "///",
        "/x",
        "//x",
        "/etc/passwd",
        "//server/share/x",
        "///etc/passwd",
        "/..",
        "/../x",
        "/./x",
    ),
    *(
        "\\",
        "\\x",
        "\\\\server\\share",
        "\\\\?\\C:\\x",
        "\\\\.\\pipe\\x",
        "\\??\\C:\\x",
        "/dev/null",
        "/proc/self/environ",
    ),
    *(
        "C:",
        "C:x",
        "C:/x",
        "c:\\x",
        "C:\\",
        "z:/",
        "a/C:/x",
        "a/C:x",
        "a/b/d:",
        "A:b/c",
        "C:/../x",
        "a/z:\\x",
        "x:y",
    ),
    *("/C:/x", "file:/C:/x", "//./C:/x", "/\\x", "\\/x"),
]
EMPTY_SEGMENTS = [
    *("", "a//b", "a/", "a//", "a/b/", "a///b", "a/b//c", " /", "a/ /", "dir/", "x//"),
]
CONTROLS = [
    *(f"a{chr(code)}b" for code in range(0x20)),
    *("\x7f", "a\x7fb", *(f"a{chr(code)}b" for code in (0x80, 0x85, 0x8D, 0x90, 0x9B, 0x9F))),
    *(
        "safe.txt\x00.png",
        "\x00",
        "a/\x00",
        "a\n",
        "\na",
        "a\r\nSet-Cookie: x",
        "a\tb/c",
        "\x1b[2Jx",
        "x\x08y",
    ),
]
INVISIBLE = [
    *(
        f"a{char}b"
        for char in "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"
    ),
    *("photo\u202egnp.exe", "\u2029", "a/\u2066x", "\ufeff", "\ufeffa", "a\ufeff.txt"),
]
NOT_TEXT = [
    *(
        "\ud800",
        "a\ud800",
        "\udfff",
        "a/\udc80b",
        "\udcff.txt",
        "\udc2e\udc2e/x",
        "\ud83d",
        "\ude00",
        "\udbff\udfff",
    ),
    *(
        "\ufdd0",
        "\ufdef",
        "a\ufddab",
        "\ufffe",
        "\uffff",
        "a\U0001fffe",
        "\U0001ffff",
        "\U0010fffe",
        "\U0010ffff",
        "\U000cffff",
    ),
]
TOO_LONG = [
    *(
        "a" * 256,
        "a/" + "b" * 256,
        "é" * 128,
        "日" * 86,
        "😀" * 64,
        "a" * 256 + ".txt",
        "x/" + "y" * 300 + "/z",
    ),
    *("/".join(["a" * 255] * 17), "/".join(["b" * 99] * 41) + "x" * 99, "/".join(["日" * 80] * 18)),
    *("/".join("a" * 257), "/".join(["ab"] * 300), "a/" * 1200 + "b", "x" * 5000),
]
REFUSED = [
    *CLIMBING,
    *ABSOLUTE,
    *EMPTY_SEGMENTS,
    *CONTROLS,
    *INVISIBLE,
    *NOT_TEXT,
    *TOO_LONG,
]
ACCEPTED = [
    *(
        "a",
        "a/b",
        "a/b/c.txt",
        ".hidden",
        "..x",
        "x..",
        "...",
        "a/.../b",
        ".a/..b/c.",
        "a.b.c",
        "-",
        "--help",
        "-rf",
    ),
    *(
        " ",
        "a b",
        " a",
        "a ",
        "a/ b /c",
        "~",
        "~root",
        "$HOME",
        "`id`",
        "$(id)",
        "a;b",
        "a&b",
        "a|b",
        "a'b",
        'a"b',
        "a*b?",
    ),
    *(
        "%2e%2e%2fx",
        "%252e%252e",
        "..%2fx",
        "%00",
        "a%5cb",
        "a#b",
        "a?b=c",
        "a@b",
        ":b",
        "aa:b",
        "1:2",
        "é:x",
        "[a]{b}",
    ),
    *(
        "é",
        "e\u0301",
        "日本語/ファイル",
        "😀",
        "👩\u200d👩\u200d👧",
        "नमस्ते",
        "العربية",
        "ß",
        "İ",
        "ﬀ",
        "Å",
        "\u212b",
        "a\u00a0b",
        "a\u200bb",
    ),
    *(
        "con",
        "NUL",
        "aux.txt",
        "LPT1",
        "COM¹",
        "a.",
        "a ",
        "<>",
        "Thumbs.db",
        ".DS_Store",
        "desktop.ini",
        "x" * 255,
        "é" * 127,
    ),
    *(
        "日" * 85,
        "😀" * 63,
        "/".join("a" * 256),
        "/".join(["a" * 254] * 16),
        "\u2024\u2024/x",
        "\uff0e\uff0e/x",
        "\u2215etc",
        "\u29f5x",
    ),
    *(
        "\ufffd",
        "\ufff9",
        "\ue000",
        "\U000f0000",
        "\U0010fffd",
        "\u0378",
        "null",
        "None",
        "true",
        "0",
        "__proto__",
        "{{7*7}}",
    ),
    *("<script>alert(1)</script>", "'; DROP TABLE versions; --", "{0}", "%s%n", "..;"),
]


def shown(path: str) -> str:
    return ascii(path)[:40]


def test_the_table_of_hostile_paths_is_long_enough() -> None:
    assert len(set(REFUSED)) >= 150


@pytest.mark.parametrize("path", REFUSED, ids=shown)
def test_a_hostile_path_is_refused(path: str) -> None:
    with pytest.raises(BadPath) as caught:
        check_path(path)
    message = str(caught.value)
    assert "nothing was stored" in message
    assert message.isprintable(), "it would break the line or the terminal it is shown on"
    assert len(message) < 1000


@pytest.mark.parametrize("path", ACCEPTED, ids=shown)
def test_an_odd_but_harmless_path_is_kept_as_it_is(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("path", ACCEPTED, ids=shown)
def test_an_accepted_path_stays_below_its_root(path: str) -> None:
    assert posixpath.normpath("/base/" + path) == "/base/" + path


@pytest.mark.parametrize("path", [p for p in ACCEPTED if len(p) < 3000], ids=shown)
def test_an_accepted_path_can_be_written_and_is_listed_under_the_same_name(
    path: str, tmp_path: Path
) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    listed = [
        os.path.relpath(os.path.join(folder, name), tmp_path)
        for folder, _, names in os.walk(tmp_path)
        for name in names
    ]
    assert listed == [path]


@given(st.text(alphabet=st.sampled_from("a./\\:C\x00 é\u202e"), max_size=12))
def test_what_is_accepted_is_a_clean_relative_path(path: str) -> None:
    try:
        check_path(path)
    except BadPath:
        return
    assert posixpath.normpath(path) == path
    assert path.split("/")[0] not in ("", "..")
    assert "\\" not in path
    for segment in path.split("/"):
        check_segment(segment, path)


@given(st.text(max_size=40))
def test_a_path_is_accepted_or_refused_but_never_crashes(path: str) -> None:
    try:
        message = check_path(path) and ""
    except BadPath as error:
        message = str(error)
    assert message.isprintable()


def test_limits_count_bytes_and_not_characters() -> None:
    assert check_path("é" * 127)
    with pytest.raises(BadPath, match="255 bytes"):
        check_path("é" * 128)


def test_a_path_of_exactly_the_longest_length_is_kept() -> None:
    path = "/".join(["a" * 255] * 15 + ["b" * 254, "c"])
    assert len(path) == 4096
    assert check_path(path)
    with pytest.raises(BadPath, match="4096 bytes"):
        check_path(path + "c")


def test_a_message_names_the_path_and_the_character() -> None:
    with pytest.raises(BadPath) as caught:
        check_path("photo\u202egnp.exe")
    assert "'photo\\u202egnp.exe'" in str(caught.value)
    assert "U+202E" in str(caught.value)


# --- links ---

INSIDE = [
    *(
        ("a", "b"),
        ("a", "b/c"),
        ("d/a", "../b"),
        ("d/a", "../b/c"),
        ("d/e/a", "../../b"),
        ("a", "."),
        ("d/a", ".."),
    ),
    *(
        ("a", "a"),
        ("a", "missing"),
        ("a", "./b"),
        ("a", "b/"),
        ("a", "b/./c"),
        ("d/a", "./../b"),
        ("a", "..b"),
    ),
]
OUTSIDE = [
    *(
        ("a", "/etc/passwd"),
        ("a", ".."),
        ("a", "../x"),
        ("d/a", "../../x"),
        ("a", "b/../../x"),
        ("a", ""),
        ("a", "/"),
    ),
    *(
        ("a", "//x"),
        ("a", "C:/x"),
        ("a", "..\\x"),
        ("a", "b\x00"),
        ("a", "b\\c"),
        ("a", "b//c"),
        ("a", "\u202eb"),
    ),
    *(
        ("a", "x" * 256),
        ("a", "a/" * 2100 + "b"),
        ("d/e/a", "../../../x"),
        ("a", "./../x"),
        ("a", "\ud800"),
    ),
]


@pytest.mark.parametrize(("path", "target"), INSIDE)
def test_a_link_inside_the_version_is_kept(path: str, target: str) -> None:
    check_symlink(path, target)


@pytest.mark.parametrize(("path", "target"), OUTSIDE, ids=lambda text: shown(str(text)))
def test_a_link_out_of_the_version_is_refused(path: str, target: str) -> None:
    with pytest.raises(BadPath) as caught:
        check_symlink(path, target)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("target", ["b/..", "b/../c", "d/up/..", "../b/../c"])
def test_a_link_that_climbs_after_a_name_is_refused(target: str) -> None:
    # The name may be a link itself: with `d/up -> ..`, `out -> d/up/..` leaves the version.
    with pytest.raises(BadPath):
        check_symlink("d/a", target)


def test_links_that_pass_the_check_cannot_leave_together(tmp_path: Path) -> None:
    """All pairs of links, on a real file system: none of them leads out of the root."""
    root = tmp_path / "r"
    (root / "d" / "e").mkdir(parents=True)
    targets = [
        "..",
        "../..",
        ".",
        "d",
        "d/l",
        "d/l/..",
        "l/..",
        "../l",
        "e/..",
        "d/e/..",
        "../d/l/..",
        "m/../..",
    ]
    for first in targets:
        for second in targets:
            links = [("d/l", first), ("m", second)]
            try:
                for path, target in links:
                    check_symlink(path, target)
            except BadPath:
                continue
            for path, target in links:
                os.symlink(target, root / path)
            for path, _ in links:
                real = os.path.realpath(root / path)
                assert real == str(root) or real.startswith(f"{root}/"), (first, second)
                os.unlink(root / path)


@pytest.mark.parametrize(
    ("path", "target", "meant"),
    [
        ("a", "b", "b"),
        ("d/a", "b", "d/b"),
        ("d/a", "../b", "b"),
        ("d/e/a", "../../b/c", "b/c"),
        ("d/a", "..", ""),
        ("a", ".", ""),
        ("d/a", "./b/", "d/b"),
    ],
)
def test_a_link_is_resolved_from_its_folder(path: str, target: str, meant: str) -> None:
    assert resolve_link(path, target) == meant


# --- order, parents, other systems ---


def test_paths_sort_by_their_bytes() -> None:
    names = ["a/b", "a.b", "a", "\U0001f600", "\uffee", "B", "é"]
    assert sorted(names, key=path_key) == ["B", "a", "a.b", "a/b", "é", "\uffee", "\U0001f600"]


def test_parents_are_the_folders_from_the_top() -> None:
    assert list(parents("a/b/c")) == ["a", "a/b"]
    assert list(parents("a")) == []


CLASHES = [
    *(
        ("a", "A"),
        ("é", "e\u0301"),
        ("ß", "SS"),
        ("ﬀ", "ff"),
        ("Å", "\u212b"),
        ("a", "a."),
        ("a", "a "),
        ("x/a", "X/a"),
    ),
    *(
        ("A/x", "a/y"),
        ("K", "\u212a"),
        ("ſ", "s"),
        ("①", "1"),
        ("a/b", "A"),
        ("σ", "ς"),
        ("日", "日 ."),
        ("a", "a. ."),
    ),
]


@pytest.mark.parametrize("names", CLASHES, ids=ascii)
def test_names_that_are_one_on_other_systems_clash(names: tuple[str, str]) -> None:
    assert any("are one name" in problem for problem in portability_problems(names))


@pytest.mark.parametrize(
    "name",
    *[
        [
            "con",
            "NUL.txt",
            "a/aux",
            "com1",
            "LPT9.log",
            "CONIN$",
            "a:b",
            "a?",
            "x<y",
            'q"',
            "a|b",
            "a*",
            "a.",
            "b ",
            "d./x",
        ]
    ],
)
def test_names_that_windows_cannot_have_are_told(name: str) -> None:
    assert list(portability_problems([name]))


@pytest.mark.parametrize(
    "names",
    [["a", "b"], ["a/x", "a/y"], ["console", "com10", "null", "a.b"], ["é", "e"], ["a", "a"]],
)
def test_ordinary_names_have_no_problem(names: list[str]) -> None:
    assert list(portability_problems(names)) == []


def test_a_name_that_is_no_text_is_told_by_its_bytes() -> None:
    with pytest.raises(BadPath, match="is not UTF-8: it holds the byte 0xFF"):
        check_path(os.fsdecode(b"caf\xff.txt"))
