"""SQLite as the catalog uses it: its traps, forks, other processes, disks that cannot be written."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, bindparam, select

from begat import tables
from begat.catalog import (
    Catalog,
    changes,
    commits,
    connecting,
    engine,
    labels,
    placing,
    rows,
    runs,
    trouble,
    versions,
)
from begat.catalog import bytes as bytes_
from begat.catalog.opening import (
    NETWORK_FILE_SYSTEMS,
    file_system_of,
    refuse_network,
    type_in_table,
)
from begat.catalog.statements import Prepared, driver_of
from begat.errors import (
    ArtifactNotFound,
    CatalogBusy,
    Corrupt,
    DestinationDiffers,
    FormatTooNew,
    ReadOnly,
    StoreFull,
    StoreUnavailable,
)
from begat.reference import parse_reference
from catalog_facts import new_run, new_version


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


def driver(connection: Connection) -> sqlite3.Connection:
    """What SQLAlchemy talks to."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    return raw


def run_in_child(act: Callable[[], object]) -> int:
    """The exit status of a forked child that does something: 0 if that worked."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# --- traps ---


def test_a_writing_connection_has_a_log_and_full_synchronisation(catalog: Catalog):
    with catalog._engine.write("looking") as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


def test_every_writing_connection_is_set_up_and_not_only_the_first(catalog: Catalog):
    levels: list[object] = []

    def look() -> None:
        with catalog._engine.write("looking") as connection:
            levels.append(connection.exec_driver_sql("PRAGMA synchronous").scalar())

    look()
    catalog._engine.close()
    look()
    assert levels == [2, 2]


def test_a_write_transaction_takes_the_lock_at_its_beginning(catalog: Catalog):
    with catalog._engine.write("holding the lock"):
        other = sqlite3.connect(catalog.path, timeout=0, isolation_level=None)
        with contextlib.closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")


def test_begin_immediate_is_really_sent(catalog: Catalog):
    seen: list[str] = []
    with catalog._engine.write("warming up") as connection:
        driver(connection).set_trace_callback(seen.append)
    with catalog._engine.write("writing") as connection:
        connection.exec_driver_sql("INSERT INTO settings VALUES ('a', 'b')")
    assert seen.pop(0) == "COMMIT"  # of the first transaction
    assert [text.split(" VALUES")[0] for text in seen] == [
        "BEGIN IMMEDIATE",
        "INSERT INTO settings",
        "COMMIT",
    ]


def test_python_begins_no_transaction_of_its_own(catalog: Catalog):
    for transaction in (catalog._engine.write("looking"), catalog._engine.read()):
        with transaction as connection:
            assert driver(connection).isolation_level is None


def test_a_failed_transaction_leaves_nothing(catalog: Catalog):
    with pytest.raises(ZeroDivisionError), catalog._engine.write("failing") as connection:
        connection.exec_driver_sql("INSERT INTO settings VALUES ('a', 'b')")
        raise ZeroDivisionError
    with catalog._engine.read() as connection:
        found = connection.exec_driver_sql("SELECT * FROM settings WHERE key = 'a'").all()
    assert found == []


def test_a_reading_transaction_cannot_write(catalog: Catalog):
    with pytest.raises(ReadOnly), catalog._engine.read() as connection:
        connection.exec_driver_sql("INSERT INTO settings VALUES ('a', 'b')")


def test_a_reading_transaction_sees_one_moment(catalog: Catalog):
    with catalog._engine.read() as connection:
        count = "SELECT count(*) FROM versions"
        before = connection.exec_driver_sql(count).scalar()
        catalog.commits.commit(new_version())
        assert connection.exec_driver_sql(count).scalar() == before == 0
    assert catalog.versions.artifact("digits").version_count == 1


def test_look_ups_that_belong_together_see_one_moment(catalog: Catalog):
    catalog.commits.commit(new_version())
    with catalog.reading():
        assert catalog.versions.standing("digits").next_number == 2
        catalog.commits.commit(new_version(content="other"))
        assert len(catalog.versions.list("digits")) == 1
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(catalog.versions.standing, "digits").result().next_number == 3
        with pytest.raises(ArtifactNotFound):
            catalog.versions.list("digit")
        assert catalog.versions.standing("digits").next_number == 2
    assert len(catalog.versions.list("digits")) == 2


def test_a_transaction_inside_another_is_refused_and_not_a_deadlock(catalog: Catalog):
    with catalog._engine.write("outer"), pytest.raises(RuntimeError):
        catalog.commits.commit(new_version())


# --- waiting for others ---


def test_a_writer_waits_for_another_process(catalog: Catalog):
    other = sqlite3.connect(catalog.path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, other.execute, ["COMMIT"])
    timer.start()
    began = time.monotonic()
    catalog.commits.commit(new_version())
    timer.join()
    other.close()
    assert time.monotonic() - began >= 0.2


def test_a_writer_gives_up_with_an_error_that_names_the_catalog(
    catalog: Catalog, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engine, "BUSY_WAIT_S", 0.1)
    monkeypatch.setattr(connecting, "_BUSY_STEP_S", 0.05)
    other = sqlite3.connect(catalog.path, isolation_level=None)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(CatalogBusy) as caught:
            catalog.commits.commit(new_version())
    assert str(catalog.path) in str(caught.value)
    assert catalog.commits.commit(new_version()).version.number == 1


def commit_many(path: Path, writer: int, count: int) -> None:
    with Catalog.open(path) as catalog:
        for i in range(count):
            catalog.commits.commit(new_version("shared", f"{writer}/{i}"))


def test_numbers_are_contiguous_under_eight_processes(catalog: Catalog):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=commit_many, args=(catalog.path, writer, 20)) for writer in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 8
    listed = catalog.versions.list("shared")
    assert [version.number for version in listed] == list(range(1, 161))
    assert len({version.digest for version in listed}) == 160
    assert [version.number for version in listed if version.is_latest] == [160]
    assert catalog.check() == []


def test_threads_share_a_catalog(catalog: Catalog):
    failures: list[BaseException] = []

    def commit(writer: int) -> None:
        try:
            for i in range(10):
                catalog.commits.commit(new_version("shared", f"{writer}/{i}"))
                catalog.versions.resolve(parse_reference("shared"))
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=commit, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert [v.number for v in catalog.versions.list("shared")] == list(range(1, 61))


# --- forks ---


def test_a_catalog_works_in_a_forked_child_and_goes_on_in_its_parent(catalog: Catalog):
    catalog.commits.commit(new_version("digits", "before"))

    def use() -> None:
        assert catalog.versions.resolve(parse_reference("digits")).number == 1
        catalog.commits.commit(new_version("digits", "in the child"))

    assert run_in_child(use) == 0
    assert catalog.versions.resolve(parse_reference("digits")).number == 2
    catalog.commits.commit(new_version("digits", "after"))
    assert catalog.check() == []


def open_files(path: Path) -> list[str]:
    """The files of a catalog that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if name.startswith(str(path))]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs a list of open files")
def test_no_connection_is_open_while_the_process_forks(catalog: Catalog):
    catalog.commits.commit(new_version())

    def look() -> None:
        assert open_files(catalog.path) == []

    assert open_files(catalog.path) != []
    assert run_in_child(look) == 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs a list of open files")
def test_a_connection_in_use_while_all_are_closed_is_closed_afterwards(catalog: Catalog):
    with catalog._engine.read():
        catalog.close()
        assert open_files(catalog.path) != []
    assert open_files(catalog.path) == []
    catalog.commits.commit(new_version())
    opened = len(open_files(catalog.path))
    for i in range(3):
        catalog.commits.commit(new_version(content=str(i)))
    assert len(open_files(catalog.path)) == opened


def test_what_a_child_commits_outlives_its_parents_last_connection(catalog: Catalog):
    # A child that believed in its parent's locks would write into a log that the parent removes when it closes.
    catalog.commits.commit(new_version("digits", "before"))
    to_child, to_parent = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            catalog.commits.commit(new_version("digits", "in the child, 1"))
            os.write(to_parent[1], b".")
            os.read(to_child[0], 1)
            catalog.commits.commit(new_version("digits", "in the child, 2"))
            code = 0
        finally:
            os._exit(code)
    os.read(to_parent[0], 1)
    catalog.versions.resolve(parse_reference("digits"))
    catalog.close()
    os.write(to_child[1], b".")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    for fd in (*to_child, *to_parent):
        os.close(fd)
    assert [v.number for v in catalog.versions.list("digits")] == [1, 2, 3]
    assert catalog.check() == []


def test_a_fork_waits_for_a_transaction_of_another_thread(catalog: Catalog):
    catalog.commits.commit(new_version("digits", "before"))
    begun = threading.Event()

    def hold() -> None:
        with catalog._engine.write("holding") as connection:
            connection.exec_driver_sql("INSERT INTO settings VALUES ('a', 'b')")
            begun.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    status = run_in_child(lambda: catalog.commits.commit(new_version("digits", "in the child")))
    thread.join()
    assert status == 0
    assert catalog.versions.resolve(parse_reference("digits")).number == 2


def test_a_child_forked_inside_a_transaction_refuses_to_use_the_catalog(catalog: Catalog):
    def use() -> None:
        with pytest.raises(StoreUnavailable, match="forked"):
            catalog.versions.list_artifacts()

    with catalog._engine.read() as connection:
        connection.exec_driver_sql("SELECT * FROM settings").all()
        assert run_in_child(use) == 0
    catalog.commits.commit(new_version())


def test_forks_and_transactions_of_many_threads_do_not_block_each_other(catalog: Catalog):
    stop = threading.Event()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                catalog.runs.start(new_run(name=f"run {number}"))
                catalog.runs.list(limit=1)
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    statuses = [run_in_child(lambda: catalog.runs.start(new_run())) for _ in range(8)]
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert statuses == [0] * 8
    assert catalog.check() == []


# --- making and opening ---


def test_a_new_catalog_keeps_its_stores_uid(catalog: Catalog):
    assert catalog.store_uid == "store"
    with Catalog.open(catalog.path) as again:
        assert again.store_uid == "store"


def test_making_a_catalog_leaves_only_that_file(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    Catalog.create(path, "store").close()
    assert [each.name for each in tmp_path.iterdir()] == ["catalog.sqlite"]


def test_making_a_catalog_over_another_is_refused_and_changes_nothing(catalog: Catalog):
    catalog.commits.commit(new_version())
    with pytest.raises(DestinationDiffers):
        Catalog.create(catalog.path, "another")
    assert catalog.versions.resolve(parse_reference("digits")).number == 1
    assert not list(catalog.path.parent.glob("*.tmp"))


def test_opening_nothing_makes_nothing(tmp_path: Path):
    with pytest.raises(StoreUnavailable, match="no catalog"):
        Catalog.open(tmp_path / "catalog.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(Corrupt, match=r"catalog\.sqlite"):
        Catalog.open(path)
    assert path.read_bytes() == b"not a database" * 100


def test_a_database_of_something_else_is_not_taken_for_a_catalog(tmp_path: Path):
    path = tmp_path / "catalog.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE notes (text)")
    with pytest.raises(Corrupt, match="not a catalog"):
        Catalog.open(path)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_newer_schema_is_refused_without_writing(catalog: Catalog, read_only: bool):
    catalog.close()
    with contextlib.closing(sqlite3.connect(catalog.path)) as other:
        other.execute("UPDATE schema_version SET version_num = '9999'")
        other.commit()
    before = catalog.path.read_bytes()
    with pytest.raises(FormatTooNew, match="9999"):
        Catalog.open(catalog.path, read_only=read_only)
    assert catalog.path.read_bytes() == before


def older_catalog(path: Path) -> None:
    """A catalog from before the first migration."""
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE schema_version (version_num TEXT NOT NULL PRIMARY KEY) STRICT")


def test_an_older_schema_is_migrated_when_it_is_opened(tmp_path: Path):
    older_catalog(tmp_path / "catalog.sqlite")
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:
        assert catalog.commits.commit(new_version()).version.number == 1


def test_a_reader_brings_a_copy_of_an_older_schema_up_to_date(catalog: Catalog):
    catalog.commits.commit(new_version())
    catalog.close()
    with contextlib.closing(sqlite3.connect(catalog.path)) as other:  # back to revision 0001
        other.execute("DROP INDEX versions_check")
        other.execute("ALTER TABLE versions DROP COLUMN shared_bytes")
        other.execute("CREATE INDEX versions_check ON versions (created_at)")
        other.execute("UPDATE schema_version SET version_num = '0001'")
        other.commit()
    before = catalog.path.read_bytes()
    with Catalog.open(catalog.path, read_only=True) as reader:
        assert reader.is_read_only
        [version] = reader.versions.all()
        assert version.number == 1
        assert reader.check() == []
        with pytest.raises(ReadOnly):
            reader.commits.commit(new_version())
        assert reader._engine.way.private is not None
        private = reader._engine.way.private
    assert catalog.path.read_bytes() == before
    assert not private.exists()


def test_alembic_is_not_imported_while_the_schema_is_current(catalog: Catalog):
    code = (
        "import sys; from pathlib import Path; from begat.catalog import Catalog;"
        f"Catalog.open(Path({str(catalog.path)!r})).close(); assert 'alembic' not in sys.modules"
    )
    core = str(Path(__file__).parents[2] / "core")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": core})


# --- file systems ---

MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:26 / /home rw shared:2 - nfs4 server:/home rw,vers=4.2
31 30 0:27 / /home/my\\040disk rw - xfs /dev/sdb rw
32 22 0:28 / /mnt/cloud rw - fuse.s3fs s3fs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x/catalog.sqlite", "ext4"),
        ("/home/ann/catalog.sqlite", "nfs4"),
        ("/home/my disk/catalog.sqlite", "xfs"),
        ("/homes/catalog.sqlite", "ext4"),
        ("/mnt/cloud/catalog.sqlite", "fuse.s3fs"),
    ],
)
def test_the_nearest_mount_above_a_path_tells_its_file_system(path: str, kind: str):
    assert type_in_table(MOUNTS, Path(path)) == kind


def test_the_file_system_of_a_real_path_is_known(tmp_path: Path):
    assert file_system_of(tmp_path / "not there" / "yet")


@pytest.mark.parametrize("kind", sorted(NETWORK_FILE_SYSTEMS))
def test_a_catalog_on_a_network_file_system_is_refused_with_advice(tmp_path: Path, kind: str):
    with pytest.raises(StoreUnavailable, match="local disk"):
        Catalog.create(tmp_path / "catalog.sqlite", "store", file_system=lambda _: kind)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_catalog_on_a_network_file_system_is_not_opened(catalog: Catalog):
    with pytest.raises(StoreUnavailable, match="nfs"):
        Catalog.open(catalog.path, file_system=lambda _: "nfs")


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "apfs", "overlay", "tmpfs", None])
def test_a_catalog_on_a_local_disk_is_allowed(tmp_path: Path, kind: str | None):
    refuse_network(tmp_path, kind)
    with Catalog.create(
        tmp_path / "catalog.sqlite", "store", file_system=lambda _: kind
    ) as catalog:
        assert catalog.store_uid == "store"


# --- reading only ---


def test_a_catalog_opened_to_be_read_refuses_every_change(catalog: Catalog):
    catalog.commits.commit(new_version())
    with Catalog.open(catalog.path, read_only=True) as reader:
        assert reader.is_read_only
        assert reader.versions.resolve(parse_reference("digits")).number == 1
        with pytest.raises(ReadOnly):
            reader.commits.commit(new_version("digits", "two"))
        with pytest.raises(ReadOnly):
            reader.runs.start(new_run())


def test_a_reader_sees_what_is_committed_after_it_opened(catalog: Catalog):
    with Catalog.open(catalog.path, read_only=True) as reader:
        catalog.commits.commit(new_version())
        assert reader.versions.resolve(parse_reference("digits")).number == 1


def copy_of(catalog: Catalog, folder: Path, *, log: bool) -> Path:
    """The files as they lie there, as after a kill: the database, and the log that no one has emptied."""
    folder.mkdir()
    names = [catalog.path.name] + ([catalog.path.name + "-wal"] if log else [])
    for name in names:
        shutil.copyfile(catalog.path.parent / name, folder / name)
    return folder / catalog.path.name


READ = """
import os, sys
from pathlib import Path
from begat.catalog import Catalog
folder = Path(sys.argv[1])
if os.getuid() == 0:  # nothing is read-only for root
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    (folder / "probe").touch()
except OSError:
    pass
else:
    sys.exit("the folder can be written to")
before = sorted(os.listdir(folder))
with Catalog.open(folder / "catalog.sqlite", read_only=True) as catalog:
    print([version.number for version in catalog.versions.list("digits")])
    private = catalog._engine.way.private
    print("copied" if private else "in place")
assert private is None or not private.exists()
assert sorted(os.listdir(folder)) == before
"""


def read_without_permission(path: Path) -> list[str]:
    """What a reader says that can read the folder, but not write to it."""
    for above in path.parents:
        if above.owner() == path.owner() and above.stat().st_mode & 0o005 != 0o005:
            above.chmod(above.stat().st_mode | 0o055)
    for each in path.parent.iterdir():
        each.chmod(0o444)
    path.parent.chmod(0o555)
    core = str(Path(__file__).parents[2] / "core")
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ, str(path.parent)],
            env={
                **os.environ,
                "PYTHONPATH": core,
                "TMPDIR": tempfile.gettempdir(),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
        )
    finally:
        path.parent.chmod(0o755)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_a_catalog_in_a_folder_that_cannot_be_written_is_read_in_place(
    catalog: Catalog, tmp_path: Path
):
    catalog.commits.commit(new_version())
    catalog.close()
    path = copy_of(catalog, tmp_path / "elsewhere", log=False)
    assert read_without_permission(path)[:2] == ["[1]", "in place"]


def test_commits_that_wait_in_the_log_are_read_where_nothing_can_be_written(
    catalog: Catalog, tmp_path: Path
):
    for content in ("one", "two", "three"):
        catalog.commits.commit(new_version("digits", content))
    path = copy_of(catalog, tmp_path / "elsewhere", log=True)
    assert (path.parent / "catalog.sqlite-wal").stat().st_size > 0
    assert read_without_permission(path)[:2] == ["[1, 2, 3]", "copied"]


def test_what_a_killed_writer_acknowledged_is_seen_by_a_reader(catalog: Catalog, tmp_path: Path):
    catalog.close()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        catalog.commits.commit(new_version())
        os.write(writing, b".")
        signal.pause()
    os.read(reading, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    path = copy_of(catalog, tmp_path / "elsewhere", log=True)
    assert read_without_permission(path)[:2] == ["[1]", "copied"]
    with Catalog.open(catalog.path, read_only=True) as reader:
        assert reader.versions.resolve(parse_reference("digits")).number == 1


# --- copies and checks ---


def test_a_backup_is_one_file_with_all_that_is_committed(catalog: Catalog, tmp_path: Path):
    for content in ("one", "two"):
        catalog.commits.commit(new_version("digits", content))
    (tmp_path / "backups").mkdir()
    target = tmp_path / "backups" / "monday.sqlite"
    catalog.backup(target)
    assert [each.name for each in target.parent.iterdir()] == ["monday.sqlite"]
    with Catalog.open(target) as copy:
        assert [version.number for version in copy.versions.list("digits")] == [1, 2]
        assert copy.commits.commit(new_version("digits", "three")).version.number == 3
    assert catalog.versions.resolve(parse_reference("digits")).number == 2


def test_a_backup_can_be_taken_while_another_process_writes(catalog: Catalog, tmp_path: Path):
    context = multiprocessing.get_context("fork")
    writer = context.Process(target=commit_many, args=(catalog.path, 0, 40))
    writer.start()
    for i in range(5):
        catalog.backup(tmp_path / f"{i}.sqlite")
    writer.join(60)
    assert writer.exitcode == 0
    for i in range(5):
        with Catalog.open(tmp_path / f"{i}.sqlite") as copy:
            assert copy.check() == []


def test_a_sound_catalog_has_no_problems(catalog: Catalog):
    run = catalog.runs.start(new_run())
    catalog.commits.commit(new_version(run_uid=run.uid))
    assert catalog.check() == []


def test_damage_to_the_file_is_found(catalog: Catalog):
    for i in range(50):
        catalog.commits.commit(new_version("digits", str(i)))
    catalog.close()
    data = bytearray(catalog.path.read_bytes())
    for page in range(5, len(data) // 4096, 7):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    catalog.path.write_bytes(data)
    # SQLite lists what is wrong with a page, and gives up at one that it needs itself.
    with contextlib.suppress(Corrupt):
        assert catalog.check() != []


def test_facts_that_contradict_each_other_are_found(catalog: Catalog):
    catalog.commits.commit(new_version())
    with catalog._engine.write("planting a contradiction") as connection:
        connection.exec_driver_sql("UPDATE artifacts SET last_number = 7")
        connection.exec_driver_sql("DELETE FROM objects")
    found = "\n".join(catalog.check())
    assert "'digits' has 1 versions" in found
    assert "blobs lie in the object" in found
    assert "a version needs the object" in found


def test_json_that_is_none_any_more_is_damage_in_words(tmp_path: Path):
    catalog = Catalog.create(tmp_path / "c.sqlite", "store")
    new = new_version(metadata={"lr": 1})
    catalog.commits.commit(new)
    with sqlite3.connect(tmp_path / "c.sqlite") as raw:
        raw.execute("UPDATE versions SET metadata = 'x' || metadata")
    raw.close()
    with pytest.raises(Corrupt, match="begat rebuild"):
        catalog.versions.get(new.uid)
    catalog.close()


@pytest.mark.parametrize(
    "statement", ["ALTER TABLE runs RENAME TO runt", "ALTER TABLE runs RENAME job TO jb"]
)
def test_a_name_that_the_schema_has_no_more_is_damage_in_words(tmp_path: Path, statement: str):
    catalog = Catalog.create(tmp_path / "c.sqlite", "store")
    with sqlite3.connect(tmp_path / "c.sqlite") as raw:
        raw.execute(statement)
    raw.close()
    with pytest.raises(Corrupt, match="begat rebuild"):
        catalog.runs.get("r")
    catalog.close()


def test_a_schema_that_is_not_the_one_that_begat_makes_is_named(tmp_path: Path):
    catalog = Catalog.create(tmp_path / "c.sqlite", "store")
    assert catalog.check() == []
    with sqlite3.connect(tmp_path / "c.sqlite") as raw:
        raw.execute("DROP INDEX events_check")
    raw.close()
    [problem] = catalog.check()
    assert "its tables are not those that begat makes" in problem
    catalog.close()


def test_a_disk_too_full_for_the_file_that_readers_share_is_a_full_disk():
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
    found = trouble.translated(error, "opening the catalog", "catalog.sqlite")
    assert isinstance(found, StoreFull)
    assert "free some space" in found.message


# --- statements that go past SQLAlchemy ---


def test_every_prepared_statement_is_one_that_sqlite_takes(catalog: Catalog):
    homes = (bytes_, changes, commits, labels, placing, rows, runs, versions)
    found = [each for home in homes for each in _prepared(vars(home).values())]
    assert len(found) > 20
    with catalog._engine.read() as connection:
        for statement in found:
            statement._compile(connection.dialect)
            driver_of(connection).execute(
                f"EXPLAIN {statement._text}", [None] * len(statement._names)
            )


def test_a_prepared_statement_wants_every_value(catalog: Catalog):
    catalog.commits.commit(new_version())
    statement = Prepared(
        select(tables.versions.c.number).where(tables.versions.c.uid == bindparam("uid"))
    )
    with catalog._engine.read() as connection:
        assert statement.first(connection, uid="none") is None
        with pytest.raises(KeyError):
            statement.first(connection)


def _prepared(values: Iterable[object]) -> Iterator[Prepared]:
    for value in values:
        if isinstance(value, Prepared):
            yield value
        elif isinstance(value, dict):
            yield from _prepared(value.values())
