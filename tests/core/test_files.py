"""Files of the store appear whole or not at all, and nothing is written or removed through a link."""

from __future__ import annotations

import errno
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from begat import files
from begat.errors import (
    AccessDenied,
    BegatError,
    DestinationDiffers,
    DigestMismatch,
    ReadOnly,
    StoreFull,
    StoreUnavailable,
)
from begat.files import (
    NewFile,
    append_line,
    copy_bytes,
    make_directory,
    open_source,
    remove,
    replace_with,
    told_as,
    write_all,
)
from begat.folders import Folder
from begat.removing import remove_tree
from trees import open_below

Seen = list[tuple[str, str]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """The operations as they happen: (operation, name of the file)."""
    found: Seen = []
    monkeypatch.setattr(
        files, "fault", lambda operation, path: found.append((operation, Path(path).name))
    )
    return found


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """A folder on another file system than `tmp_path`."""
    other = (
        Path("/dev/shm")
        if tmp_path.stat().st_dev != os.stat("/dev/shm").st_dev
        else Path("/var/tmp")
    )
    if other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has one file system only")
    folder = other / f"begat-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    remove_tree(folder)


def tree(root: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(folder, name), root)
        for folder, folders, names in os.walk(root)
        for name in (*folders, *names)
    }


# --- new files ---


def test_a_published_file_has_its_bytes_and_nothing_else_is_left(tmp_path: Path) -> None:
    with NewFile(tmp_path) as new:
        new.write(b"one ")
        new.write(memoryview(b"two"))
        new.publish(tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == b"one two"
    assert tree(tmp_path) == {"final"}


def test_a_published_file_is_read_only(tmp_path: Path) -> None:
    with NewFile(tmp_path) as new:
        new.publish(tmp_path / "final")
    assert stat.S_IMODE((tmp_path / "final").stat().st_mode) == 0o444


def test_a_file_that_is_not_published_is_removed(tmp_path: Path) -> None:
    with NewFile(tmp_path) as new:
        new.write(b"x")
        assert len(tree(tmp_path)) == 1
    assert tree(tmp_path) == set()


def test_a_file_whose_block_raises_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), NewFile(tmp_path) as new:
        new.write(b"x")
        raise KeyboardInterrupt
    assert tree(tmp_path) == set()


def test_discarding_twice_is_discarding_once(tmp_path: Path) -> None:
    new = NewFile(tmp_path)
    new.discard()
    (new.path).write_text("somebody else's")
    new.discard()
    assert new.path.exists()


def test_bytes_are_durable_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, seen: Seen
) -> None:
    with NewFile(tmp_path) as new:
        new.write(b"x")
        new.publish(tmp_path / "final")
    temporary = new.path.name
    assert seen == [
        ("create", temporary),
        ("write", temporary),
        ("fsync", temporary),
        ("rename", "final"),
        ("fsync-directory", tmp_path.name),
    ]


PUBLISHING = ["create", "write", "fsync", "rename", "fsync-directory"]


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EACCES]
)
@pytest.mark.parametrize("failing", PUBLISHING)
def test_an_error_leaves_the_old_bytes_or_the_new_and_no_temporary_file(
    failing: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_with(tmp_path / "final", b"old")

    def fail(operation: str, path: str) -> None:
        if operation == failing:
            raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(files, "fault", fail)
    with pytest.raises(BegatError), told_as("replacing it"):
        replace_with(tmp_path / "final", b"new")
    assert tree(tmp_path) == {"final"}
    expected = b"new" if failing == "fsync-directory" else b"old"
    assert (tmp_path / "final").read_bytes() == expected


@pytest.mark.parametrize("failing", PUBLISHING)
def test_a_crash_leaves_no_half_file_under_a_final_name(failing: str, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:

        def die(operation: str, path: str) -> None:
            if operation == failing:
                os.kill(os.getpid(), signal.SIGKILL)

        files.fault = die
        replace_with(tmp_path / "final", b"x" * 100_000)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    final = tmp_path / "final"
    assert final.exists() is (failing == "fsync-directory")
    if final.exists():
        assert final.read_bytes() == b"x" * 100_000


def test_replacing_keeps_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    replace_with(tmp_path / "final", b"one")
    replace_with(tmp_path / "final", b"two", mode=0o600)
    assert (tmp_path / "final").read_bytes() == b"two"
    assert stat.S_IMODE((tmp_path / "final").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "data", [b"", b"abc", memoryview(b"abcdef")[::1], memoryview(b"abcdefgh").cast("I")]
)
def test_all_bytes_are_written(data: bytes | memoryview, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    write_all(fd, data)
    os.close(fd)
    assert (tmp_path / "file").read_bytes() == bytes(data)


def test_lines_are_appended(tmp_path: Path) -> None:
    append_line(tmp_path / "journal", b"one\n", durable=False)
    append_line(tmp_path / "journal", b"two\n", durable=True)
    assert (tmp_path / "journal").read_bytes() == b"one\ntwo\n"


def test_a_torn_line_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"one\ntor")
    append_line(tmp_path / "journal", b"two\n", durable=True)
    assert (tmp_path / "journal").read_bytes() == b"one\ntor\ntwo\n"


def test_the_name_of_a_new_journal_is_durable(tmp_path: Path, seen: Seen) -> None:
    append_line(tmp_path / "journal", b"one\n", durable=False)
    append_line(tmp_path / "journal", b"two\n", durable=True)
    assert seen == [
        ("append", "journal"),
        ("fsync-directory", tmp_path.name),
        ("append", "journal"),
        ("fsync", "journal"),
    ]


# --- folders ---


def test_folders_are_made_durably(tmp_path: Path, seen: Seen) -> None:
    make_directory(tmp_path / "a" / "b")
    assert seen == [
        ("mkdir", "a"),
        ("fsync-directory", tmp_path.name),
        ("mkdir", "b"),
        ("fsync-directory", "a"),
    ]
    assert (tmp_path / "a" / "b").is_dir()


def test_making_a_folder_that_is_there_does_nothing(tmp_path: Path, seen: Seen) -> None:
    make_directory(tmp_path)
    assert seen == []


def test_a_file_in_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in ("a", "a/b", "dangling"):
        with pytest.raises(OSError):
            make_directory(tmp_path / path)


def test_a_folder_below_a_removed_work_folder_is_an_error_and_no_endless_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError):
        make_directory(Path("a"))


def test_removing_tells_whether_there_was_something(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    assert remove(tmp_path / "a")
    assert not remove(tmp_path / "a")


# --- copying ---


def copied(
    source: Path, target: Path, length: int, *, offset: int = 0, before: bytes = b""
) -> tuple[int, bytes]:
    """What `copy_bytes` returned, and the target's bytes."""
    reading = os.open(source, os.O_RDONLY)
    writing = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        write_all(writing, before)
        count = copy_bytes(reading, writing, length, target, offset=offset)
        assert os.lseek(writing, 0, os.SEEK_CUR) == len(before) + count
    finally:
        os.close(reading)
        os.close(writing)
    return count, target.read_bytes()


DATA = os.urandom(3 * files.COPY_BYTES + 17)


@pytest.mark.parametrize("place", ["here", "elsewhere"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, len(DATA)),
        (0, 5),
        (0, 0),
        (7, 100),
        (files.COPY_BYTES, 2 * files.COPY_BYTES),
        (1, len(DATA) - 1),
    ],
)
def test_bytes_are_copied_to_the_end_of_the_target(
    offset: int, length: int, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path if place == "here" else request.getfixturevalue("elsewhere")
    (tmp_path / "source").write_bytes(DATA)
    count, found = copied(
        tmp_path / "source", folder / "target", length, offset=offset, before=b"head"
    )
    assert count == length
    assert found == b"head" + DATA[offset : offset + length]


def test_a_whole_file_is_copied_to_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    assert copied(tmp_path / "source", tmp_path / "target", len(DATA)) == (len(DATA), DATA)


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_fewer_bytes_are_copied_where_the_source_ends(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path if place == "here" else request.getfixturevalue("elsewhere")
    (tmp_path / "source").write_bytes(b"abc")
    assert copied(tmp_path / "source", folder / "target", 100, offset=1) == (2, b"bc")


def test_a_file_of_the_kernel_that_tells_no_size_is_copied(tmp_path: Path) -> None:
    count, found = copied(Path("/proc/version"), tmp_path / "target", 1 << 16)
    assert found == Path("/proc/version").read_bytes()
    assert count == len(found)


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_holes_are_copied_as_zeros(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path if place == "here" else request.getfixturevalue("elsewhere")
    with open(tmp_path / "source", "wb") as file:
        file.write(b"a")
        file.seek(5_000_000)
        file.write(b"z")
        file.truncate(8_000_000)
    count, found = copied(tmp_path / "source", folder / "target", 8_000_000)
    assert count == 8_000_000
    assert found == (tmp_path / "source").read_bytes()


def test_bytes_are_copied_where_the_kernel_does_not_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    (tmp_path / "source").write_bytes(DATA)
    assert copied(tmp_path / "source", tmp_path / "target", len(DATA) - 1, offset=1)[1] == DATA[1:]


# --- reading users' files ---


def test_a_source_is_never_opened_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(OSError) as caught:
        open_source(tmp_path / "link")
    assert caught.value.errno == errno.ELOOP


def test_a_pipe_is_opened_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fd = open_source(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.fstat(fd).st_mode)
    os.close(fd)


def test_a_source_is_not_inherited_by_programs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    fd = open_source("file", dir_fd=os.open(tmp_path, os.O_RDONLY))
    assert not os.get_inheritable(fd)
    os.close(fd)


# --- folders that others may write to ---


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Folder]:
    with Folder.at(tmp_path / "destination") as folder:
        yield folder


def write(folder: Folder, name: str, data: bytes = b"x") -> None:
    fd = folder.create(name)
    write_all(fd, data)
    os.close(fd)


def test_files_are_made_read_renamed_and_removed_in_a_folder(root: Folder) -> None:
    with root.enter("a") as inner:
        write(inner, "new", b"data")
        inner.rename("new", "file")
        inner.symlink("file", "link")
        fd = inner.open("file")
        inner.set_mode(fd, "file", 0o555)
        assert sorted(inner.list()) == ["file", "link"]
        assert inner.read_link("link") == "file"
        found = inner.lookup("file")
        assert found is not None
        assert stat.S_IMODE(found.st_mode) == 0o555
        assert inner.lookup("missing") is None
        assert os.read(fd, 10) == b"data"
        os.close(fd)
        inner.remove("link")
        inner.remove("file")
        assert inner.list() == []
    root.remove_directory("a")
    assert root.list() == []


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    Folder.at(tmp_path / "a" / "b" / "c").close()
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_the_destination_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "chosen").symlink_to("real")
    with Folder.at(tmp_path / "chosen") as folder:
        write(folder, "file")
    assert (tmp_path / "real" / "file").exists()


@pytest.mark.parametrize("path", ["file", "dangling"])
def test_a_destination_that_is_no_folder_is_told(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(DestinationDiffers):
        Folder.at(tmp_path / path)


@pytest.mark.parametrize("target", ["../precious", ".", "nowhere", "/"])
def test_a_link_is_never_entered(target: str, root: Folder) -> None:
    (root.path.parent / "precious").mkdir()
    root.symlink(target, "a")
    for make in (True, False):
        with pytest.raises(DestinationDiffers, match="links are not followed"):
            root.enter("a", make=make)
    assert not (root.path / "nowhere").exists()


def test_a_file_is_never_entered(root: Folder) -> None:
    write(root, "a")
    with pytest.raises(DestinationDiffers):
        root.enter("a")


def test_a_missing_folder_is_not_made_unasked(root: Folder) -> None:
    with pytest.raises(FileNotFoundError):
        root.enter("a", make=False)


def test_a_file_is_never_created_over_another_or_through_a_link(root: Folder) -> None:
    write(root, "file", b"old")
    root.symlink("target", "link")
    for name in ("file", "link"):
        with pytest.raises(FileExistsError):
            root.create(name)
    assert (root.path / "file").read_bytes() == b"old"
    assert not (root.path / "target").exists()


def test_a_link_is_replaced_by_a_rename_and_not_followed(root: Folder) -> None:
    precious = root.path.parent / "precious"
    precious.write_bytes(b"old")
    root.symlink("../precious", "file")
    write(root, "new", b"new")
    root.rename("new", "file")
    assert precious.read_bytes() == b"old"
    assert not (root.path / "file").is_symlink()


def test_a_link_is_never_read(root: Folder) -> None:
    root.symlink("/etc/passwd", "file")
    with pytest.raises(OSError) as caught:
        root.open("file")
    assert caught.value.errno == errno.ELOOP


def test_a_folder_that_is_swapped_for_a_link_changes_nothing_elsewhere(root: Folder) -> None:
    precious = root.path.parent / "precious"
    precious.mkdir()
    with root.enter("a") as inner:
        os.rename(root.path / "a", root.path / "moved")
        os.symlink(precious, root.path / "a")
        write(inner, "file")
        inner.sync()
    assert list(precious.iterdir()) == []
    assert (root.path / "moved" / "file").exists()


def test_a_folder_that_is_not_empty_is_kept(root: Folder) -> None:
    with root.enter("a") as inner:
        write(inner, "file")
    root.remove_directory("a")
    root.remove_directory("missing")
    assert (root.path / "a" / "file").exists()


def test_a_closed_folder_leaves_no_descriptor(tmp_path: Path) -> None:
    with Folder.at(tmp_path / "d") as folder, folder.enter("a"):
        assert len(open_below(tmp_path)) == 2
    folder.close()
    assert open_below(tmp_path) == []


# --- errors in our words ---


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        *[
            (errno.ENOSPC, StoreFull),
            (errno.EDQUOT, StoreFull),
            (errno.EFBIG, StoreFull),
            (errno.EROFS, ReadOnly),
        ],
        *[(errno.EACCES, AccessDenied), (errno.EPERM, AccessDenied), (errno.EIO, StoreUnavailable)],
        *[
            (errno.EMFILE, StoreUnavailable),
            (errno.ENOENT, StoreUnavailable),
            (errno.EEXIST, DestinationDiffers),
        ],
    ],
)
def test_an_error_of_the_system_becomes_one_of_the_tree(
    number: int, kind: type[BegatError]
) -> None:
    with pytest.raises(BegatError) as caught, told_as("writing the object"):
        raise OSError(number, os.strerror(number), "/store/x")
    assert type(caught.value) is kind
    assert str(caught.value).startswith("writing the object failed")
    assert "/store/x" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize(
    "error", [DigestMismatch("a"), DestinationDiffers("b"), KeyboardInterrupt(), ValueError("c")]
)
def test_other_errors_pass_unchanged(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, told_as("writing"):
        raise error
    assert caught.value is error


# --- a file in one step, and ranges ---


def test_a_file_is_put_in_one_step_with_its_mode(root: Folder, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        root.put("plain", b"1", temporary="t1", mode=0o666, exactly=False)
        root.put("exact", memoryview(b"22"), temporary="t2", mode=0o444, exactly=True)
        root.put("plain", b"", temporary="t3", mode=0o666, exactly=False)
    finally:
        os.umask(old)
    folder = tmp_path / "destination"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "plain": b"",
        "exact": b"22",
    }
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert modes == {"plain": 0o600, "exact": 0o444}


@pytest.mark.parametrize("failing", ["create", "write", "chmod", "rename"])
def test_a_file_that_cannot_be_put_leaves_nothing(
    failing: str, root: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(operation: str, path: str) -> None:
        if operation == failing:
            raise OSError(errno.EIO, "broken", path)

    monkeypatch.setattr(files, "fault", fail)
    with pytest.raises(OSError, match="broken"):
        root.put("name", b"1", temporary="t", mode=0o4777, exactly=True)
    assert list((tmp_path / "destination").iterdir()) == []


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_range_is_copied_to_a_position_and_no_position_moves(
    by_kernel: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_kernel:
        monkeypatch.delattr(os, "copy_file_range")
    (tmp_path / "source").write_bytes(b"0123456789")
    (tmp_path / "target").write_bytes(b"abcdefgh")
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("r+b") as target:
        copied = files.copy_range(source.fileno(), target.fileno(), 3, offset=4, at=2)
        at_end = files.copy_range(source.fileno(), target.fileno(), 5, offset=8, at=6)
        assert (copied, at_end) == (3, 2)
        assert (source.tell(), target.tell()) == (0, 0)
    assert (tmp_path / "target").read_bytes() == b"ab456f89"
