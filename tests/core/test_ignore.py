"""What `.begatignore` and globs leave out; git itself is asked whether the rules are its rules."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from begat.errors import BadInput, LimitExceeded, UnsupportedFile
from begat.ignore import (
    IGNORE_FILE,
    MAX_IGNORE_BYTES,
    STORE_FILE,
    Ignore,
    is_always_left_out,
    matcher,
    parse_lines,
)

FILES = [
    *(
        "a",
        "b",
        "ab",
        "a.txt",
        "x y",
        "keep.txt",
        "#a",
        "!a",
        "a[b]",
        "a-b",
        "trail ",
        "b\\c",
        "é",
        "A",
    ),
    *(
        "d/a",
        "d/b/a",
        "d/b/c/a.txt",
        "d/keep.txt",
        "d/d/d/b",
        "build/a",
        "build/keep.txt",
        "build/x/b",
    ),
    *(
        "foo/build/a",
        "foo/bar/a.txt",
        "foo/ab",
        "foo/d/keep.txt",
        "x/y/z/a",
        ".hidden/a",
        "log.d/1.log",
    ),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that git looks after, with files and folders of awkward names."""
    root = tmp_path_factory.mktemp("tree")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    return root


def every_path(root: Path) -> list[tuple[str, bool]]:
    """Each path below a folder, and whether it is a folder."""
    found: list[tuple[str, bool]] = []
    for folder, folders, files in os.walk(root):
        if ".git" in folders:
            folders.remove(".git")
        for name in folders + files:
            path = Path(folder, name)
            found.append((path.relative_to(root).as_posix(), path.is_dir()))
    return found


def ignored_by_git(root: Path, rules: str) -> set[str]:
    """The paths that git leaves out, if these rules are its .gitignore."""
    (root / ".gitignore").write_text(rules, encoding="utf-8")
    paths = every_path(root)
    done = subprocess.run(
        ["git", "-c", "core.ignorecase=false", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=root,
        input="\0".join(path for path, _ in paths).encode(),
        capture_output=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    found = {name.decode() for name in done.stdout.split(b"\0") if name}
    # For git `?` and `[...]` are one byte, and here one character.
    return found - {"é"} if "?" in rules or "[" in rules else found


def ignored_by_begat(root: Path, rules: str) -> set[str]:
    (root / ".gitignore").write_text(rules, encoding="utf-8")
    ignore = Ignore(parse_lines(rules.encode()))
    found = {path for path, is_folder in every_path(root) if ignore.is_ignored(path, is_folder)}
    return found - {"é"} if "?" in rules or "[" in rules else found


LINES = [
    *("a", "*.txt", "!keep.txt", "/a", "d/", "d/**", "d/*", "!d/keep.txt", "build", "!/foo/build", "**/a", "a/**/b"),
    *("d/**/a.txt", "**", "*", "!*/", "!*.txt", "/*", "!/foo", "#a", r"\#a", r"\!a", "!a", "a ", r"trail\ ", "a\\"),
    *("[ab]", "[!a]", "[^a]b", "a[[]b]", r"a\[b\]", "[a-c]", "[c-a]", "[]a]", "[a", "a[-]b", "[[:alpha:]]", "[[:x:]]"),
    *("foo/*/a.txt", "*/*/a", "**/keep.txt", "x/**/z", "/**/b", "**/build/", "d**", "**d/a", "a**b", "/", "!", "!/"),
    *("***/a", "foo//ab", "./a", "../a", "x y", "?", "?b", "d/?", "a\r", "b\\\\c", ".*", "*.d/", "é", "d/b/c/", "//a"),
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_each_kind_of_line_means_what_it_means_in_git(tree: Path, line: str) -> None:
    assert ignored_by_begat(tree, line + "\n") == ignored_by_git(tree, line + "\n")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["d/**", "!d/keep.txt"])
@example(["build", "!keep.txt"])
@example(["*", "!*/", "!*.txt"])
@given(st.lists(st.sampled_from(LINES), min_size=1, max_size=5))
def test_several_lines_together_mean_what_they_mean_in_git(tree: Path, lines: list[str]) -> None:
    rules = "\n".join(lines) + "\n"
    assert ignored_by_begat(tree, rules) == ignored_by_git(tree, rules)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="abd*?/[]!-^.\\ ", min_size=1, max_size=9))
def test_any_line_means_what_it_means_in_git(tree: Path, line: str) -> None:
    assert ignored_by_begat(tree, line + "\n") == ignored_by_git(tree, line + "\n")


def test_without_a_file_nothing_is_ignored(tmp_path: Path) -> None:
    assert not Ignore.load(tmp_path).is_ignored("a", False)


def test_the_file_is_read_with_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / IGNORE_FILE).write_bytes(b"\xef\xbb\xbf*.tmp\r\nlogs/\r\n")
    ignore = Ignore.load(tmp_path)
    assert ignore.is_ignored("a/b.tmp", False)
    assert ignore.is_ignored("logs", True)
    assert not ignore.is_ignored("logs", False)


def test_what_lies_in_an_ignored_folder_is_ignored() -> None:
    ignore = Ignore(["build", "!keep.log"])
    assert ignore.is_ignored("build/keep.log", False)
    assert ignore.is_ignored("x/build/deep/keep.log", False)


def test_a_folder_whose_files_are_ignored_one_by_one_is_entered() -> None:
    ignore = Ignore(["d/**", "!d/keep.txt"])
    assert not ignore.is_ignored("d", True)
    assert not ignore.is_ignored("d/keep.txt", False)
    assert ignore.is_ignored("d/other.txt", False)


def test_a_name_that_is_not_utf8_can_be_ignored(tmp_path: Path) -> None:
    (tmp_path / IGNORE_FILE).write_bytes(b"bad-\xff\n")
    assert Ignore.load(tmp_path).is_ignored(os.fsdecode(b"bad-\xff"), False)


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_an_ignore_file_that_is_no_file_is_refused_and_never_waited_for(
    tmp_path: Path, kind: str
) -> None:
    place = tmp_path / IGNORE_FILE
    if kind == "folder":
        place.mkdir()
    elif kind == "link":
        place.symlink_to("/dev/zero")
    else:
        os.mkfifo(place)
    with pytest.raises(UnsupportedFile):
        Ignore.load(tmp_path)


def test_an_ignore_file_of_absurd_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / IGNORE_FILE).write_bytes(b"a\n" * MAX_IGNORE_BYTES)
    with pytest.raises(LimitExceeded):
        Ignore.load(tmp_path)


# --- globs ---


@pytest.mark.parametrize(
    ("glob", "path", "is_meant"),
    [
        ("*.csv", "a.csv", True),
        ("*.csv", ".csv", True),
        ("*.csv", "x/a.csv", False),
        ("**/*.csv", "a.csv", True),
        ("**/*.csv", "x/y/a.csv", True),
        ("x/**", "x/y/a.csv", True),
        ("x/**", "x", False),
        ("x/**/a", "x/a", True),
        ("x/**/a", "xa", False),
        ("x", "x", True),
        ("x", "x/y/z", True),
        ("x", "xy", False),
        ("x/", "x/y", True),
        ("x/", "x", False),
        ("*", "x", True),
        ("*", "x/y", False),
        ("**", "x/y", True),
        ("a?c", "abc", True),
        ("a?c", "a/c", False),
        ("[a-c].x", "b.x", True),
        ("[!a-c].x", "b.x", False),
        ("[[]1].x", "[1].x", True),
        ("A.csv", "a.csv", False),
        ("a.csv", "a.csv\n", False),
        ("*", "a\nb", True),
        ("é?", "éü", True),
    ],
)
def test_a_glob_means_whole_paths(glob: str, path: str, is_meant: bool) -> None:
    assert matcher(include=glob).is_chosen(path) is is_meant


def test_without_globs_every_path_is_meant() -> None:
    assert matcher().is_chosen("a/b")
    assert not matcher().leaves_out_folder("a")


def test_an_empty_list_of_globs_means_no_path() -> None:
    assert not matcher(include=[]).is_chosen("a")


def test_exclude_wins_over_include() -> None:
    chosen = matcher(include=["**/*.csv", "notes"], exclude="raw")
    assert chosen.is_chosen("a/b.csv")
    assert chosen.is_chosen("notes/1.txt")
    assert not chosen.is_chosen("raw/b.csv")
    assert not chosen.is_chosen("b.txt")


def test_what_lies_in_an_excluded_folder_is_excluded() -> None:
    chosen = matcher(exclude="**/__pycache__")
    assert chosen.leaves_out_folder("a/__pycache__")
    assert chosen.leaves_out_folder("a/__pycache__/b")
    assert not chosen.leaves_out_folder("a")
    assert not chosen.is_chosen("a/__pycache__/b/c.pyc")


@pytest.mark.parametrize("glob", ["", "/", "/a", "./a", "a/../b", "a//b", "a\\b", "[a"])
def test_a_glob_that_could_never_match_is_refused(glob: str) -> None:
    with pytest.raises(BadInput, match="glob"):
        matcher(include=["ok", glob])


def test_a_glob_that_is_no_text_is_misuse() -> None:
    with pytest.raises(TypeError):
        matcher(exclude=[Path("a")])  # type: ignore[list-item]


def test_globs_with_many_stars_are_quick() -> None:
    path = "/".join(["aaaa"] * 200)
    assert not matcher(include="**/" * 40 + "b").is_chosen(path)


# --- what is never logged ---


@pytest.mark.parametrize("name", [".git", ".hg", ".svn", ".begat"])
def test_folders_of_version_control_are_left_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert is_always_left_out(name, tmp_path / name)


def test_the_file_that_stands_for_git_in_a_worktree_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: /elsewhere\n")
    assert is_always_left_out(".git", tmp_path / ".git")


def test_a_store_is_left_out_whatever_it_is_called(tmp_path: Path) -> None:
    store = tmp_path / "our-models"
    store.mkdir()
    facts = {"format": 99, "uid": "0192", "catalog": ".", "objects": "s3://bucket"}
    (store / STORE_FILE).write_text(json.dumps(facts))
    assert is_always_left_out("our-models", store)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 1}', '{"format": "arrow"}', "[" * 50_000]
)
def test_a_folder_with_another_format_file_is_an_ordinary_folder(tmp_path: Path, text: str) -> None:
    (tmp_path / STORE_FILE).write_text(text)
    assert not is_always_left_out(tmp_path.name, tmp_path)


def test_a_pipe_called_like_the_format_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / STORE_FILE)
    assert not is_always_left_out(tmp_path.name, tmp_path)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert not is_always_left_out("a", tmp_path / "a")
