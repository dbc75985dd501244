"""What else a walk may meet: things that are no files, that become something else, that are too deep or in motion."""

import contextlib
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

from begat.artifact import Artifact
from begat.blobs import writer as blobs
from begat.errors import BadInput, BadPath, SourceChanged, UnsupportedFile
from begat.opening import open_store
from begat.store import Store
from command_line import begat
from faults.checking import files_below, tree_of

MIB = 1 << 20


@pytest.fixture
def store() -> Generator[Store]:
    """The store that the command line finds too."""
    store = open_store(os.environ["BEGAT_STORE"])
    yield store
    store.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "good").write_bytes(b"good")
    return folder


def stored(store: Store) -> list[str]:
    """Everything that the store holds of anything."""
    found = [p for name in ("objects", "tmp", "staging") for p in files_below(store.path / name)]
    return [*map(str, found), *(artifact.name for artifact in store.artifacts())]


@contextlib.contextmanager
def soon() -> Generator[None]:
    """What is inside may take five seconds; a hang ends the process by pytest's own time limit."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 5


def make_socket(path: Path) -> None:
    # A socket's name may have 107 bytes; the folder of a test is longer.
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


def make_device(path: Path) -> None:
    # Device 0:0 is the one that Linux lets everybody make.
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(0, 0))


KINDS: dict[str, Callable[[Path], None]] = {
    "a named pipe": os.mkfifo,
    "a socket": make_socket,
    "a device": make_device,
}


# --- what is no file ---


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symlinks", ["keep", "follow", "refuse"])
def test_what_is_no_file_is_named_with_its_kind_and_never_waited_for(
    kind: str, symlinks: str, store: Store, data: Path
) -> None:
    KINDS[kind](data / "sub" / "strange")
    with soon(), pytest.raises(UnsupportedFile, match=f"'sub/strange' is {kind}"):
        store.log_artifact("name", data, symlinks=symlinks)  # pyright: ignore[reportArgumentType]
    with soon(), pytest.raises(UnsupportedFile, match=kind):
        Artifact("name").add(data / "sub" / "strange")
    told = begat("log", "name", data)
    assert told.code == 1
    assert kind in told.err
    assert stored(store) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_to_what_is_no_file_is_not_followed_to_it(
    kind: str, store: Store, data: Path, tmp_path: Path
) -> None:
    KINDS[kind](tmp_path / "strange")
    (data / "link").symlink_to(tmp_path / "strange")
    for symlinks in ("keep", "follow", "refuse"):
        with soon(), pytest.raises(BadInput):
            store.log_artifact("name", data, symlinks=symlinks)
    with soon(), pytest.raises(UnsupportedFile, match=kind):
        store.log_artifact("name", data / "link")  # named by the caller, so it is looked behind
    assert stored(store) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_out_may_be_anything(kind: str, store: Store, data: Path) -> None:
    KINDS[kind](data / "sub" / "strange")
    with soon():
        version = store.log_artifact("excluded", data, exclude="sub/*")
        (data / ".begatignore").write_text("strange\n")
        store.log_artifact("ignored", data)
    assert "good" in [entry.path for entry in version.entries]


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/stdin", "/dev"])
def test_devices_of_the_system_are_refused(path: str, store: Store) -> None:
    with soon(), pytest.raises(BadInput):
        store.log_artifact("name", path)
    assert stored(store) == []


def test_a_file_that_the_kernel_makes_up_is_refused_and_not_cut_short(store: Store) -> None:
    # Its size is told as 0, so nothing says when all of it was read.
    with soon(), pytest.raises(SourceChanged):
        store.log_artifact("name", "/proc/self/status")
    assert stored(store) == []


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
@pytest.mark.parametrize("overwrite", ["fail", "preserve", "overwrite"])
def test_what_stands_at_a_destination_is_never_opened(
    kind: str, overwrite: str, store: Store, tmp_path: Path
) -> None:
    version = store.log_artifact("name", b"bytes")
    out = tmp_path / "out"
    out.mkdir()
    KINDS[kind](out / "name")
    with soon(), contextlib.suppress(BadInput, FileExistsError):
        with pytest.warns() if overwrite == "preserve" else contextlib.nullcontext():
            version.download(out, overwrite=overwrite)  # pyright: ignore[reportArgumentType]
    if overwrite == "overwrite":
        assert tree_of(out) == {"name": ("file", b"bytes", False)}
    else:
        assert not stat.S_ISREG((out / "name").lstat().st_mode)


# --- what was a file when it was listed ---


def _becomes_link(path: Path) -> None:
    secret = path.with_name("secret")
    secret.write_bytes(b"never to be stored " * 10)
    path.symlink_to(secret)


BECOMES: dict[str, Callable[[Path], None]] = {
    **KINDS,
    "a link": _becomes_link,
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: None,
}


@pytest.mark.parametrize("size", [100, 2 * MIB])
@pytest.mark.parametrize("what", BECOMES)
def test_a_file_that_is_something_else_by_the_time_it_is_read_makes_no_version(
    what: str, size: int, store: Store, data: Path
) -> None:
    path = data / "sub" / "file"
    path.write_bytes(bytes(size))
    draft = Artifact("name").add(data)
    path.unlink()
    BECOMES[what](path)
    with soon(), pytest.raises(BadInput, match="sub/file") as caught:
        store.log_artifact(draft)
    assert isinstance(caught.value, SourceChanged | UnsupportedFile)
    assert store.artifacts() == []
    assert files_below(store.path / "tmp") == []


@pytest.mark.parametrize("what", ["a file", "nothing"])
def test_a_folder_that_is_something_else_by_the_time_it_is_read_makes_no_version(
    what: str, store: Store, data: Path
) -> None:
    (data / "sub" / "file").write_bytes(b"x")
    draft = Artifact("name").add(data)
    (data / "sub").rename(data / "moved")
    if what == "a file":
        (data / "sub").write_bytes(b"x")
    with pytest.raises(SourceChanged, match="sub/file"):
        store.log_artifact(draft)
    assert store.artifacts() == []


# --- links ---


def test_links_that_dangle_loop_or_lead_to_folders_are_kept_as_they_are(
    store: Store, data: Path, tmp_path: Path
) -> None:
    for name, target in (
        *(("itself", "itself"), ("ping", "pong"), ("pong", "ping"), ("dangling", "nothing/here")),
        *(("root", "."), ("sub/up", ".."), ("sub/around", "../sub/around"), ("to-folder", "sub")),
        ("sub/slash", "../sub/"),
    ):
        (data / name).symlink_to(target)
    with soon():
        version = store.log_artifact("links", data)
        assert tree_of(version.download(tmp_path / "out")) == tree_of(data)
        assert tree_of(version.path) == tree_of(data)
        assert store.log_artifact("links", tmp_path / "out").is_new is False


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("sub/up", ".."),
        ("self", "self"),
        ("root", "."),
        ("sub/deep", "../sub"),
        ("gone", "gone-on"),
    ],
)
def test_links_that_loop_or_dangle_cannot_be_followed(
    link: str, target: str, store: Store, data: Path
) -> None:
    (data / link).symlink_to(target)
    with soon(), pytest.raises(UnsupportedFile, match=link):
        store.log_artifact("name", data, symlinks="follow")
    assert stored(store) == []


def test_hard_links_are_stored_once_and_setuid_is_dropped(
    store: Store, data: Path, tmp_path: Path
) -> None:
    content = os.urandom(2 * MIB)
    (data / "one").write_bytes(content)
    os.link(data / "one", data / "two")
    (data / "tool").write_bytes(b"#!/bin/sh\n")
    (data / "tool").chmod(0o6755)
    version = store.log_artifact("name", data)
    assert version.new_bytes < 3 * MIB
    out = version.download(tmp_path / "out")
    assert (out / "one").stat().st_ino != (out / "two").stat().st_ino
    assert stat.S_IMODE((out / "tool").stat().st_mode) & 0o7100 == 0o100


# --- deep and long ---


def _deep(top: Path, name: str, depth: int, leaf: str = "file") -> None:
    """A folder `depth` deep; made from inside, since its path may be longer than the system takes."""
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open(leaf, os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)


def remove(top: Path) -> None:
    """Python's own way fails where a tree is deeper than its stack, and pytest's clean-up with it."""
    subprocess.run(["rm", "-rf", top], check=True)


@pytest.mark.parametrize("depth", [256, 1_200, 3_000])
def test_a_tree_that_is_too_deep_is_refused_in_words(
    depth: int, store: Store, tmp_path: Path
) -> None:
    _deep(tmp_path / "deep", "d", depth)
    try:
        for symlinks in ("keep", "follow"):
            with soon(), pytest.raises(BadPath, match="deeper than 256"):
                store.log_artifact("deep", tmp_path / "deep", symlinks=symlinks)
        told = begat("log", "deep", tmp_path / "deep")
        assert told.code == 1
        assert "deeper than 256" in told.err
        assert "RecursionError" not in told.err
        assert stored(store) == []
        # What is left out is not walked through.
        (tmp_path / "deep" / "good").write_bytes(b"x")
        version = store.log_artifact("deep", tmp_path / "deep", exclude="d")
        assert [entry.path for entry in version.entries] == ["good"]
    finally:
        remove(tmp_path / "deep")


def test_the_deepest_tree_that_is_allowed_comes_back(store: Store, tmp_path: Path) -> None:
    _deep(tmp_path / "deep", "d", 255)
    version = store.log_artifact("deep", tmp_path / "deep")
    assert [entry.path.count("/") for entry in version.entries] == [255]
    assert tree_of(version.download(tmp_path / "out")) == tree_of(tmp_path / "deep")
    assert tree_of(version.path) == tree_of(tmp_path / "deep")


def test_a_path_that_only_the_folder_above_makes_too_long_is_refused_in_words(
    store: Store, tmp_path: Path
) -> None:
    # 16 x 250 bytes may be stored; with the folder of this test before it Linux cannot be asked for it by its path.
    (tmp_path / ("above" * 40)).mkdir()
    top = tmp_path / ("above" * 40) / "long"
    _deep(top, "n" * 250, 16)
    try:
        with soon(), pytest.raises(BadPath, match="too long"):
            store.log_artifact("long", top)
        assert stored(store) == []
    finally:
        remove(top)


def test_a_path_that_is_longer_than_the_system_takes_at_once_is_written_below_any_folder(
    store: Store, tmp_path: Path
) -> None:
    path = "/".join(["n" * 250] * 16 + ["file"])
    version = store.log_artifact(Artifact("long").add(b"bytes", path).add(b"more", "short"))
    try:
        version.download(tmp_path / "out")
        fd = os.open(tmp_path / "out", os.O_RDONLY)
        for name in path.split("/"):
            inner = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        assert os.read(fd, 100) == b"bytes"
        os.close(fd)
        assert version.read_bytes(path) == b"bytes"
    finally:
        remove(tmp_path / "out")


# --- in motion ---


def test_a_file_that_others_keep_writing_to_is_refused_or_read_at_one_moment(
    store: Store, tmp_path: Path
) -> None:
    """At any moment it has a generation up to some place and the one before it from there on; nothing else may show."""
    path = tmp_path / "data"
    path.write_bytes(bytes(8 * MIB))
    is_over = threading.Event()

    def write() -> None:
        generation = 0
        while not is_over.is_set():
            generation = (generation + 1) % 256
            with path.open("r+b") as file:
                for _ in range(8):
                    file.write(bytes([generation]) * MIB)
                    file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    refused = 0
    try:
        for _ in range(20):
            try:
                data = store.log_artifact("data", path).read_bytes("data")
            except SourceChanged:
                refused += 1
            else:
                seen = list(data[:: MIB // 2])
                place = next((at for at, one in enumerate(seen) if one != seen[0]), len(seen))
                rest = (seen[0] - 1) % 256
                assert all(one == rest for one in seen[place:]), f"a mix of two moments: {seen}"
    finally:
        is_over.set()
        writer.join()
    assert refused > 0
    assert files_below(store.path / "tmp") == []
    assert store.verify().is_sound


def _appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _rewritten(path: Path) -> None:
    """The same size, and the time of modification put back: only the time of the change tells."""
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("size", [2 * MIB, 17 * MIB])
@pytest.mark.parametrize(
    "change", [_appended, _rewritten, os.unlink, lambda path: os.truncate(path, MIB)]
)
def test_a_large_file_that_changes_while_it_is_compared_with_a_stored_one_makes_no_version(
    change: Callable[[Path], None],
    size: int,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Since some of its parts are known, all of it is read where it is, and not copied first.
    path = tmp_path / "data"
    path.write_bytes(os.urandom(size))
    store.log_artifact("data", path)
    time.sleep(0.02)  # file systems of older kernels tell times in steps of 10 ms
    cut_file = blobs.cut_file

    def meanwhile(*given: Any, **options: Any) -> object:
        found = cut_file(*given, **options)
        change(path)
        return found

    monkeypatch.setattr(blobs, "cut_file", meanwhile)
    with pytest.raises(SourceChanged):
        store.log_artifact("data", path)
    monkeypatch.undo()
    assert [version.number for version in store.versions("data")] == [1]
    assert store.verify().is_sound


def test_a_folder_that_changes_while_it_is_listed_makes_a_version_or_is_refused(
    store: Store, data: Path
) -> None:
    """Whatever is found of files that come and go, each is whole."""
    is_over = threading.Event()

    def come_and_go() -> None:
        count = 0
        while not is_over.is_set():
            count += 1
            path = data / "sub" / f"{count % 50}"
            path.with_suffix(".new").write_bytes(b"%05d" % (count % 50) * 100)
            path.with_suffix(".new").replace(path)
            if count % 3 == 0:
                path.unlink()

    worker = threading.Thread(target=come_and_go)
    worker.start()
    try:
        for _ in range(30):
            try:
                version = store.log_artifact("data", data, exclude="**/*.new")
            except SourceChanged:
                continue
            for entry in version.files("sub/*"):
                number = int(entry.path.rpartition("/")[2])
                assert version.read_bytes(entry.path) == b"%05d" % number * 100
    finally:
        is_over.set()
        worker.join()
    assert store.verify().is_sound
    assert files_below(store.path / "tmp") == []
