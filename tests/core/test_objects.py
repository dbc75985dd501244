"""Objects on a disk: whole and durable before they have a name, never replaced, never silently missing."""

import errno
import os
import re
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from begat import files
from begat.errors import (
    BegatError,
    DigestMismatch,
    ObjectMissing,
    ReadOnly,
    StoreFull,
    StoreUnavailable,
)
from begat.model import Digest
from begat.objects import ObjectStore, digest_in, name_for, read_open


def digest_of(data: bytes) -> Digest:
    return Digest(f"b3:{blake3(data).hexdigest()}")


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    store = ObjectStore(tmp_path / "store")
    store.make_folders()
    return store


def put(objects: ObjectStore, data: bytes) -> str:
    with objects.new() as new:
        new.write(data)
        return objects.publish(new)[0]


def all_files(objects: ObjectStore) -> list[Path]:
    return [path for path in objects.folder.parent.rglob("*") if not path.is_dir()]


class Operations:
    """Notes each change of the file system, and fails the one that is asked for."""

    def __init__(self, fail_at: int | None = None, code: int = errno.EIO) -> None:
        self.seen: list[tuple[str, str]] = []
        self._fail_at = fail_at
        self._code = code

    def __call__(self, operation: str, path: str) -> None:
        self.seen.append((operation, path))
        if len(self.seen) - 1 == self._fail_at:
            raise OSError(self._code, os.strerror(self._code), path)


# --- writing ---


def test_an_object_has_its_bytes_its_digest_in_its_name_and_no_write_bit(objects):
    with objects.new() as new:
        offsets = [new.write(b"one"), new.write(memoryview(b"two")), new.write(b"")]
        name, size = objects.publish(new)

    assert offsets == [0, 3, 6]
    assert size == 6
    assert objects.read(name, offset=0, length=6) == b"onetwo"
    assert objects.read(name, offset=2, length=3) == b"etw"
    hex_digits = digest_of(b"onetwo")[3:]
    assert re.fullmatch(f"{hex_digits[:2]}/{hex_digits}-[0-9a-f]{{8}}", name)
    assert digest_in(name) == digest_of(b"onetwo")
    assert stat.S_IMODE((objects.folder / name).stat().st_mode) == 0o444
    assert all_files(objects) == [objects.folder / name]


def test_a_file_of_ours_becomes_an_object_as_it_is(objects):
    with objects.new_file() as new:
        new.write(b"verbatim")
        name = objects.publish_file(new, digest_of(b"verbatim"))

    assert objects.read(name, offset=0, length=8) == b"verbatim"
    assert all_files(objects) == [objects.folder / name]


def test_equal_bytes_get_another_name_each_time(objects):
    assert put(objects, b"same") != put(objects, b"same")
    assert len(list(objects.list())) == 2


def test_what_is_not_published_is_removed(objects):
    with objects.new() as new:
        new.write(b"never mind")
        assert len(all_files(objects)) == 1
    assert all_files(objects) == []


def test_bytes_are_durable_before_their_name_and_the_name_before_it_is_told(objects, monkeypatch):
    operations = Operations()
    monkeypatch.setattr(files, "fault", operations)

    name = put(objects, b"bytes")

    folder = objects.folder / name[:2]
    assert [operation for operation, _ in operations.seen] == [
        "create",
        "write",
        "mkdir",
        "fsync-directory",
        "fsync",
        "rename",
        "fsync-directory",
    ]
    assert operations.seen[2:4] == [
        ("mkdir", str(folder)),
        ("fsync-directory", str(objects.folder)),
    ]
    assert operations.seen[-2:] == [
        ("rename", str(objects.folder / name)),
        ("fsync-directory", str(folder)),
    ]


def test_a_second_object_in_a_folder_costs_two_fsyncs(objects, monkeypatch):
    put(objects, b"same")
    operations = Operations()
    monkeypatch.setattr(files, "fault", operations)

    put(objects, b"same")

    assert sum("fsync" in operation for operation, _ in operations.seen) == 2


@pytest.mark.parametrize("at", range(7))
@pytest.mark.parametrize(
    ("code", "error"),
    [(errno.EIO, StoreUnavailable), (errno.ENOSPC, StoreFull), (errno.EROFS, ReadOnly)],
)
def test_a_failed_step_is_told_and_leaves_no_half_object(objects, monkeypatch, at, code, error):
    operations = Operations(at, code)
    monkeypatch.setattr(files, "fault", operations)

    with pytest.raises(error):
        put(objects, b"bytes")
    monkeypatch.setattr(files, "fault", None)

    assert len(operations.seen) > at
    # A complete object without a row is garbage that gc finds; anything else would be damage.
    assert all(
        objects.read(name, offset=0, length=size) == b"bytes" for name, size in objects.list()
    )
    assert list(objects.tmp.iterdir()) == []
    put(objects, b"bytes")


def test_a_missing_folder_for_temporary_files_is_made_again(objects):
    objects.tmp.rmdir()

    assert objects.stat(put(objects, b"x")) == 1


# --- reading ---


def test_an_object_that_is_not_there_is_missing(objects):
    name = name_for(digest_of(b"nothing"))

    assert objects.stat(name) is None
    for read in (lambda: objects.open(name), lambda: objects.read(name, offset=0, length=1)):
        with pytest.raises(ObjectMissing, match=name):
            read()


@pytest.mark.parametrize(("offset", "length"), [(0, 6), (5, 1), (6, 0), (-1, 2), (0, 2**60)])
def test_reading_beyond_the_end_is_damage_and_allocates_nothing(objects, offset, length):
    name = put(objects, b"bytes")

    with pytest.raises(DigestMismatch, match=name):
        objects.read(name, offset=offset, length=length)


def test_an_open_object_is_read_many_times(objects):
    name = put(objects, b"0123456789")
    fd = objects.open(name)
    try:
        assert [read_open(fd, name, offset=at, length=2) for at in (8, 0, 4)] == [
            b"89",
            b"01",
            b"45",
        ]
    finally:
        os.close(fd)


@pytest.mark.parametrize("hostile", ["symlink", "fifo", "folder"])
def test_something_else_in_the_place_of_an_object_is_a_missing_object(objects, hostile, tmp_path):
    name = put(objects, b"bytes")
    path = objects.folder / name
    path.unlink()
    if hostile == "symlink":
        (tmp_path / "secret").write_bytes(b"bytes")
        path.symlink_to(tmp_path / "secret")
    elif hostile == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()

    assert objects.stat(name) is None
    with pytest.raises(ObjectMissing):
        objects.read(name, offset=0, length=5)


# Spelled out: a name made at import would differ between the processes that share the tests.
GOOD = f"{digest_of(b'')[3:5]}/{digest_of(b'')[3:]}-0123abcd"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "../../etc/passwd",
        GOOD[3:],
        GOOD.upper(),
        GOOD + "\n",
        GOOD + "0",
        GOOD[:-9],
        "00" + GOOD[2:],
        GOOD.replace("/", "/../"),
    ],
)
def test_a_name_of_another_form_never_reaches_the_file_system(objects, name, monkeypatch):
    monkeypatch.setattr(files, "fault", lambda *seen: pytest.fail(f"{seen}"))

    for use in (
        lambda: objects.open(name),
        lambda: objects.stat(name),
        lambda: objects.remove(name),
        lambda: objects.set_aside(name),
        lambda: digest_in(name),
    ):
        with pytest.raises(ObjectMissing):
            use()


# --- listing, removing ---


def test_the_list_has_every_object_with_its_size_and_nothing_else(objects):
    names = {put(objects, b"x" * n): n for n in range(20)}
    first = next(iter(names))
    (objects.folder / "README").write_text("not ours")
    (objects.folder / first[:2] / ".nfs000").write_text("not ours")
    with objects.new() as new:
        new.write(b"not yet")
        assert dict(objects.list()) == names


def test_a_folder_that_cannot_be_listed_is_an_error_and_not_an_empty_one(objects):
    name = put(objects, b"x")
    other = "00" if name[:2] != "00" else "11"
    (objects.folder / other).write_text("not a folder")

    with pytest.raises(StoreUnavailable):
        list(objects.list())
    objects.folder.rename(objects.folder.with_name("elsewhere"))
    with pytest.raises(StoreUnavailable):
        list(objects.list())


def test_an_object_is_removed_once(objects):
    name = put(objects, b"x")

    assert [objects.remove(name), objects.remove(name)] == [True, False]
    assert objects.stat(name) is None


def test_a_damaged_object_is_kept_but_not_offered(objects):
    name = put(objects, b"bytes")

    assert [objects.set_aside(name), objects.set_aside(name)] == [True, False]
    assert objects.stat(name) is None
    assert list(objects.list()) == []
    assert [path.read_bytes() for path in objects.damaged.iterdir()] == [b"bytes"]


def test_what_killed_writers_left_is_removed_and_counted(objects):
    name = put(objects, b"kept")
    (objects.tmp / "left").write_bytes(b"x" * 100)
    (objects.tmp / "folder").mkdir()
    (objects.tmp / "folder" / "left").write_bytes(b"x" * 10)
    (objects.tmp / "link").symlink_to(objects.folder)

    assert objects.clean_tmp() >= 100
    assert list(objects.tmp.iterdir()) == []
    assert objects.stat(name) == 4


def test_nothing_to_clean_is_no_error(objects):
    objects.tmp.rmdir()

    assert objects.clean_tmp() == 0


def test_every_error_is_one_of_ours(tmp_path):
    gone = ObjectStore(tmp_path / "not" / "made")

    for use in (lambda: list(gone.list()), lambda: gone.open(GOOD)):
        with pytest.raises(BegatError):
            use()
    assert not gone.set_aside(GOOD)
