"""Damage to every kind of stored file: always named, and never handed out as if it were right."""

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from begat.catalog import Catalog
from begat.errors import BegatError, Corrupt
from begat.listing import LocalFile, Planned
from begat.opening import open_store
from begat.recording.journal import sync
from begat.recording.staging import JOURNAL, STAGING, Journal, Pointed
from faults.damaging import (
    CONTENT,
    TEXTS,
    Damage,
    Stores,
    bits_of,
    bytes_in,
    dump,
    extend,
    fill_catalog,
    flip,
    make_stores,
    make_unfolded,
    problems_of_damage,
    read_open,
    read_wrong,
    swap_for_a_folder,
    swap_for_a_link,
    truncate_to,
    unnamed,
    zero_page,
)
from faults.sweeping import in_memory


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    with in_memory() as folder:
        yield make_stores(folder)


OBJECTS = [
    *("small, pack", "medium, file", "medium, pack"),
    *("large, file", "large, pack", "few-new, pack"),
]


def test_there_are_objects_of_each_kind(stores: Stores) -> None:
    assert sorted(stores.objects) == sorted(OBJECTS)


@pytest.mark.parametrize("what", OBJECTS)
def test_a_flipped_bit_is_named_and_never_read_and_mended_by_logging_again(
    what: str, stores: Stores, tmp_path: Path
) -> None:
    size = stores.object(stores.template, what).stat().st_size
    problems = [
        f"flip {number}: {problem}"
        for number, damage in enumerate(bits_of(size, is_pack="pack" in what))
        for problem in problems_of_damage(stores, what, damage, tmp_path / "read")
    ]
    assert problems == []


@pytest.mark.parametrize(
    "damage",
    [truncate_to(0), truncate_to(0.5), truncate_to(1), extend, zero_page, os.unlink,
     swap_for_a_folder, swap_for_a_link],
    ids=["empty", "half", "one byte short", "one byte long", "zero page", "deleted", "folder", "link"],
)  # fmt: skip
@pytest.mark.parametrize("what", OBJECTS)
def test_what_happens_to_whole_files_is_named_and_never_read_and_mended_by_logging_again(
    what: str, damage: Damage, stores: Stores, tmp_path: Path
) -> None:
    assert problems_of_damage(stores, what, damage, tmp_path / "read") == []


def test_two_objects_that_changed_places_are_both_named_and_never_read(
    stores: Stores, tmp_path: Path
) -> None:
    pair = ("medium, file", "large, file")

    def swapped() -> Path:
        root = stores.copy()
        one, two = (stores.object(root, what) for what in pair)
        one.rename(root / "aside")
        two.rename(one)
        (root / "aside").rename(two)
        return root

    store = open_store(swapped())
    assert unnamed(store, {stores.objects[what] for what in pair}) == []
    store.close()
    store = open_store(swapped())
    assert read_wrong(store, tmp_path)[0] == []
    store.close()


# --- the catalog, and what says that a folder is a store ---


def test_a_catalog_with_a_flipped_bit_never_leads_to_wrong_bytes(
    stores: Stores, tmp_path: Path
) -> None:
    dice = random.Random(5)
    size = (stores.template / "catalog.sqlite").stat().st_size
    problems: list[str] = []
    noticed = 0
    for number in range(60):
        root = stores.copy()
        at, bit = dice.randrange(size), dice.randrange(8)
        flip(at, bit)(root / "catalog.sqlite")
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            store = open_store(root)
        except BegatError:
            noticed += 1
            continue
        try:
            wrong, refused = read_wrong(store, folder)
            problems += [f"byte {at} bit {bit}: {each}" for each in wrong]
            try:
                noticed += bool(refused or store.verify().damaged)
            except Corrupt:
                noticed += 1
        finally:
            store.close()
        shutil.rmtree(folder)
    assert problems == []
    assert noticed > 5


@pytest.fixture(scope="module")
def catalog_file() -> Iterator[Path]:
    """A catalog in one file, with text in every column that may have some."""
    with in_memory() as folder, open_store(folder / "store") as store:
        fill_catalog(store)
        store.catalog.backup(folder / "catalog.sqlite")
        yield folder / "catalog.sqlite"


def test_the_catalog_to_be_damaged_has_rows_in_every_table(catalog_file: Path) -> None:
    assert [name for name, rows in dump(catalog_file).items() if not rows] == []
    assert catalog_file.stat().st_size > 150_000


def test_a_bit_flipped_anywhere_in_the_catalog_is_named_or_refused_or_changes_no_row(
    catalog_file: Path,
) -> None:
    """At a thousand places all over the file, and in its header; the rest is proved to be harmless."""
    dice = random.Random(8)
    whole, before = catalog_file.read_bytes(), dump(catalog_file)
    copy = catalog_file.with_name("copy.sqlite")
    step = len(whole) // 1_000
    spots = [
        *range(100),
        *(at + dice.randrange(step) for at in range(100, len(whole) - step, step)),
    ]
    problems: list[str] = []
    counts = {"named": 0, "refused": 0, "harmless": 0}
    for at in spots:
        copy.write_bytes(whole)
        bit = dice.randrange(8)
        flip(at, bit)(copy)
        outcome = "named"
        try:
            with Catalog.open(copy) as catalog:
                if not catalog.check():
                    outcome = "harmless"
        except BegatError:
            outcome = "refused"
        counts[outcome] += 1
        if outcome == "harmless" and dump(copy) != before:
            problems.append(f"byte {at} bit {bit} changed a row and was not named")
    assert problems == []
    assert len(spots) > 1_000  # about two in each kilobyte
    assert min(counts.values()) > 20, counts


def test_a_flipped_bit_in_any_text_of_the_catalog_is_named(catalog_file: Path) -> None:
    """Each of these texts lies in the file at least twice: in its row, and in an index."""
    whole = catalog_file.read_bytes()
    copy = catalog_file.with_name("copy.sqlite")
    for text in TEXTS:
        at = whole.find(text.encode())
        count = 0
        while at != -1:
            copy.write_bytes(whole)
            flip(at + len(text) // 2, 1)(copy)
            with Catalog.open(copy) as catalog:
                assert any("damaged" in problem for problem in catalog.check()), (text, at)
            count += 1
            at = whole.find(text.encode(), at + 1)
        assert count > 1, text


def test_a_log_of_the_catalog_with_a_flipped_bit_never_leads_to_wrong_bytes(
    tmp_path: Path,
) -> None:
    """SQLite leaves out what follows a damaged frame: versions are then not found, and none is another."""
    dice = random.Random(6)
    problems: list[str] = []
    refusals: list[int] = []
    with in_memory() as folder:
        template = make_unfolded(folder)
        size = (template / "catalog.sqlite-wal").stat().st_size
        assert size > 32 * 4096
        # Its header and the header of its first frame, then anywhere.
        spots = [0, 9, 17, 25, 33, 41, 49, *(dice.randrange(size) for _ in range(40)), size - 1]
        for at in spots:
            root = folder / "copy"
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(template, root)
            flip(at, dice.randrange(8))(root / "catalog.sqlite-wal")
            reads = folder / "reads"
            reads.mkdir()
            try:
                store = open_store(root)
            except BegatError:
                refusals.append(at)
            else:
                wrong, refused = read_wrong(store, reads, drafts=False)
                problems += [f"byte {at}: {each}" for each in wrong]
                # What is still named is whole: names were committed after their bytes.
                problems += [f"byte {at}: {each.problem}" for each in store.verify().damaged]
                refusals += [at] if refused else []
                store.close()
            shutil.rmtree(reads)
    assert problems == []
    # What was committed last is gone after any of them, and it is asked for.
    assert refusals == spots


def test_a_catalog_that_lost_a_page_is_refused_or_named(stores: Stores, tmp_path: Path) -> None:
    size = (stores.template / "catalog.sqlite").stat().st_size
    unnoticed: list[int] = []
    for page in range(0, size, 4096):
        root = stores.copy()
        with (root / "catalog.sqlite").open("r+b") as file:
            file.seek(page)
            if not any(file.read(4096)):
                continue
            file.seek(page)
            file.write(bytes(4096))
        try:
            store = open_store(root)
        except BegatError:
            continue
        try:
            if store.verify().is_sound:
                unnoticed.append(page)
        except Corrupt:
            pass
        finally:
            store.close()
    assert unnoticed == []


def test_a_format_file_with_a_flipped_bit_is_refused_or_means_the_same(
    stores: Stores, tmp_path: Path
) -> None:
    root = stores.copy()
    whole = (root / "format.json").read_bytes()
    opened = 0
    for at in range(len(whole)):
        flip(at, at % 8)(root / "format.json")
        try:
            store = open_store(root)
        except BegatError:
            pass
        else:
            opened += 1
            try:
                data = store.get_artifact("medium").read_bytes("data.bin")
            except BegatError:
                pass
            else:
                assert data == CONTENT["medium"]["data.bin"]
            store.close()
        (root / "format.json").write_bytes(whole)
    assert opened < len(whole)  # what stands in the note for people is no fact
    store = open_store(root)
    assert store.get_artifact("medium").read_bytes("data.bin") == CONTENT["medium"]["data.bin"]
    assert store.verify().is_sound
    store.close()


# --- the journal of what callbacks have taken in ---


def test_a_journal_with_a_flipped_bit_never_becomes_another_version(tmp_path: Path) -> None:
    """Each bit that was flipped is named by `sync`; what it stores is what was saved, under the name it was given."""
    content = b"weights" * 100
    (tmp_path / "a.ckpt").write_bytes(content)
    source = LocalFile(str(tmp_path / "a.ckpt"), len(content), False)
    problems: list[str] = []
    stored = number = 0
    size_bytes = 1
    with in_memory() as folder, open_store(folder / "store") as store:
        while number < size_bytes:
            name, token = f"net-{number:04}", f"token-{number:04}"
            journal = Journal.begin(store.path / STAGING)
            journal.stage(
                name, [Planned("a.ckpt", source)], token=token, type="model",
                metadata={"step": 3, "score": 0.5}, aliases=["best"], run=None, may_link=False,
            )  # fmt: skip
            journal.add(
                Pointed(id=f"p-{number}", at=time.time_ns() // 1000, token=token, alias="good")
            )
            lines = journal.folder / JOURNAL
            size_bytes = lines.stat().st_size
            journal._lock.release()  # its process has died
            flip(number, number % 8)(lines)
            report = sync(store)
            where = f"byte {number} of {size_bytes}"
            if not (report.lost or report.pending):
                problems.append(f"{where} is not named")
            for version in store.versions(name) if report.shipped else ():
                stored += 1
                if (
                    version.read_bytes("a.ckpt") != content
                    or version.file_count != 1
                    or version.metadata != {"step": 3, "score": 0.5}
                    or version.type != "model"
                    or not {"best", "latest"} <= set(version.aliases) <= {"best", "good", "latest"}
                ):
                    problems.append(f"{where}: {version!r} is not what was saved")
            if not set(report.shipped) <= {f"{name}:v1"}:
                problems.append(f"{where}: {report.shipped} was stored")
            number += 1
    assert problems == []
    assert 0 < stored < number  # a flip in the other line leaves the version


# --- the cache ---


def tamper(path: Path) -> None:
    """Change a byte and put size, mode and modification time back as they were."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(b"!")
    path.chmod(before.st_mode & 0o777)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "damage",
    [tamper, truncate_to(0.5), extend, os.unlink],
    ids=["byte", "half", "longer", "deleted"],
)
def test_a_damaged_file_of_the_cache_is_mended_before_it_is_handed_out(
    damage: Damage, stores: Stores
) -> None:
    store = open_store(stores.copy())
    version = store.get_artifact("small")
    file = version.path / "3.bin"
    file.parent.chmod(0o755)
    damage(file)
    assert read_open(version, "3.bin") == CONTENT["small"]["3.bin"]
    assert bytes_in(store.get_artifact("small").path) == CONTENT["small"]
    store.close()


def test_a_seal_with_a_flipped_bit_does_not_spoil_the_cache(stores: Stores) -> None:
    store = open_store(stores.copy())
    version = store.get_artifact("small")
    seal = version.path.parent / "seal"
    for at in range(0, seal.stat().st_size, 7):
        flip(at, at % 8)(seal)
        assert bytes_in(version.path) == CONTENT["small"]
    store.close()
