"""Hostile paths, names, links and files at every door: refused before a byte is stored, or kept byte for byte."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from begat import Artifact, files, snapshot
from begat.blobs import BlobWriter
from begat.cli import main
from begat.errors import (
    BadInput,
    BadName,
    BadPath,
    BadReference,
    BegatError,
    DestinationDiffers,
    SourceChanged,
    UnsupportedFile,
)
from begat.identity import Digest, digest_of, new_uid
from begat.model import NewVersion
from begat.opening import open_store
from begat.store import Store
from faults.checking import files_below, tree_of

# The field's own list, in the words of reliability: climbing out (MLflow's CVE-2023-1177, -2780, CVE-2024-1560,
# -1593), other systems' separators and drives, characters that hide or reorder a name, and sheer size.
CONTROLS = [f"a{chr(code)}b" for code in (*range(0x20), *range(0x7F, 0xA0))]
HIDING = [
    f"invoice{chr(code)}fdp.exe"
    for code in (0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)
]
NOT_CHARACTERS = ["a\ud800", "\udfffb", "a\udc80", "\ufdd0", "\ufdef", "a\ufffe", "a\uffff", "\U0001ffff"]  # fmt: skip
REFUSED = [
    *("", "/", "//", "/etc/passwd", "//server/share", ".", "..", "./a", "../a", "a/..", "a/../b"),
    *("a/.", "a/./b", "a//b", "a/", "a/b/", "../../../../etc/passwd", "a/../../b", ".../../a"),
    *("\\", "a\\b", "..\\a", "\\\\server\\share", "C:\\a", "a/..\\b", "a/b\\..\\c", "\\\\?\\C:\\a"),
    *("C:", "C:a", "c:/a", "a/C:/b", "a/Z:", "z:stream", "a:b", "a/b/c:d"),
    *(f"{'x' * 256}", f"a/{'é' * 128}", "y" * 5000, "/".join(["abcdefgh"] * 500)),
    *("/".join("a" * 257), "/".join(["d"] * 1200), "a/" * 300 + "b"),
    *CONTROLS,
    *HIDING,
    *NOT_CHARACTERS,
]
KEPT = [
    *("-rf", "--help", "-", "~", "~root", "$HOME", "${PATH}", "`id`", "$(id)", "a b", " a", "a "),
    *("...", "....", "..a", "a..", "a..b", ".hidden", ".git-not", "%2e%2e", "%2e%2e%2fetc", "%00"),
    *("..%2f..%2fetc", "%252e%252e", "a;b", "a;..;b", "a?b", "a#b", "a&b=c", "a|b", "a<b>", 'a"b'),
    *("a'b", "a*b", "ab:c", "12:30", "con", "NUL", "aux.txt", "COM1", "lpt9.log", "a.", "a ."),
    *("caf\u00e9", "cafe\u0301", "\u212b", "\ufb01", "\u0130", "\u00df", "\u4e2d\u6587", "\u05d0\u05d1"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u200b", "a\u00a0b", "\u00ad", "x" * 255),
    *("é" * 127, "\U0001f600" * 63, "/".join(["d"] * 256), "a/b/c/d", "etc/passwd", "begat", "tmp"),
    *("objects/ab", "format.json", "catalog.sqlite", "a.tmp", ".begat-0123456789abcdef.tmp", "{}"),
    *("[a]", "!a", "@a", "^a", "=a", "+a", ",a", "[0-9]", "**", "*.txt", "a=b", "@file", "\u3000"),
]  # fmt: skip


def test_there_are_more_than_150_hostile_paths() -> None:
    assert len(set(REFUSED)) > 120
    assert len(set(KEPT)) > 80


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "store")


def stored(store: Store) -> list[str]:
    """All that the object store and the users of its catalog can see of what was logged."""
    found = [
        str(path)
        for name in ("objects", "tmp", "damaged")
        for path in files_below(store.path / name)
    ]
    return [*found, *(artifact.name for artifact in store.artifacts())]


# --- paths through the API ---


@pytest.mark.parametrize("path", REFUSED, ids=ascii)
def test_a_hostile_path_is_refused_before_a_byte_is_stored(path: str, store: Store) -> None:
    draft = Artifact("name").add(b"good", "good")
    with pytest.raises(BadPath):
        draft.add(b"bytes", path)
    with pytest.raises(BadPath):
        draft.add(Path(__file__), path if path else "/")
    assert [entry.path for entry in draft.entries] == ["good"]
    assert stored(store) == []


@pytest.mark.filterwarnings("ignore::begat.errors.BegatWarning")
def test_strange_paths_that_are_allowed_come_back_byte_for_byte(
    store: Store, tmp_path: Path
) -> None:
    for number, path in enumerate(KEPT):
        version = store.log_artifact(Artifact(f"n{number}").add(path.encode(), path))
        assert [entry.path for entry in version.entries] == [path]
        assert version.read_bytes(path) == path.encode()
        target = version.download(tmp_path / "out" / str(number))
        assert tree_of(target) == {path: ("file", path.encode(), False)}
    assert store.verify().is_sound


@pytest.mark.filterwarnings("ignore::begat.errors.BegatWarning")
def test_a_folder_of_strange_files_comes_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path in KEPT:
        # Two of a kind, or a file where a folder is to be: that is another test's matter.
        if "/" not in path and path not in ("a.tmp",):
            source.mkdir(exist_ok=True)
            (source / path).write_bytes(path.encode())
    version = store.log_artifact("all", source)
    assert tree_of(version.download(tmp_path / "out")) == tree_of(source)


# --- the same as real files, and through the command ---

AS_FILES = [
    name
    for name in (*CONTROLS, *HIDING, "a\\b", "..\\a", "C:a", "\ufdd0", "a\ufffe", "a\udc80")
    if "\0" not in name
]


@pytest.mark.parametrize("name", AS_FILES, ids=ascii)
def test_a_file_with_a_hostile_name_is_refused_before_a_byte_is_stored(
    name: str, store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "good").write_bytes(b"good")
    (source / "sub" / name).write_bytes(b"bytes")
    with pytest.raises(BadPath):
        store.log_artifact("name", source)
    assert stored(store) == []
    (source / "sub" / name).unlink()
    (source / "sub" / name).mkdir()  # as a folder it is no better
    with pytest.raises(BadPath):
        store.log_artifact("name", source)
    assert stored(store) == []


@pytest.mark.parametrize("name", ["a\\b", "a\nb", "\u202efdp.exe", "a\x1b[2Jb"], ids=ascii)
def test_the_command_refuses_a_hostile_name_without_printing_it_raw(
    name: str, store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_bytes(b"bytes")
    assert main(["--store", str(store.path), "log", "name", str(source)]) == 1
    told = capfd.readouterr()
    assert name not in told.out + told.err or "\\" in name
    assert "Traceback" not in told.err
    assert stored(store) == []


# --- names, aliases, tags, references ---

BAD_NAMES = [
    *("", " ", ".", "..", "../a", "a/..", "/a", "a/", "a//b", "-a", "a b", "a:b", "a@b", "a\\b", "é"),
    *("a\nb", "a\0b", "a%2fb", "a#b", "a?b", "a*", "x" * 129, "/".join(["x" * 64] * 5), "a/.b", "_a"),
    *("\u202eabc", "a\ud800", "~a", "$HOME", "a;b", "a'--", 'a"b', "{a}", "a|b"),
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_a_hostile_name_is_refused_as_name_alias_tag_and_reference(name: str, store: Store) -> None:
    version = store.log_artifact("good", b"bytes")
    before = stored(store)
    with pytest.raises(BadName):
        store.log_artifact(name, b"bytes")
    with pytest.raises(BadInput):
        store.log_artifact("good", b"other", aliases=[name])
    with pytest.raises(BadInput):
        store.log_artifact("good", b"other", tags=[name])
    with pytest.raises(BadInput):
        store.alias(version.ref, name)
    with pytest.raises((BadReference, BadPath)):  # `good:a/..` is a path in the version `a`
        store.get_artifact(f"good:{name}")
    assert stored(store) == before


# --- manifests that another program wrote ---


def plant(store: Store, rows: list[list[object]], name: str = "planted") -> str:
    """Commit a version whose manifest says `rows`, as a hostile writer with access to the store could."""
    page = msgspec.msgpack.encode(rows)
    content = blake3(page[1 if len(rows) < 16 else 3 :], derive_key_context="begat manifest v1")
    digest = Digest(f"b3:{content.hexdigest()}")
    size = sum(row[2] for row in rows if row[0] == 0 and isinstance(row[2], int))
    root = msgspec.msgpack.encode([1, digest, len(rows), size, [[digest_of(page), rows[0][1], len(rows)]]])  # fmt: skip
    with store.locks.writing(), BlobWriter(store.objects, store.catalog.bytes) as writer:
        needs = [*writer.add([page], "page"), *writer.add([root], "root"), *writer.add([b"evil"])]
        new = NewVersion(
            uid=new_uid(), token=new_uid(), name=name, digest=digest, root=needs[1], record=None,
            staged=writer.seal(), needs=tuple(needs), if_unchanged="new",
        )  # fmt: skip
        return store.catalog.commits.commit(new).version.ref


EVIL = digest_of(b"evil")
READ_BACK = [path for path in REFUSED if path.encode("utf-8", "replace").decode() == path]


def test_a_planted_manifest_with_good_paths_is_read(store: Store) -> None:
    ref = plant(store, [[0, "good", 4, EVIL, False]])
    assert store.get_artifact(ref).read_bytes("good") == b"evil"


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_a_hostile_path_in_a_stored_manifest_writes_nothing_anywhere(
    kind: str, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    canary = tree_of(tmp_path / "out")
    for number, path in enumerate(READ_BACK):
        row = {"file": [0, path, 4, EVIL, False], "link": [1, path, "x"], "folder": [2, path]}[kind]
        version = store.get_artifact(plant(store, [row], f"planted-{number}"))
        for read in (
            lambda v=version: v.entries,
            lambda v=version: v.download(tmp_path / "out" / "into"),
            lambda v=version: v.path,
            lambda v=version, p=path: v.read_bytes(p),
        ):
            with pytest.raises(BegatError):
                read()
    assert tree_of(tmp_path / "out") == canary
    damaged = {damage.place for damage in store.verify().damaged}
    assert {f"planted-{number}:v1" for number in range(len(READ_BACK))} <= damaged


@pytest.mark.parametrize(
    "rows",
    [
        [[1, "a", "../../etc/passwd"]],
        [[1, "a", "/etc/passwd"]],
        [[1, "a/b", "../.."]],
        [[1, "up", ".."], [0, "up/x", 4, EVIL, False]],
        [[1, "a", "b"], [0, "a/x", 4, EVIL, False]],
        [[1, "d", "."], [1, "out", "d/.."]],
        [[0, "a", 4, EVIL, False], [0, "a", 4, EVIL, False]],
        [[0, "a", 4, EVIL, False], [0, "a/b", 4, EVIL, False]],
        [[0, "b", 4, EVIL, False], [0, "a", 4, EVIL, False]],
        [[2, "a"], [0, "a/b", 4, EVIL, False]],
        [[0, "a", -1, EVIL, False]],
        [[0, "a", 4, "b3:../../../x", False]],
        [[0, "a", 4, EVIL.upper(), False]],
        [[0, "a", 4, EVIL[:-2], False]],
        [[9, "a", 4, EVIL, False]],
        [[0, "a", 4, EVIL, False, "more"]],
        [[0, "a", (1 << 63) + 1, EVIL, False]],
    ],
    ids=lambda rows: ascii(rows)[:60],
)
def test_entries_that_no_writer_of_ours_makes_are_refused_on_read_back(
    rows: list[list[object]], store: Store, tmp_path: Path
) -> None:
    version = store.get_artifact(plant(store, rows))
    with pytest.raises(BegatError):
        version.download(tmp_path / "out")
    with pytest.raises(BegatError):
        version.path  # noqa: B018 - reading it is what is tested
    assert files_below(tmp_path / "out") == []


def test_a_file_whose_size_is_not_what_the_manifest_says_is_not_written(
    store: Store, tmp_path: Path
) -> None:
    version = store.get_artifact(plant(store, [[0, "a", 3, EVIL, False]]))
    with pytest.raises(BegatError):
        version.read_bytes("a")
    with pytest.raises(BegatError):
        version.download(tmp_path / "out")
    assert files_below(tmp_path / "out") == []


# --- links at the destination ---


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "precious").write_bytes(b"precious")
    return folder


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


def two_files(store: Store) -> str:
    return store.log_artifact(Artifact("two").add(b"1", "sub/one").add(b"2", "sub/two")).ref


@pytest.mark.parametrize("overwrite", ["fail", "preserve", "overwrite"])
def test_a_link_in_place_of_a_folder_is_not_written_through(
    overwrite: str, store: Store, outside: Path, into: Path
) -> None:
    (into / "sub").symlink_to(outside)
    with pytest.raises(DestinationDiffers):
        store.get_artifact(two_files(store)).download(into, overwrite=overwrite)  # pyright: ignore[reportArgumentType]
    assert tree_of(outside) == {"precious": ("file", b"precious", False)}


def test_a_link_in_place_of_a_file_is_replaced_and_its_target_left_alone(
    store: Store, outside: Path, into: Path
) -> None:
    (into / "sub").mkdir()
    (into / "sub" / "one").symlink_to(outside / "precious")
    version = store.get_artifact(two_files(store))
    with pytest.raises(DestinationDiffers):
        version.download(into)
    version.download(into, overwrite="overwrite")
    assert tree_of(outside) == {"precious": ("file", b"precious", False)}
    assert tree_of(into)["sub/one"] == ("file", b"1", False)


@pytest.mark.parametrize("operation", ["mkdir", "create", "write", "rename"])
def test_a_folder_that_is_swapped_for_a_link_during_a_checkout_leads_nowhere(
    operation: str, store: Store, outside: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = store.get_artifact(two_files(store))
    swapped: list[str] = []

    def swap(name: str, path: str) -> None:
        if name == operation and "/sub" in path and not swapped:
            swapped.append(path)
            if (into / "sub").exists():
                (into / "sub").rename(into / "moved away")
            (into / "sub").symlink_to(outside)

    monkeypatch.setattr(files, "fault", swap)
    try:
        version.download(into)
    except DestinationDiffers:
        pass
    assert swapped
    assert tree_of(outside) == {"precious": ("file", b"precious", False)}


# --- things that are no regular files ---


def make_socket(path: Path) -> None:
    # A socket's name may have 107 bytes; the folder of a test is longer.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:
        pytest.fail("only root may make a device: run this test as root, or leave it out by name")


@pytest.mark.parametrize("make", [os.mkfifo, make_socket, make_device])
def test_what_is_no_file_is_named_and_never_waited_for(
    make: Callable[[Path], None], store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "good").write_bytes(b"good")
    make(source / "sub" / "strange")
    with within_seconds(5), pytest.raises(UnsupportedFile, match="sub/strange"):
        store.log_artifact("name", source)
    with within_seconds(5), pytest.raises(UnsupportedFile):
        store.log_artifact("name", source / "sub" / "strange")
    assert stored(store) == []


def test_a_file_that_becomes_a_pipe_after_it_was_listed_is_no_hang(
    store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"bytes")
    draft = Artifact("name").add(path)
    path.unlink()
    os.mkfifo(path)
    with within_seconds(5), pytest.raises(UnsupportedFile):
        store.log_artifact(draft)
    assert stored(store) == []


class within_seconds:
    """End the process with every thread's stack if the block takes longer: a hang is a failure with a name."""

    def __init__(self, seconds: float) -> None:
        self._timer = threading.Timer(seconds, self._over)

    def _over(self) -> None:
        import faulthandler

        faulthandler.dump_traceback()
        os._exit(3)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *exc: object) -> None:
        self._timer.cancel()


def test_links_that_dangle_or_loop_inside_are_kept_as_they_are(
    store: Store, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "self").symlink_to("self")
    (source / "sub" / "ping").symlink_to("pong")
    (source / "sub" / "pong").symlink_to("ping")
    (source / "dangling").symlink_to("nothing/here")
    (source / "around").symlink_to("sub")
    version = store.log_artifact("links", source)
    assert tree_of(version.download(tmp_path / "out")) == tree_of(source)


@pytest.mark.parametrize(
    "target", ["/etc/passwd", "../outside", "sub/../../outside", "..", "../.."]
)
def test_links_that_lead_out_are_refused(
    target: str, store: Store, tmp_path: Path, outside: Path
) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "link").symlink_to(target)
    with pytest.raises(BadInput):
        store.log_artifact("links", source)
    with pytest.raises(BadInput):
        store.log_artifact("links", source, symlinks="follow")
    assert stored(store) == []


def test_a_tree_that_is_1200_deep_is_refused_in_words(store: Store, tmp_path: Path) -> None:
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(BadPath, match="deeper than 256"):
        store.log_artifact("deep", top)
    assert stored(store) == []
    subprocess.run(["rm", "-rf", str(top)], check=True)  # what Python has for this gives up as well


# --- files that change while they are read ---


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def replace(path: Path) -> None:
    """Another file of the same size under the name; the open one loses its last name."""
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    other.replace(path)


def rewrite(path: Path) -> None:
    """The same size, and the modification time put back: only the change time tells."""
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = [grow, shorten, rewrite, replace, os.unlink]


@pytest.mark.parametrize("change", CHANGES)
def test_a_large_file_that_changes_while_it_is_copied_makes_no_version(
    change: Callable[[Path], None], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(snapshot.MEDIUM_FILE_BYTES + 1))

    def meanwhile(operation: str, where: str) -> None:
        if operation == "copy":
            change(path)

    monkeypatch.setattr(files, "fault", meanwhile)
    with pytest.raises(SourceChanged):
        store.log_artifact("data", path)
    monkeypatch.setattr(files, "fault", None)
    assert store.artifacts() == []
    assert files_below(store.path / "tmp") == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_medium_file_that_changes_while_it_is_read_makes_no_version(
    change: Callable[[Path], None], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(2 << 20))
    cut = BlobWriter.cut

    def meanwhile(self: BlobWriter, *read: Any) -> Any:
        change(path)
        return cut(self, *read)

    monkeypatch.setattr(BlobWriter, "cut", meanwhile)
    with pytest.raises(SourceChanged):
        store.log_artifact("data", path)
    assert stored(store) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_medium_file_that_changes_once_it_was_read_is_stored_as_it_was(
    change: Callable[[Path], None], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(content := os.urandom(2 << 20))

    def meanwhile(operation: str, where: str) -> None:
        if operation == "copy":
            change(path)

    monkeypatch.setattr(files, "fault", meanwhile)
    version = store.log_artifact("data", path)
    monkeypatch.setattr(files, "fault", None)
    assert version.read_bytes("data.bin") == content
    assert store.verify().is_sound


@pytest.mark.parametrize("change", CHANGES)
def test_a_small_file_that_changes_while_it_is_read_makes_no_version(
    change: Callable[[Path], None], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"some bytes")
    read_all = snapshot._read_all

    def meanwhile(fd: int, room: memoryview) -> memoryview:
        data = read_all(fd, room)
        change(path)
        return data

    monkeypatch.setattr(snapshot, "_read_all", meanwhile)
    with pytest.raises(SourceChanged):
        store.log_artifact("data", path)
    assert stored(store) == []


# --- size ---


@pytest.mark.slow
def test_a_sparse_file_of_5_gib_takes_less_than_500_mb_of_memory(tmp_path: Path) -> None:
    """The limit is the system's own: anonymous memory above it is an error in the child, not a figure."""
    source = tmp_path / "sparse.bin"
    with source.open("wb") as file:
        file.truncate(5 << 30)
        for at in (0, 1 << 30, 3 << 30, (5 << 30) - 4):
            file.seek(at)
            file.write(b"data")
    script = """
        import resource, sys
        resource.setrlimit(resource.RLIMIT_DATA, (500_000_000, 500_000_000))
        import begat
        store = begat.open_store(sys.argv[1])
        version = store.log_artifact("sparse", sys.argv[2])
        assert version.size_bytes == 5 << 30, version.size_bytes
        assert not version.verify()
        print(sum(size for _, size in store.objects.list()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "store"), str(source)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 << 20, "equal parts are to be stored once"
