"""Ways to damage a store, and what is wrong with it then: not named, handed out, or not mended."""

import contextlib
import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from begat import Artifact, Version
from begat.errors import BegatError
from begat.opening import open_store
from begat.packs import FOOTER_BYTES
from begat.store import Store
from begat.tables import METADATA
from command_line import begat

DICE = random.Random(20261123)
CONTENT = {
    "small": {f"{n}.bin": DICE.randbytes(3000 + n) for n in range(12)}
    | {"text": b"compressible " * 4000, "empty": b""},
    "medium": {"data.bin": DICE.randbytes((1 << 20) + 77)},
    "large": {"data.bin": DICE.randbytes(5 << 20)},
}
CONTENT["few-new"] = {"data.bin": CONTENT["large"]["data.bin"][: 4 << 20] + DICE.randbytes(1 << 20)}

Damage = Callable[[Path], None]


def flip(at: int, bit: int) -> Damage:
    """Flip one bit at a position from the start (or, negative, from the end)."""

    def damage(path: Path) -> None:
        with writable(path).open("r+b") as file:
            file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
            [byte] = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 1 << bit]))

    return damage


def truncate_to(share: float) -> Damage:
    def damage(path: Path) -> None:
        size = path.stat().st_size
        os.truncate(writable(path), min(int(size * share), size - 1))

    return damage


def extend(path: Path) -> None:
    with writable(path).open("ab") as file:
        file.write(b"x")


def zero_page(path: Path) -> None:
    with writable(path).open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(bytes(min(4096, path.stat().st_size // 2 + 1)))


def swap_for_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_for_a_link(path: Path) -> None:
    """A link to the very bytes that belong here: still not an object."""
    moved = path.with_name("elsewhere")
    path.rename(moved)
    path.symlink_to(moved)


def writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


@dataclass(slots=True)
class Stores:
    """A store that is made once, and copies of it to be damaged."""

    folder: Path
    template: Path
    objects: dict[str, str] = field(default_factory=dict)  # what it is -> its name

    def copy(self) -> Path:
        path = self.folder / "copy"
        shutil.rmtree(path, ignore_errors=True)
        return shutil.copytree(self.template, path)

    def object(self, root: Path, what: str) -> Path:
        return root / "objects" / self.objects[what]


def make_stores(folder: Path) -> Stores:
    """One store with objects of each kind, each known by what it is."""
    made = Stores(folder, folder / "template")
    store = open_store(made.template)
    for name in CONTENT:
        before = {record.name for record in store.catalog.bytes.all_objects()}
        log(store, name)
        for record in store.catalog.bytes.all_objects():
            if record.name not in before:
                kinds = {blob.kind for blob in store.catalog.bytes.blobs_in(record.name)}
                made.objects[f"{name}, {'pack' if 'root' in kinds else 'file'}"] = record.name
    store.close()
    return made


def make_unfolded(folder: Path) -> Path:
    """A store as a crash leaves it: the same versions, and all that was committed is still in SQLite's log."""
    store = open_store(folder / "made")
    for name in CONTENT:
        log(store, name)
    copy = shutil.copytree(folder / "made", folder / "unfolded")
    store.close()
    return copy


def log(store: Store, name: str) -> Version:
    draft = Artifact(name)
    for path, data in CONTENT[name].items():
        draft.add(data, path)
    return store.log_artifact(draft)


# Free texts, each in a column of its own.
TEXTS = (
    *("described artifact", "described version", "metadata of a version", "metadata of a path"),
    *("parameter of a run", "metric of a run", "tag-of-a-version", "alias-of-a-version"),
    *("role of an input", "name of a run", "job of a run"),
)


def fill_catalog(store: Store) -> None:
    """Rows in every table, with `TEXTS` in them."""
    by_text = {text: text for text in TEXTS}
    for number in range(4):
        draft = Artifact(f"filled/{number}", metadata={"m": by_text["metadata of a version"]})
        draft.add(b"%d" % number, "a", metadata={"m": by_text["metadata of a path"]})
        if number == 0:
            draft.add(CONTENT["large"]["data.bin"], "large.bin")
        store.log_artifact(f"input{number}", b"%d" % number)
        params = {"p": by_text["parameter of a run"]}
        name, job = by_text["name of a run"], by_text["job of a run"]
        with store.start_run(name, job=job, params=params) as run:
            run.use_artifact(f"input{number}:latest", role=by_text["role of an input"])
            run.log_metrics({by_text["metric of a run"]: 1.5})
            run.set_tags("tag-of-a-run")
            version = run.log_artifact(draft, aliases=["alias-of-a-version"])
        version.set_description(by_text["described version"])
        version.add_tags("tag-of-a-version")
        uid = store.catalog.versions.artifact(version.name).uid
        text = by_text["described artifact"]
        store.catalog.labels.set_description("artifact", uid, text, by="somebody")
        assert not store.log_artifact(version.draft()).is_new
        store.catalog.fingerprints.add(version.uid, "a", fingerprint="b3:f", kind="how")


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """All rows of a database, by table; raises where they cannot be read."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA query_only = ON")
        found = {}
        for name in METADATA.tables:
            # Not by an index: what the rows themselves say.
            rows = connection.execute(f"SELECT * FROM {name} NOT INDEXED").fetchall()
            found[name] = sorted(rows, key=repr)
        return found


# --- all ways of reading ---


def read_wrong(store: Store, folder: Path, *, drafts: bool = True) -> tuple[list[str], int]:
    """The reads that gave other bytes than were logged, or failed otherwise than as damage; how many were refused."""
    wrong: list[str] = []
    refused = 0

    def attempt(what: str, expected: object, read: Callable[[], object]) -> None:
        nonlocal refused
        try:
            found = read()
        except BegatError:
            refused += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            wrong.append(f"{what}: {type(error).__name__}: {error}")
        else:
            if found != expected:
                wrong.append(f"{what} gave other bytes")

    def read_all(name: str, content: dict[str, bytes]) -> None:
        version = store.get_artifact(name)
        ref = version.ref
        for path, data in content.items():
            attempt(f"{ref}/{path} read_bytes", data, partial(version.read_bytes, path))
        attempt(f"{ref} path", content, lambda: bytes_in(version.path))
        attempt(f"{ref} download", content, lambda: bytes_in(version.download(folder / name)))
        for path, data in content.items():
            attempt(f"{ref}/{path} open", data, partial(read_open, version, path))
        some = {path: data for path, data in content.items() if path.endswith("n")}
        attempt(
            f"{ref} download of some",
            some,
            lambda: bytes_in(version.download(folder / f"{name}-some", include="*n")),
        )
        if len(content) == 1:
            [data] = content.values()
            attempt(f"{ref} file", data, lambda: version.file.read_bytes())
        path, data = next(iter(content.items()))
        attempt(f"begat get {ref}/{path}", data, lambda: got(store, f"{ref}/{path}", folder / ref))
        if drafts:
            attempt(f"{ref} draft", content, lambda: bytes_of_draft(store, version, folder))

    for name, content in CONTENT.items():
        attempt(name, None, partial(read_all, name, content))
    return wrong, refused


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_open(version: Version, path: str) -> bytes:
    with version.open(path) as file:
        return file.read()


def got(store: Store, ref: str, target: Path) -> bytes:
    """One file by the command; its error, whose kind the command does not tell, is `BegatError` here."""
    told = begat("--store", store.path, "get", f"begat://{ref}", target)
    if told.code == 1 and "This is a bug" not in told.err:
        assert not target.exists(), f"{target} was left behind: {told.err}"
        raise BegatError(told.err)
    assert told.code == 0, told.err
    return target.read_bytes()


def bytes_of_draft(store: Store, version: Version, folder: Path) -> dict[str, bytes]:
    """What the next version holds that takes over all files of this one, and one more."""
    logged = store.log_artifact(version.draft().add(b"new", "new"))
    found = bytes_in(logged.download(folder / f"{version.name}-draft"))
    assert found.pop("new") == b"new"
    return found


def unnamed(store: Store, damaged: set[str]) -> list[str]:
    """The damaged objects that verify does not name, by themselves or by a version that needs them."""
    named = {damage.object for damage in store.verify().damaged}
    return [f"verify does not name {name}" for name in sorted(damaged - {n for n in named if n})]


def problems_of_damage(stores: Stores, what: str, damage: Damage, folder: Path) -> list[str]:
    """What is wrong after one object was damaged: not named, wrong bytes, or not mended by logging again."""
    problems: list[str] = []
    for check in (_named_and_mended, _never_read):
        root = stores.copy()
        damage(stores.object(root, what))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        store = open_store(root)
        try:
            problems += check(store, stores.objects[what], folder)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            problems.append(f"{type(error).__name__}: {error}")
        finally:
            store.close()
    return problems


def _never_read(store: Store, name: str, folder: Path) -> list[str]:
    return read_wrong(store, folder)[0]


def _named_and_mended(store: Store, name: str, folder: Path) -> list[str]:
    problems = unnamed(store, {name})
    for each in CONTENT:
        log(store, each)
    wrong, refused = read_wrong(store, folder, drafts=False)
    if refused:
        wrong.append(f"{refused} reads were refused")
    wrong += [f"{each.place}: {each.problem}" for each in store.verify().damaged]
    return [*problems, *(f"after the same was logged again: {each}" for each in wrong)]


def bits_of(size: int, *, is_pack: bool) -> list[Damage]:
    """Flips all over an object, and in each part of a pack's end: index, its length, its digest, the magic bytes."""
    dice = random.Random(size)
    spots = [0, *(dice.randrange(size) for _ in range(5)), -1]
    if is_pack:
        spots += [-9, -FOOTER_BYTES + 9, -FOOTER_BYTES, -FOOTER_BYTES - 1, -FOOTER_BYTES - 100]
    return [flip(at, dice.randrange(8)) for at in spots]
