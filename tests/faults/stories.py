"""What is done to a store while it is made to fail: each story prepares a store, then acts and says what it did."""

import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from begat import statcache
from begat.opening import open_store
from begat.store import Store
from faults.checking import Tree, Truth, tree_of

# ["version", ref, source] | ["alias", alias, ref] | ["deleted", ref] | ["swept"] | ["downloaded"]
Acknowledge: TypeAlias = Callable[[list[str]], None]
Act: TypeAlias = Callable[["Place", Store, Acknowledge], None]

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where one telling of a story happens: a store, the users' files, and a folder to write to."""

    root: Path
    sources: Path
    destination: Path

    def source(self, name: str) -> Path:
        return self.sources / name


@dataclass(frozen=True, slots=True)
class Story:
    """A store to begin with, what is then done to it, and the content that it may newly hold."""

    name: str
    prepare: Act
    act: Act
    makes: tuple[str, ...] = ()
    again: tuple[str, str] = ("small", "small-2")
    ends: Mapping[str, str] = field(
        default_factory=dict
    )  # alias -> its version; version -> "": deleted


def write_sources(sources: Path) -> None:
    """The users' files: the same bytes each time, since what is told again must be the same content."""
    dice = random.Random(20261123)
    for name, extra in (("small-1", ()), ("small-2", ("new",)), ("small-3", ("new", "newer"))):
        folder = sources / name
        (folder / "sub" / "empty").mkdir(parents=True)
        (folder / "a.txt").write_bytes(b"the same in all\n")
        (folder / "sub" / "b.bin").write_bytes(name.encode() * 50)
        (folder / "nothing").write_bytes(b"")
        (folder / "run.sh").write_bytes(b"#!/bin/sh\n")
        (folder / "run.sh").chmod(0o755)
        (folder / "link").symlink_to("sub/b.bin")
        for each in extra:
            (folder / each).write_bytes(each.encode() * 9)
    parts = [dice.randbytes(MIB) for _ in range(6)]
    for name, content in (
        ("large-1", parts[:5]),
        ("large-2", [*parts[:4], parts[5]]),  # its last MiB is another: one new part
        ("medium", [dice.randbytes(MIB), b"and a bit"]),
        ("huge", [random.Random(9).randbytes(17 * MIB)]),  # copied first, by threads of its own
    ):
        (sources / name).mkdir()
        (sources / name / "data.bin").write_bytes(b"".join(content))
    # Two thirds of one pack, which a later version does not have: gc writes the pack anew.
    (sources / "pack-1").mkdir()
    for number in range(6):
        (sources / "pack-1" / f"{number}.bin").write_bytes(dice.randbytes(400_000))
    (sources / "pack-2").mkdir()
    (sources / "pack-2" / "5.bin").write_bytes((sources / "pack-1" / "5.bin").read_bytes())


# --- the stories ---


def _log(name: str, *sources: str, **labels: list[str]) -> Act:
    def act(place: Place, store: Store, acknowledge: Acknowledge) -> None:
        for source in sources:
            version = store.log_artifact(name, place.source(source), **labels)  # pyright: ignore[reportArgumentType]
            acknowledge(["version", version.ref, source])
            for alias in labels.get("aliases", []):
                acknowledge(["alias", f"{name}:{alias}", version.ref])

    return act


def _nothing(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    pass


def _log_in_a_run(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    with store.start_run("train", uses=["small:v1"]) as run:
        version = run.log_artifact("model", place.source("medium"), aliases=["best"])
        acknowledge(["version", version.ref, "medium"])
        acknowledge(["alias", "model:best", version.ref])


def _alias_and_tags(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    for ref in ("small:v2", "small:v1"):
        store.alias(ref, "best")
        acknowledge(["alias", "small:best", ref])
    store.get_artifact("small:v2").add_tags("seen")


def _delete(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    store.delete("small:v2", force=True)
    acknowledge(["deleted", "small:v2"])


def _with_garbage(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    """A deleted version, half a pack that is dead, an object and a file that no row names."""
    _log("pack", "pack-1", "pack-2")(place, store, acknowledge)
    _log("large", "large-1", "large-2")(place, store, acknowledge)
    for ref in ("pack:v1", "large:v1"):
        store.delete(ref)
        acknowledge(["deleted", ref])
    with store.objects.new() as new:
        new.write(b"the log of these bytes was killed before its commit")
        store.objects.publish(new)
    (store.objects.tmp / "0123456789abcdef").write_bytes(b"half of an object")


def _sweep(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    store.gc(dry_run=False, wait=5)
    acknowledge(["swept"])


def _download(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    small = place.destination / "small"
    store.get_artifact("small:v1").download(small)
    store.get_artifact("medium:v1").download(place.destination / "medium")
    store.get_artifact("small:v2").download(small, overwrite="overwrite")
    acknowledge(["downloaded"])


def _for_download(place: Place, store: Store, acknowledge: Acknowledge) -> None:
    _log("small", "small-1", "small-2")(place, store, acknowledge)
    _log("medium", "medium")(place, store, acknowledge)


_LABELS = {"aliases": ["best"]}

STORIES = {
    story.name: story
    for story in (
        Story(
            "first version",
            _nothing,
            _log("small", "small-1", **_LABELS, tags=["t"]),
            makes=("small-1",),
        ),
        Story(
            "second version",
            _log("small", "small-1", **_LABELS),
            _log("small", "small-2", "small-2", **_LABELS),
            makes=("small-2",),
            ends={"small:best": "small:v2"},
        ),
        Story(
            "large file",
            _log("small", "small-1"),
            _log("huge", "huge"),
            makes=("huge",),
            again=("huge", "huge"),
        ),
        Story(
            "large file, few new parts",
            _log("large", "large-1"),
            _log("large", "large-2"),
            makes=("large-2",),
            again=("large", "large-2"),
        ),
        Story(
            "log in a run",
            _log("small", "small-1"),
            _log_in_a_run,
            makes=("medium",),
            again=("model", "medium"),
        ),
        Story(
            "alias",
            _log("small", "small-1", "small-2", **_LABELS),
            _alias_and_tags,
            ends={"small:best": "small:v1"},
        ),
        Story(
            "delete",
            _log("small", "small-1", "small-2", **_LABELS),
            _delete,
            ends={"small:v2": ""},
        ),
        Story("gc", _with_garbage, _sweep, again=("pack", "pack-1")),
        Story("download", _for_download, _download),
    )
}


# --- telling them, and what must be true afterwards ---


def tell(place: Place, act: Act, acknowledge: Acknowledge) -> None:
    """Open the store and do it; closed only where it went well, as a crash closes nothing."""
    with cold_stat_cache():
        store = open_store(place.root)
        act(place, store, acknowledge)
        store.close()


@contextmanager
def cold_stat_cache() -> Iterator[None]:
    """No folder was logged before, and no file is believed however old it is: each telling has the same steps."""
    shutil.rmtree(Path(os.environ["BEGAT_CACHE"]) / statcache.FOLDER, ignore_errors=True)
    young_ns = statcache.YOUNG_NS
    statcache.YOUNG_NS = 10**19
    try:
        yield
    finally:
        statcache.YOUNG_NS = young_ns


def truth_of(
    story: Story, acknowledged: list[list[str]], trees: dict[str, Tree], *, is_finished: bool
) -> Truth:
    """What a store must hold after these steps were acknowledged, and may hold of the one that was not."""
    versions: dict[str, Tree] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    deleted: set[str] = set()
    for what, *facts in acknowledged:
        if what == "version":
            versions[facts[0]] = trees[facts[1]]
        elif what == "alias":
            aliases[facts[0]] = (facts[1],)
        elif what == "deleted":
            deleted.add(facts[0])
    if story.name == "delete":
        aliases = {}  # they go with the version
    if not is_finished:
        # The step that was cut short may have been committed, and only its answer was lost.
        deleted |= {ref for ref, is_there in story.ends.items() if not is_there}
        for alias, ref in story.ends.items():
            if ref and alias in aliases:
                aliases[alias] += (ref,)
    possible = tuple(trees[name] for name in story.makes)
    return Truth(versions, possible, aliases, frozenset(deleted))


def trees_of(sources: Path) -> dict[str, Tree]:
    return {folder.name: tree_of(folder) for folder in sources.iterdir()}
