"""What must be true of a store after anything went wrong with it, as functions that return what is not."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from begat.model import EmptyDirectory, StoredFile, Symlink
from begat.opening import open_store
from begat.store import Store

# Path below a folder -> ("file", bytes, is executable) | ("link", target) | ("folder",) for one that is empty.
Tree: TypeAlias = dict[str, tuple[object, ...]]

KNOWN_IN_A_STORE = {
    *("format.json", "reserve", "catalog.sqlite", "catalog.sqlite-wal", "catalog.sqlite-shm"),
    *("locks", "objects", "tmp", "staging", "damaged"),
}


def tree_of(root: Path) -> Tree:
    """Everything below a folder, byte for byte."""
    found: Tree = {}
    for folder, path in _walk(root):
        name = path.relative_to(root).as_posix()
        if path.is_symlink():
            found[name] = ("link", os.readlink(path))
        elif not folder:
            found[name] = ("file", path.read_bytes(), bool(path.stat().st_mode & stat.S_IXUSR))
        elif not any(path.iterdir()):
            found[name] = ("folder",)
    return found


def files_below(root: Path) -> list[Path]:
    """All files and links below a folder, none if it is not there."""
    return [path for folder, path in _walk(root) if not folder] if root.is_dir() else []


def _walk(root: Path) -> Iterator[tuple[bool, Path]]:
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as listing:
            for item in listing:
                folder = item.is_dir(follow_symlinks=False)
                yield folder, Path(item.path)
                if folder:
                    pending.append(Path(item.path))


@dataclass(frozen=True, slots=True)
class Truth:
    """What must be in a store: versions by reference, and what an unfinished step may have made besides."""

    versions: Mapping[str, Tree]
    possible: tuple[Tree, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # "a:best" -> one of these
    deleted: frozenset[str] = frozenset()


def wrong_in(store: Store, truth: Truth, scratch: Path) -> list[str]:
    """Everything in a store that is not as it must be: damaged, lost, other than it was, out of number."""
    problems = [f"verify: {damage.place}: {damage.problem}" for damage in store.verify().damaged]
    found: dict[str, Tree | None] = {}
    for artifact in store.artifacts():
        versions = store.versions(artifact.name, with_deleted=True)
        numbers = [version.number for version in versions]
        if numbers != list(range(1, len(numbers) + 1)):
            problems.append(f"{artifact.name} has the numbers {numbers}")
        for version in versions:
            is_readable = version.state in ("live", "retired")
            found[version.ref] = (
                read_back(store, version.ref, scratch, problems) if is_readable else None
            )
    problems += _compared(found, truth)
    for alias, refs in truth.aliases.items():
        now = store.get_artifact(alias).ref
        if now not in refs:
            problems.append(f"the alias {alias} is at {now}, not at {' or '.join(refs)}")
    return problems


def _compared(found: Mapping[str, Tree | None], truth: Truth) -> list[str]:
    problems: list[str] = []
    for ref, tree in truth.versions.items():
        if ref not in found:
            problems.append(f"{ref} was acknowledged and is lost")
        elif ref in truth.deleted:
            continue
        elif found[ref] != tree:
            problems.append(f"{ref} reads as something else than was logged")
    for ref, tree in found.items():
        if ref not in truth.versions and tree not in truth.possible:
            problems.append(f"{ref} is there, and nobody logged what it holds")
    return problems


def read_back(store: Store, ref: str, scratch: Path, problems: list[str]) -> Tree | None:
    """A version by every way of reading, which must agree; what fails is added to `problems`."""
    version = store.get_artifact(ref)
    target = scratch / f"{version.uid}-{len(os.listdir(scratch))}"
    try:
        straight: Tree = {}
        for entry in version.entries:
            if isinstance(entry, StoredFile):
                data = version.read_bytes(entry.path)
                straight[entry.path] = ("file", data, entry.is_executable)
            elif isinstance(entry, Symlink):
                straight[entry.path] = ("link", entry.target)
            elif isinstance(entry, EmptyDirectory):
                straight[entry.path] = ("folder",)
        checked_out = tree_of(version.download(target))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        problems.append(f"{ref} cannot be read: {type(error).__name__}: {error}")
        return None
    if straight != checked_out:
        problems.append(f"{ref}: read_bytes and download differ")
    return straight


def temporary_files(root: Path) -> list[str]:
    """What has no final name in a store or below a destination."""
    found = files_below(root / "tmp") if (root / "format.json").exists() else []
    found += [path for path in files_below(root) if path.name.endswith(".tmp")]
    return [str(path.relative_to(root)) for path in found]


def garbage_after_collection(store: Store) -> list[str]:
    """What gc should have removed and did not; it has just been run."""
    root = store.path
    problems = [f"gc left {name}" for name in temporary_files(root)]
    known = {record.name for record in store.catalog.bytes.all_objects()}
    there = {name for name, _ in store.objects.list()}
    problems += [f"gc left the object {name}" for name in sorted(there - known)]
    problems += [f"the object {name} has a row and no file" for name in sorted(known - there)]
    strangers = sorted(set(os.listdir(root)) - KNOWN_IN_A_STORE)
    problems += [f"the store holds {name}" for name in strangers]
    left = store.gc(dry_run=True).removed
    problems += [f"a second gc would remove {each.what}: {each.reason}" for each in left]
    return problems


def wrong_after(
    root: Path,
    truth: Truth,
    scratch: Path,
    *,
    again: tuple[str, Path] | None = None,
    collect: bool = True,
) -> list[str]:
    """Everything wrong with the store at `root`: as it is, after `again` (name, folder) was logged, and after gc."""
    scratch.mkdir(exist_ok=True)
    problems: list[str] = []
    try:
        store = open_store(root)
        try:
            problems += wrong_in(store, truth, scratch)
            if again is not None:
                name, source = again
                logged = store.log_artifact(name, source)
                truth = replace(truth, versions={**truth.versions, logged.ref: tree_of(source)})
                if read_back(store, logged.ref, scratch, problems) != truth.versions[logged.ref]:
                    problems.append(f"the same content logged again, as {logged.ref}, reads wrong")
            if collect:
                store.gc(dry_run=False, wait=10)
                problems += garbage_after_collection(store)
                problems += [f"after gc: {each}" for each in wrong_in(store, truth, scratch)]
        finally:
            store.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        problems.append(f"the store cannot be used: {type(error).__name__}: {error}")
    return problems
