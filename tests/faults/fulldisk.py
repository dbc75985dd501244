"""On a disk that is full to the last byte everything can be read, and rm and gc free space: tmpfs and ext4, mounted.

    python tests/faults/fulldisk.py

What is asserted is what the commands say and do, and what the disk has afterwards. The same is then done by a begat
that reads as on any disk, and one that keeps no reserve: both must be noticed, or nothing was proved. Exit code 0:
all works; 1: problems; 77: not run, or not on each of them, since this machine forbids it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "core")]

import begat  # noqa: E402 - needs the path above
from begat.catalog import RESERVE_FILE, connecting  # noqa: E402
from begat.catalog.reserve import RESERVE_BYTES, Reserve  # noqa: E402
from command_line import COMMAND, environment  # noqa: E402
from command_line import begat as command  # noqa: E402
from faults.on_disks import NotPossible, prove  # noqa: E402

MIB = 1 << 20
DISK_BYTES = 48 * MIB
MANY_FILES = 20_000  # in one pack: their rows need more room than there is in the reserve
READING = (
    *(("ls",), ("show", "data:v1"), ("history", "data"), ("lineage", "data"), ("runs",)),
    *(("diff", "data:v1", "data:v2"), ("verify",), ("gc",), ("stale",)),
)


@contextlib.contextmanager
def mounted(kind: str, folder: Path) -> Iterator[Path]:
    """A new, small file system of this kind; on ext4 not even root has blocks of its own."""
    place = folder / kind
    place.mkdir()
    commands: list[list[str | Path]] = [
        ["mount", "-t", kind, "-o", f"size={DISK_BYTES}", kind, place]
    ]
    if kind == "ext4":
        image = folder / "ext4.img"
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        commands = [
            ["mkfs.ext4", "-q", "-F", "-m", "0", image],
            ["mount", "-t", "ext4", "-o", "loop", image, place],
        ]
    for each in commands:
        if shutil.which(str(each[0])) is None:
            raise NotPossible(f"{each[0]} is missing (apt-get install e2fsprogs mount)")
        done = subprocess.run(each, capture_output=True, text=True)
        if done.returncode != 0:
            raise NotPossible(f"{' '.join(map(str, each[:3]))}: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


class Disk:
    """A mounted file system with a store, and the file that fills it."""

    def __init__(self, place: Path, elsewhere: Path) -> None:
        self.place = place
        self.elsewhere = elsewhere
        self.store = place / "store"
        self._filling = place / "filling"
        os.environ["BEGAT_STORE"] = str(self.store)
        os.environ["BEGAT_CACHE"] = str(elsewhere / "cache")

    def fill(self) -> None:
        """Take every block that is left."""
        self._sync()
        with self._filling.open("ab", buffering=0) as file:
            for size in (MIB, 4096, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())

    def empty(self) -> None:
        """Give all of that back."""
        self._filling.unlink(missing_ok=True)
        self._sync()

    def _sync(self) -> None:
        """Let the file system give back what was freed; of others nothing is synced."""
        subprocess.run(["sync", "-f", self.place], check=True)

    def free_bytes(self) -> int:
        """How much room there is."""
        self._sync()
        return shutil.disk_usage(self.place).free

    def make_store(self) -> None:
        """A store with two versions of data, a run that used one, and a version of many small files."""
        sources = self.elsewhere / "sources"
        shutil.rmtree(sources, ignore_errors=True)
        (sources / "many").mkdir(parents=True)
        for at in range(MANY_FILES):
            (sources / f"many/{at}").write_text(str(at))
        with begat.open_store(self.store) as store:
            for size in (3 * MIB, 5 * MIB):
                (sources / "data.bin").write_bytes(os.urandom(size))
                store.log_artifact("data", sources / "data.bin")
            with store.start_run("train", uses=["data:v2"]) as run:
                run.log_artifact("model", b"weights")
            for name in ("keep me", "not me"):
                (sources / "many/name").write_text(name)
                store.log_artifact("many", sources / "many", stat_cache=False)


def reading(disk: Disk) -> Iterator[str]:
    """All that only reads says what it said when there was room, alone and with others at once."""
    before = {each: command(*each) for each in READING}
    disk.fill()
    for each, said in before.items():
        if (now := command(*each)) != said:
            yield f"begat {' '.join(each)} says: {now.err or now.out} (it said: {said.err or said.out})"
    out = disk.elsewhere / "out"
    shutil.rmtree(out, ignore_errors=True)
    told = command("get", "data:v1", out)
    if told.code or (out / "data.bin").stat().st_size != 3 * MIB:
        yield f"begat get says: {told.err}"
    with begat.open_store(disk.store) as store:
        with store.get_artifact("data:v2").open("data.bin") as file:
            if len(file.read()) != 5 * MIB:
                yield "Version.open reads something else"
        if store.is_read_only:
            yield "a store on a full disk is taken for one that can only be read"
    with ThreadPoolExecutor(4) as pool:
        ways = [[*COMMAND, "ls"]] * 2 + [[*COMMAND, "verify", "data:v1"]] * 2
        for done in pool.map(run_in_a_process, ways):
            if done.returncode:
                yield f"one of four readers at once failed: {done.stderr}"
    with begat.open_store(disk.store) as store, ThreadPoolExecutor(4) as pool:
        versions = [store.get_artifact(f"data:v{number}") for number in (1, 2)] * 4
        if any(pool.map(lambda version: version.verify(), versions)):
            yield "threads of one process read something else"


def run_in_a_process(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """A command in a process of its own."""
    return subprocess.run(
        arguments, env=environment(), capture_output=True, text=True, timeout=120, check=False
    )


def what_a_writer_left(disk: Disk) -> Iterator[str]:
    """What stands only in the log of a writer that was killed is read, also without the index beside it."""
    disk.empty()
    pid = os.fork()
    if pid == 0:
        try:
            store = begat.open_store(disk.store)
            store.alias("data:v1", "left-in-the-log")
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    log = disk.store / "catalog.sqlite-wal"
    if log.stat().st_size == 0:
        yield "the log of the killed writer is empty, so that nothing is proved"
    (disk.store / "catalog.sqlite-shm").unlink()  # a power cut may take it: it is never fsynced
    disk.fill()
    told = command("show", "data:left-in-the-log")
    if told.code:
        yield f"what a killed writer had committed is not read: {told.err}"
    if (told := command("alias", "--rm", "left-in-the-log", "data")).code:
        yield f"begat alias --rm says: {told.err}"


def freeing(disk: Disk) -> Iterator[str]:
    """rm and gc work, and say what they freed; then there is room again, and the reserve is whole."""
    disk.fill()
    free = disk.free_bytes()
    for each in (
        ("rm", "data:v1", "--yes"),
        ("rm", "many:v1", "--yes"),
        ("rm", "many:v2", "--yes"),
    ):
        if (told := command(*each)).code:
            yield f"begat {' '.join(each)} says: {told.err}"
        disk.fill()
    told = command("gc", "--delete", "--json")
    if told.code:
        yield f"begat gc --delete says: {told.err}"
        return
    freed = told.json["freed_bytes"]
    grown = disk.free_bytes() - free
    # The reserve was given up and is there again; what the catalog grew by is some pages.
    if freed < 3 * MIB or abs(grown - freed) > MIB // 2:
        yield f"gc says that it freed {freed} bytes, and the disk has {grown} more"
    reserve = disk.store / RESERVE_FILE
    if not reserve.exists() or reserve.stat().st_blocks * 512 < RESERVE_BYTES:
        yield "the reserve is not whole again"
    if command("log", "small", ROOT / "README.md").code:
        yield "what is logged after gc does not find room"


def soundness(disk: Disk) -> Iterator[str]:
    """After all of that the store is sound, and works as any other."""
    disk.empty()
    if (told := command("verify")).code:
        yield f"verify: {told.err}{told.out}"
    with begat.open_store(disk.store) as store:
        if store.log_artifact("data", b"after").number != 3 or store.gc(dry_run=False).kept == ():
            yield "the store does not go on"
    left = {each.name for each in disk.store.iterdir()} & {
        "catalog.sqlite-wal",
        "catalog.sqlite-shm",
    }
    if left:
        yield f"left behind: {left}"


def without_a_reserve(disk: Disk) -> Iterator[str]:
    """A store that an older begat made has none: what to do is said in a line, and a little room is enough."""
    (disk.store / RESERVE_FILE).unlink(missing_ok=True)
    disk.fill()
    told = command("rm", "data:v2", "--yes", "--force")
    if told.code == 0 or "remove 2 MB" not in told.err or str(disk.place) not in told.err:
        yield f"rm without a reserve says: {told.err}"
    if told.err.count("\n") != 1:
        yield f"that is not one line: {told.err}"
    with (disk.place / "filling").open("ab") as file:
        file.truncate(file.tell() - 2 * MIB)
    for each in (("rm", "data:v2", "--yes", "--force"), ("gc", "--delete")):
        if (told := command(*each)).code:
            yield f"with a little room begat {' '.join(each)} says: {told.err}"
    if not (disk.store / RESERVE_FILE).exists():
        yield "gc made no reserve"


def without_room_for_names(disk: Disk) -> Iterator[str]:
    """A folder that is a store no more than half is made again once there is room."""
    other = disk.place / "other"
    disk.fill()
    os.environ["BEGAT_STORE"] = str(other)
    told = command("log", "new", ROOT / "README.md")
    if told.code == 0 or "Traceback" in told.err:
        yield f"a log into a store that cannot be made says: {told.err}"
    disk.empty()
    if (told := command("log", "new", ROOT / "README.md")).code:
        yield f"once there is room: {told.err}"


STEPS: tuple[Callable[[Disk], Iterator[str]], ...] = (
    reading,
    what_a_writer_left,
    freeing,
    soundness,
    without_a_reserve,
    without_room_for_names,
)


def problems(kind: str, folder: Path) -> Iterator[str]:
    """What does not work on a full disk of this kind."""
    with mounted(kind, folder) as place:
        disk = Disk(place, folder)
        disk.make_store()
        for step in STEPS:
            try:
                for problem in step(disk):
                    yield f"{step.__name__}: {problem}"
            except Exception:  # noqa: BLE001 - the other steps tell more
                yield f"{step.__name__}: {traceback.format_exc()}"


def unnoticed(kind: str, folder: Path) -> Iterator[str]:
    """Without what makes it work, the first thing that needs it must be found not to work."""
    with mounted(kind, folder) as place:
        disk = Disk(place, folder)
        disk.make_store()
        with mock.patch.object(connecting, "lacks_index", return_value=False):
            if not any("is not read" in each for each in what_a_writer_left(disk)):
                yield "a begat that reads as on any disk was not noticed"
        with mock.patch.object(Reserve, "keep", return_value=True):
            (disk.store / RESERVE_FILE).unlink(missing_ok=True)
            if not any("rm data:v1" in each for each in freeing(disk)):
                yield "a begat without a reserve was not noticed"


def tried(kind: str, folder: Path) -> list[str]:
    """What went wrong on a file system of this kind."""
    for name in ("works", "broken"):
        (folder / name).mkdir()
    return list(problems(kind, folder / "works")) or list(unnoticed(kind, folder / "broken"))


if __name__ == "__main__":
    sys.exit(prove(("tmpfs", "ext4"), tried, "a full disk is read, and gets room again"))
