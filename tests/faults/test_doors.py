"""What hostile paths, names and links meet at the doors beside `Artifact.add`: disk, command line, catalog, cache."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from begat import files, manifest
from begat.artifact import Artifact
from begat.errors import (
    AliasReserved,
    BadInput,
    BadName,
    BadPath,
    BadReference,
    BegatError,
    Corrupt,
    DestinationDiffers,
    ManifestUnreadable,
)
from begat.identity import digest_of
from begat.model import EmptyDirectory, StoredFile, Symlink
from begat.opening import open_store
from begat.store import Store
from command_line import begat, done
from faults.checking import Tree, files_below, tree_of
from faults.hostile import (
    HARMLESS,
    LABELS,
    LINK_TARGETS,
    NAMES,
    REFUSED,
    REFUSED_ON_DISK,
    REFUSED_SURROGATES,
    REFUSED_TEXT,
)

# That a name cannot be restored on Windows or macOS is told, and not what this is about.
pytestmark = pytest.mark.filterwarnings("ignore::begat.errors.BegatWarning")


@pytest.fixture
def store() -> Generator[Store]:
    """The store that the command line finds too, with one version in it."""
    store = open_store(os.environ["BEGAT_STORE"])
    store.log_artifact("known", b"there before")
    yield store
    store.close()


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A folder that nothing may ever change."""
    folder = tmp_path / "canary"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "secret", folder / "inner" / "secret"):
        path.write_text(f"as it was in {path.parent.name}")
        path.chmod(0o600)
    return folder


def state_of(folder: Path) -> list[tuple[object, ...]]:
    """All that can be seen of a folder: bytes, kinds, permissions, times."""
    found: list[tuple[object, ...]] = []
    for path in sorted([folder, *folder.rglob("*")]):
        stat = path.lstat()
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found.append((path, stat.st_mode, stat.st_ino, stat.st_nlink, stat.st_mtime_ns, data))
    return found


def contents(store: Store) -> tuple[object, ...]:
    """Everything a store holds, to see that a refusal changed none of it."""
    everything = sorted(
        (str(path), path.stat().st_size)
        for folder in ("objects", "tmp", "damaged", "staging")
        for path in files_below(store.path / folder)
    )
    versions = [(each.name, len(store.versions(each.name))) for each in store.artifacts()]
    return everything, versions, len(store.runs())


def wrong_with_refusal(text: str, act: Callable[[], object], *kinds: type[BegatError]) -> list[str]:
    """What is wrong with how something was refused: not at all, as something else, or in a dangerous message."""
    shown = ascii(text)[:60]
    try:
        act()
    except kinds as error:
        message = str(error)
        problems = [] if message.isprintable() else [f"{shown}: its message spoils a terminal"]
        is_short = len(message) < 2000 + min(len(text), 5000)
        return problems + ([] if is_short else [f"{shown}: {len(message)} characters"])
    except Exception as error:  # noqa: BLE001 - whatever else it is, it is a finding
        return [f"{shown}: {type(error).__name__}: {ascii(str(error))[:200]}"]
    return [f"{shown} was taken"]


def wrong_with_command(*arguments: object) -> list[str]:
    """What is wrong with how the command line refused something."""
    told = begat(*arguments)
    shown = f"{ascii(arguments)[:100]}: exit {told.code}: {ascii(told.err)[:200]}"
    problems: list[str] = []
    if told.code not in (1, 2) or told.out:
        problems.append(f"not refused: {shown}")
    if "Traceback" in told.err or "bug" in told.err:
        problems.append(f"a crash: {shown}")
    if not told.err.replace("\n", "").isprintable() or len(told.err) > 3000:
        problems.append(f"it spoils a terminal: {shown}")
    return problems


def test_the_tables_are_long_enough() -> None:
    assert len(set(REFUSED)) >= 150
    assert len(set(HARMLESS)) >= 80
    assert len(set(REFUSED_ON_DISK)) >= 30
    assert not set(REFUSED) & set(HARMLESS)


# --- paths, on the way in ---


def test_a_hostile_logical_path_is_refused_for_files_folders_and_remote_assets(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"x")
    problems: list[str] = []
    for path in filter(None, REFUSED):  # an empty one is refused or is the file's own name
        draft = Artifact("draft")
        ways: list[Callable[[], object]] = [
            lambda d=draft, p=path: d.add(b"x", p),
            lambda d=draft, p=path: d.add_remote("https://host/file", p, sync=False),
            lambda d=draft, p=path: d.add(tmp_path / "folder" / "file", p),
        ]
        if not path.endswith("/"):  # a folder may be written with a slash behind
            ways.append(lambda d=draft, p=path: d.add(tmp_path / "folder", p))
        for way in ways:
            problems += wrong_with_refusal(path, way, BadPath)
        if draft.entries:
            problems.append(f"{ascii(path)[:60]} is in the draft")
    assert problems == []


def test_a_hostile_path_that_came_into_a_draft_is_refused_before_a_byte_is_stored(
    store: Store,
) -> None:
    before = contents(store)
    [known] = store.get_artifact("known").entries
    assert isinstance(known, StoredFile)
    problems: list[str] = []
    for path in REFUSED_TEXT:
        draft = Artifact("hostile").add(b"new bytes " * 1000, "a-new-file")
        draft.keep([StoredFile(path, known.size_bytes, known.digest)])
        problems += wrong_with_refusal(path, lambda d=draft: store.log_artifact(d), BadInput)
    assert problems == []
    assert contents(store) == before


def _hostile_folder(root: Path, kind: str, name: str) -> Path:
    """A folder with a good file and, deeper, one thing with a hostile name."""
    inner = root / "good" / "inner"
    inner.mkdir(parents=True)
    (root / "first").write_bytes(b"never stored")
    place = os.path.join(inner, name)
    if kind == "link":
        os.symlink("../x", place)
    elif kind == "file":
        Path(place).write_bytes(b"x")
    else:
        os.mkdir(place)
    if kind == "folder with a file":
        Path(place, "file").write_bytes(b"x")
    return root


@pytest.mark.parametrize("kind", ["file", "folder", "folder with a file", "link"])
def test_whatever_has_a_hostile_name_on_disk_is_refused_before_a_byte_is_stored(
    kind: str, store: Store, tmp_path: Path
) -> None:
    before = contents(store)
    problems: list[str] = []
    for number, name in enumerate(REFUSED_ON_DISK):
        folder = _hostile_folder(tmp_path / f"{kind}-{number}", kind, name)
        problems += wrong_with_refusal(name, lambda f=folder: store.log_artifact("new", f), BadPath)
    assert problems == []
    assert contents(store) == before


def test_the_command_line_refuses_hostile_files_in_words(store: Store, tmp_path: Path) -> None:
    before = contents(store)
    problems: list[str] = []
    for number, name in enumerate(REFUSED_ON_DISK):
        folder = _hostile_folder(tmp_path / str(number), "file", name)
        problems += wrong_with_command("log", "new", folder)
        problems += wrong_with_command("log", "new", os.path.join(folder, "good", "inner", name))
    assert problems == []
    assert contents(store) == before


@pytest.mark.parametrize("target", LINK_TARGETS, ids=lambda text: ascii(text)[:30])
def test_a_link_out_of_its_folder_is_refused_before_a_byte_is_stored(
    target: str, store: Store, tmp_path: Path
) -> None:
    before = contents(store)
    (tmp_path / "data" / "d").mkdir(parents=True)
    (tmp_path / "data" / "file").write_bytes(b"never stored")
    draft = Artifact("new").add(b"never stored", "file")
    draft.keep([Symlink("d/link", target)])
    with pytest.raises(BadPath):
        store.log_artifact(draft)
    if len(target) < 4000:  # longer ones the system does not take
        os.symlink(target, tmp_path / "data" / "d" / "link")
        with pytest.raises(BadPath) as caught:
            store.log_artifact("new", tmp_path / "data")
        assert str(caught.value).isprintable()
    assert contents(store) == before


# --- odd ones, byte for byte ---


def test_odd_names_of_files_folders_and_links_come_back_byte_for_byte(
    store: Store, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    for number, name in enumerate(HARMLESS):
        folder = data / str(number)
        (folder / "in" / name).mkdir(parents=True)
        (folder / "in" / name / name).write_bytes(f"{number}".encode())
        (folder / name).write_bytes(f"{number} {name}".encode())
        (folder / "links").mkdir()
        (folder / "links" / name).symlink_to(f"../{name}")
        (folder / "empty" / name).mkdir(parents=True)
    version = store.log_artifact("odd", data)
    assert tree_of(version.download(tmp_path / "out")) == tree_of(data)
    assert tree_of(version.path) == tree_of(data)
    for number, name in enumerate(HARMLESS):
        assert version.read_bytes(f"{number}/{name}") == f"{number} {name}".encode()
    assert version.verify() == ()
    assert store.log_artifact("odd", tmp_path / "out").is_new is False


def test_odd_names_at_the_root_come_back_byte_for_byte(store: Store, tmp_path: Path) -> None:
    draft = Artifact("odd")
    for number, name in enumerate(HARMLESS):
        draft.add(str(number).encode(), name)
    out = store.log_artifact(draft).download(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {
        name: str(number).encode() for number, name in enumerate(HARMLESS)
    }


def test_the_command_line_gets_a_file_by_its_odd_name(store: Store, tmp_path: Path) -> None:
    draft = Artifact("odd")
    for number, name in enumerate(HARMLESS):
        draft.add(str(number).encode(), f"in/{name}")
    store.log_artifact(draft)
    for number, name in enumerate(HARMLESS):
        folder = tmp_path / str(number)
        folder.mkdir()
        done("get", f"begat://odd:v1/in/{name}", folder)
        assert tree_of(folder) == {name: ("file", str(number).encode(), False)}


def test_a_hostile_path_is_refused_where_a_file_is_asked_for(store: Store) -> None:
    version = store.get_artifact("known")
    problems: list[str] = []
    for path in filter(None, REFUSED):
        for act in (
            lambda p=path: store.get_artifact(f"begat://known:v1/{p}"),
            lambda p=path: version.read_bytes(p),
            lambda p=path: version.open(p),
        ):
            problems += wrong_with_refusal(path, act, BadInput)
    assert problems == []


# --- names and labels ---


def test_a_hostile_name_is_refused_wherever_one_is_given(store: Store) -> None:
    before = contents(store)
    problems: list[str] = []
    for name in NAMES:
        for act in (
            lambda n=name: Artifact(n),
            lambda n=name: store.log_artifact(n, b"never stored"),
            lambda n=name: store.versions(n),
            lambda n=name: store.tag_artifact(n, "tag"),
        ):
            problems += wrong_with_refusal(name, act, BadName)
        problems += wrong_with_refusal(
            name, lambda n=name: store.get_artifact(f"{n}:v1"), BadReference
        )
    assert problems == []
    assert contents(store) == before


def test_a_hostile_label_is_refused_wherever_one_is_given(store: Store) -> None:
    before = contents(store)
    problems: list[str] = []
    for label in LABELS:
        for act in (
            lambda each=label: store.log_artifact("known", b"never stored", aliases=[each]),
            lambda each=label: store.alias("known:v1", each),
            lambda each=label: store.get_artifact("known:v1").add_aliases(each),
            lambda each=label: store.log_artifact("known", b"never stored", tags=[each]),
            lambda each=label: store.get_artifact("known:v1").add_tags(each),
            lambda each=label: store.tag_artifact("known", each),
            lambda each=label: store.start_run("run", tags=[each]),
        ):
            problems += wrong_with_refusal(label, act, BadName, AliasReserved)
    assert problems == []
    assert contents(store) == before
    assert store.get_artifact("known").aliases == ("latest",)


def test_the_command_line_refuses_hostile_names_in_words(store: Store, tmp_path: Path) -> None:
    before = contents(store)
    (tmp_path / "file").write_bytes(b"x")
    problems: list[str] = []
    # A NUL cannot be an argument of a program, and what begins with a dash is an option.
    for name in [name for name in NAMES if name and "\x00" not in name and name[0] != "-"]:
        problems += wrong_with_command("log", name, tmp_path / "file")
        problems += wrong_with_command("get", f"{name}:v1")
    for label in [each for each in LABELS if each and "\x00" not in each and each[0] != "-"]:
        problems += wrong_with_command("log", "known", tmp_path / "file", "--alias", label)
        problems += wrong_with_command("alias", "known:v1", label)
    assert problems == []
    assert contents(store) == before
    assert os.listdir() == []


# --- a store that somebody else wrote ---


def test_a_page_with_text_that_is_not_unicode_is_unreadable() -> None:
    for path in REFUSED_SURROGATES:
        raw = path.encode("utf-8", "surrogatepass")
        page = b"\x91\x92\x02" + bytes([0xA0 | len(raw)]) + raw  # a list of one empty directory
        ref = manifest.PageRef(digest_of(page), "x", 1)
        root = manifest.encode_root(manifest.Manifest((EmptyDirectory("x"),)), [ref])
        with pytest.raises(ManifestUnreadable):
            manifest.assemble(manifest.decode_root(root), [page])


def test_a_hostile_name_in_the_catalog_leads_no_download_out_of_its_folder(
    store: Store, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work" / "here"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    uid = store.get_artifact("known").uid
    before = state_of(canary)
    for name in ("..", "../../evil", "/evil", str(canary), "a/../../b", "canary", "../../canary"):
        with sqlite3.connect(store.path / "catalog.sqlite") as catalog:
            catalog.execute("UPDATE artifacts SET name = ?", (name,))
        version = store.version_of(store.catalog.versions.get(uid))
        assert version.name == name
        out = version.download()
        assert out.resolve().parent == work
        assert tree_of(out) == {"known": ("file", b"there before", False)}
        shutil.rmtree(out)
    assert os.listdir(work) == []
    assert os.listdir(tmp_path / "work") == ["here"]
    assert state_of(canary) == before


@pytest.mark.parametrize(
    "name", ["../../canary/secret", "/etc/hostname", "..", "", "ab/../../catalog.sqlite", "\x00"]
)
def test_a_hostile_name_of_an_object_is_never_opened(name: str, store: Store, canary: Path) -> None:
    before = state_of(canary)
    with sqlite3.connect(store.path / "catalog.sqlite") as catalog:
        catalog.execute("PRAGMA foreign_keys = OFF")
        catalog.execute("UPDATE objects SET name = ?", (name,))
        for table in ("blobs", "holds"):
            catalog.execute(f"UPDATE {table} SET object = ?", (name,))
    with pytest.raises(Corrupt):
        store.get_artifact("known").read_bytes("known")
    assert "known:v1" in {each.place.partition("/")[0] for each in store.verify().damaged}
    assert state_of(canary) == before
    # gc takes no such name for a place to remove either, and the right bytes mend it.
    try:
        store.gc(dry_run=False, wait=5)
    except BegatError:
        pass
    assert state_of(canary) == before
    assert (store.path / "catalog.sqlite").is_file()
    store.log_artifact("known", b"there before")
    assert store.get_artifact("known").read_bytes("known") == b"there before"


# --- links where a version is to be written ---


@pytest.fixture
def tree(store: Store) -> Tree:
    draft = Artifact("tree")
    expected: Tree = {}
    for path in ("a", "d/b", "d/e/c"):
        draft.add(path.encode(), path)
        expected[path] = ("file", path.encode(), False)
    draft.keep([Symlink("d/link", "../a"), EmptyDirectory("d/empty")])
    store.log_artifact(draft)
    return {**expected, "d/link": ("link", "../a"), "d/empty": ("folder",)}


@pytest.mark.parametrize("overwrite", ["fail", "preserve", "overwrite"])
@pytest.mark.parametrize("leads_to", ["the canary", "nothing", "itself", "a file"])
@pytest.mark.parametrize("folder", ["d", "d/e", "d/empty"])
def test_a_link_in_place_of_a_folder_is_left_alone_wherever_it_leads(
    folder: str, leads_to: str, overwrite: str, store: Store, tree: Tree, canary: Path
) -> None:
    out = canary.parent / "out"
    (out / folder).parent.mkdir(parents=True)
    targets = {
        "the canary": canary,
        "nothing": canary / "nothing",
        "itself": out / folder,
        "a file": canary / "secret",
    }
    (out / folder).symlink_to(targets[leads_to])
    before = state_of(canary)
    version = store.get_artifact("tree")
    if (folder, overwrite) == ("d/empty", "preserve"):
        version.download(out, overwrite="preserve")  # it differs, and is preserved
        assert {**tree_of(out), folder: ("folder",)} == tree
    else:
        with pytest.raises(DestinationDiffers):
            version.download(out, overwrite=overwrite)  # pyright: ignore[reportArgumentType]
    assert os.readlink(out / folder) == str(targets[leads_to])
    assert state_of(canary) == before


def test_a_dangling_link_in_place_of_a_file_is_never_written_through(
    store: Store, tree: Tree, tmp_path: Path
) -> None:
    version = store.get_artifact("tree")
    (tmp_path / "out" / "d").mkdir(parents=True)
    (tmp_path / "out" / "d" / "b").symlink_to(tmp_path / "nothing")
    with pytest.raises(DestinationDiffers):
        version.download(tmp_path / "out")
    version.download(tmp_path / "out", overwrite="preserve")
    assert os.readlink(tmp_path / "out" / "d" / "b") == str(tmp_path / "nothing")
    version.download(tmp_path / "out", overwrite="overwrite")
    assert tree_of(tmp_path / "out") == tree
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("folder", ["d", "d/e"])
def test_a_folder_that_is_swapped_for_a_link_before_any_operation_leads_nothing_out(
    folder: str, store: Store, tree: Tree, canary: Path, tmp_path: Path
) -> None:
    version = store.get_artifact("tree")
    assert version.entries
    before = state_of(canary)
    number, operations = 0, 1
    while number < operations:
        place = tmp_path / f"out-{number}" / folder
        count = 0

        def swap(operation: str, path: str, at: int = number, place: Path = place) -> None:
            nonlocal count
            if count == at and place.is_dir():
                place.rename(place.with_name("was here"))
                place.symlink_to(canary)
            count += 1

        files.fault = swap
        try:
            version.download(tmp_path / f"out-{number}")
        except BegatError:
            pass  # to refuse is as good as to write into the folder, wherever it went
        finally:
            files.fault = None
        assert state_of(canary) == before, f"at operation {number}"
        operations = max(operations, count)
        number += 1
    assert operations > 15


def test_a_temporary_file_that_is_swapped_for_a_link_changes_nothing_elsewhere(
    store: Store, tree: Tree, canary: Path, tmp_path: Path
) -> None:
    before = state_of(canary)
    swapped = 0

    def swap(operation: str, path: str) -> None:
        nonlocal swapped
        for temporary in (tmp_path / "out").rglob(".begat-*.tmp"):
            if not temporary.is_symlink():
                temporary.unlink()
                temporary.symlink_to(canary / "secret")
                swapped += 1

    files.fault = swap
    try:
        store.get_artifact("tree").download(tmp_path / "out")
    finally:
        files.fault = None
    assert swapped > 2
    assert state_of(canary) == before


@pytest.mark.parametrize("place", ["", "d", "d/e", "a", "d/b"])
def test_a_link_planted_in_the_cache_is_mended_and_never_written_through(
    place: str, store: Store, tree: Tree, canary: Path
) -> None:
    path = store.get_artifact("tree").path
    assert tree_of(path) == tree
    target = path / place
    for folder in (path, path / "d", path / "d" / "e"):
        folder.chmod(0o700)
    is_folder = target.is_dir()
    shutil.rmtree(target) if is_folder else target.unlink()
    target.symlink_to(canary if is_folder else canary / "secret")
    before = state_of(canary)
    again = store.get_artifact("tree").path
    assert tree_of(again) == tree
    assert not again.is_symlink()
    assert state_of(canary) == before
