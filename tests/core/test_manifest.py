"""The manifest: its bytes never change, its rules hold when written and when read back."""

import gc
import json
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from begat import manifest
from begat.errors import BadInput, BadPath, FormatTooNew, LimitExceeded, ManifestUnreadable
from begat.manifest import Manifest
from begat.model import Digest, EmptyDirectory, Entry, RemoteAsset, StoredFile, Symlink

GOLDEN = Path(__file__).parent / "golden" / "manifest_v1.json"
# Written by an encoder of its own, from the MessagePack specification. The bytes of v1 are final: a version that was
# stored once must have the same digest for ever. Whoever changes that file has to change this line as well.
GOLDEN_DIGEST = "b3:7615ce87e8bfa7f0fc0d6ddf15c953c0870ca0d91f551bbcc9d09cc18a7fd768"
CASES = json.loads(GOLDEN.read_bytes())["cases"]


def digest_of(text: str) -> Digest:
    return Digest(f"b3:{blake3(text.encode('utf-8', 'surrogatepass')).hexdigest()}")


def stored(path: str, size_bytes: int = 1) -> StoredFile:
    return StoredFile(path, size_bytes, digest_of(path))


def entry_of(row: list) -> Entry:
    return [StoredFile, Symlink, EmptyDirectory, RemoteAsset][row[0]](*row[1:])


def written(*entries: Entry) -> tuple[bytes, list[bytes]]:
    made = Manifest.of(entries)
    pages = list(manifest.pages(made))
    return manifest.encode_root(made, [ref for ref, _ in pages]), [data for _, data in pages]


def read_back(root: bytes, pages: list[bytes]) -> Manifest:
    return manifest.assemble(manifest.decode_root(root), pages)


def page_of(*rows: object) -> bytes:
    """A page as a hostile or newer writer would write it; nothing is checked."""
    return msgspec.msgpack.encode(list(rows))


def stored_around(rows: list) -> tuple[bytes, list[bytes]]:
    """A root and one page that agree with each other in every digest, whatever the rows say."""
    page = page_of(*rows)
    content = blake3(page[1 if len(rows) < 16 else 3 :], derive_key_context="begat manifest v1")
    size = sum(row[2] for row in rows if row[0] == 0)
    ref = [f"b3:{blake3(page).hexdigest()}", rows[0][1], len(rows)]
    root = [1, f"b3:{content.hexdigest()}", len(rows), size, [ref]]
    return msgspec.msgpack.encode(root), [page]


# --- canonical bytes ---


def test_the_golden_file_is_the_one_that_was_agreed_on():
    assert f"b3:{blake3(GOLDEN.read_bytes()).hexdigest()}" == GOLDEN_DIGEST


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_bytes_of_v1_are_the_golden_ones(case):
    made = Manifest.of(entry_of(row) for row in reversed(case["entries"]))

    assert made.digest == case["digest"]
    pages = list(manifest.pages(made))
    strip = [data[1 if ref.entry_count < 16 else 3 :] for ref, data in pages]
    assert b"".join(strip).hex() == case["bytes"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_golden_root_above_one_page_is_read_and_written_alike(case):
    rows = case["entries"]
    page = [msgspec.msgpack.encode(rows)] if rows else []
    refs = [
        manifest.PageRef(Digest(f"b3:{blake3(p).hexdigest()}"), rows[0][1], len(rows)) for p in page
    ]

    found = read_back(bytes.fromhex(case["root"]), page)

    assert found == Manifest.of(entry_of(row) for row in rows)
    assert found.digest == case["digest"]
    assert manifest.encode_root(found, refs).hex() == case["root"]


def test_the_digest_does_not_depend_on_the_order_or_the_metadata_of_entries():
    first = Manifest.of([stored("a"), stored("b")])
    second = Manifest.of([stored("b"), StoredFile("a", 1, digest_of("a"), metadata={"x": 1})])

    assert first.digest == second.digest
    assert first == second


@pytest.mark.parametrize(
    "other",
    [
        stored("b"),
        StoredFile("a", 2, digest_of("a")),
        StoredFile("a", 1, digest_of("other")),
        StoredFile("a", 1, digest_of("a"), is_executable=True),
        Symlink("a", "b"),
        EmptyDirectory("a"),
        RemoteAsset("a", "https://example.org/a", 1),
    ],
    ids=lambda entry: f"{entry.kind}-{entry.path}-{entry.size_bytes}",
)
def test_every_field_of_an_entry_changes_the_digest(other):
    assert Manifest.of([other]).digest != Manifest.of([stored("a")]).digest


def test_entries_are_sorted_by_utf8_bytes_and_found_by_path():
    names = ["a/b", "a-b", "é", "Z", "a.b", "𝒜", "ｆ"]
    made = Manifest.of(map(stored, names))

    assert [e.path for e in made.entries] == sorted(names, key=lambda name: name.encode())
    assert made.find("a-b") == stored("a-b")
    assert made.find("a") is None


def test_sizes_and_files_are_counted_without_links_and_folders():
    made = Manifest.of(
        [
            stored("a", 5),
            Symlink("b", "a"),
            EmptyDirectory("c"),
            RemoteAsset("d", "u:x", 7),
            RemoteAsset("e", "u:y"),
        ]
    )

    assert (made.size_bytes, made.file_count) == (12, 3)


# --- rules of the set, when it is written ---


@pytest.mark.parametrize(
    "entries",
    [
        [stored("a"), stored("a")],
        [stored("a"), EmptyDirectory("a")],
        [stored("a"), stored("a/b")],
        [stored("a"), stored("a-b"), stored("a/b/c")],
        [Symlink("a", "b"), stored("a/b")],
        [EmptyDirectory("a"), EmptyDirectory("a/b")],
        [RemoteAsset("a", "u:x"), stored("a/b")],
        [stored("/a")],
        [stored("a/../b")],
        [stored("a\nb")],
        [stored("a//b")],
        [stored("")],
        [stored("\ud800")],
        [Symlink("a", "/etc/passwd")],
        [Symlink("a", "../b")],
        [Symlink("a/b", "../../c")],
        [Symlink("x/d", ".."), Symlink("x/l", "d/../secret")],
        [Symlink("a", "")],
    ],
    ids=repr,
)
def test_entries_that_cannot_stand_together_are_refused(entries):
    with pytest.raises(BadPath):
        Manifest.of(entries)


@pytest.mark.parametrize(
    "links",
    [
        {"a": "a"},
        {"a": "b", "b": "a"},
        {"a": "b/x", "b": "c/y", "c": "a"},
        {"x/d": "..", "x/l": "d/secret"},
        {"a/b/up": "../..", "c": "a/b/up/nowhere"},
        {f"l{i:05}": f"l{i + 1:05}/x" for i in range(20_000)},
    ],
    ids=lambda links: f"{len(links)} links",
)
def test_links_that_dangle_or_loop_inside_are_kept_as_they_are(links):
    made = Manifest.of(Symlink(path, target) for path, target in links.items())

    assert {e.path: e.target for e in made.entries if isinstance(e, Symlink)} == links


SEGMENTS = st.sampled_from(["a", "b", "..", ".", "c"])
LINKS = st.dictionaries(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join),
    st.lists(SEGMENTS, min_size=1, max_size=6).map("/".join),
    max_size=6,
)


@given(LINKS)
def test_no_set_of_links_that_is_accepted_leads_out(links):
    try:
        Manifest.of(Symlink(path, target) for path, target in links.items())
    except BadPath:
        return
    for path in links:
        assert stays_inside(path, links)


def stays_inside(path: str, links: dict[str, str]) -> bool:
    """Follow a link as an operating system does, name by name, for longer than any of them would."""
    at: list[str] = []
    ahead = path.split("/")[::-1]
    for _ in range(2000):
        if not ahead:
            return True
        name = ahead.pop()
        if name == "..":
            if not at:
                return False
            at.pop()
        elif name != ".":
            at.append(name)
            if target := links.get("/".join(at)):
                at.pop()
                ahead += target.split("/")[::-1]
    return True


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (StoredFile("a", -1, digest_of("")), BadInput),
        (StoredFile("a", 2**63, digest_of("")), BadInput),
        (StoredFile("a", 1, Digest("b3:" + "A" * 64)), BadInput),
        (StoredFile("a", 1, Digest("ab" * 32)), BadInput),
        (StoredFile("a", True, digest_of("")), TypeError),
        (StoredFile("a", 1, digest_of(""), 1), TypeError),  # type: ignore[arg-type]
        (RemoteAsset("a", ""), BadInput),
        (RemoteAsset("a", "http://x/\nb"), BadInput),
        (RemoteAsset("a", "u:" + "x" * 20_000), BadInput),
        (RemoteAsset("a", "u:x", -1), BadInput),
        (RemoteAsset("a", "u:x", 1.0), TypeError),  # type: ignore[arg-type]
        (RemoteAsset("a", "u:x", 1, ""), BadInput),
        (RemoteAsset("a", "u:x", 1, "etag:\ud800"), BadInput),
    ],
    ids=repr,
)
def test_values_that_have_no_canonical_bytes_are_refused(entry, error):
    with pytest.raises(error):
        Manifest.of([entry])


def test_a_refused_uri_is_not_repeated_in_the_message():
    with pytest.raises(BadInput) as caught:
        Manifest.of([RemoteAsset("a", "https://user:hunter2@host/\n")])

    assert "hunter2" not in str(caught.value)


def test_more_bytes_than_the_catalog_can_count_are_refused():
    with pytest.raises(LimitExceeded):
        Manifest.of([stored("a", 2**63 - 1), stored("b", 1)])


# --- pages ---


def test_a_large_manifest_survives_its_pages():
    entries = [stored(f"d{i % 37}/f{i:05}", i) for i in range(40_000)]
    root, pages = written(*entries)

    assert read_back(root, pages) == Manifest.of(entries)
    assert len(pages) > 5


def test_pages_are_cut_by_their_paths_so_that_a_change_touches_one_page():
    entries = [stored(f"f{i:05}", i) for i in range(40_000)]
    before = written(*entries)[1]
    after = written(*entries[:20_000], stored("f20000+"), *entries[20_000:])[1]

    assert len(set(after) - set(before)) == 1


def test_a_page_has_at_most_16384_entries():
    # No path among these starts a page by its digest: the limit alone cuts.
    names = [f"n{i:06}" for i in range(60_000)]
    plain = [n for n in names if int.from_bytes(blake3(n.encode()).digest(2), "little") & 0xFFF]
    refs = [ref for ref, _ in manifest.pages(Manifest.of(map(stored, plain)))]

    assert [ref.entry_count for ref in refs[:-1]] == [16_384] * (len(refs) - 1)
    assert sum(ref.entry_count for ref in refs) == len(plain)


def test_a_page_that_would_be_too_large_is_halved(monkeypatch):
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", 2000)
    entries = [RemoteAsset(f"r{i}", "u:" + "x" * 500) for i in range(20)]
    root, pages = written(*entries)

    assert max(map(len, pages)) <= 2000
    assert read_back(root, pages) == Manifest.of(entries)


def test_no_entries_have_a_root_and_no_pages():
    root, pages = written()

    assert pages == []
    assert read_back(root, []).entries == ()


# --- reading back ---

GOOD = [[0, "a", 1, digest_of("a"), False], [1, "b", "a"], [2, "c"], [3, "d", "u:x", 5, None]]


def test_rows_that_keep_the_rules_are_read():
    assert len(read_back(*stored_around(GOOD[:3])).entries) == 3


@pytest.mark.parametrize(
    "page",
    [
        page_of([4, "a"]),
        page_of([200, "a", 1]),
        page_of([2, "a", "more"]),
        page_of([0, "a", 1, digest_of("a"), False, "more"]),
        page_of([0, "a", 1, digest_of("a")]),
        page_of([2, "a"], [1, "b", "a", None]),
    ],
    ids=repr,
)
def test_a_kind_or_length_that_v1_does_not_have_is_a_newer_format(page):
    with pytest.raises(FormatTooNew):
        manifest.decode_page(page)


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\x90",
        b"\xc0",
        b"\x01",
        b"\xdc",
        b"\xdd\xff\xff\xff\xff",
        b"\xdc\xff\xff",
        b"\x91" * 100_000,
        page_of({"kind": 2}),
        page_of([2, b"a"]),
        page_of([True, "a"]),
        page_of(["2", "a"]),
        page_of([0, "a", 1.0, digest_of("a"), False]),
        page_of([0, "a", float("nan"), digest_of("a"), False]),
        page_of([0, "a", -1, digest_of("a"), False]),
        page_of([0, "a", 2**63, digest_of("a"), False]),
        page_of([0, "a", 1, digest_of("a"), 0]),
        page_of([0, "a", 1, "b3:" + "A" * 64, False]),
        page_of([0, "a", 1, "sha256:" + "a" * 60, False]),
        page_of([2, "a"]) + b"\xc0",
        page_of([2, "a"])[:-1],
        b"\xdc\x00\x01" + page_of([2, "a"])[1:],
        b"\xdd\x00\x00\x00\x01" + page_of([2, "a"])[1:],
        b"\x91\xdc\x00\x02\x02\xa1a",
        b"\x91\x92\xcc\x02\xa1a",
        b"\x91\x92\x02\xd9\x01a",
        b"\x91\x92\x02\xa1\xff",
        page_of([2, "b"], [2, "a"]),
        page_of([2, "a"], [2, "a"]),
        page_of([2, "../a"]),
        page_of([2, "/a"]),
        page_of([2, "a\nb"]),
        page_of([1, "a", "/etc"]),
        page_of([3, "a", "", None, None]),
        page_of([3, "a", "u:x", None, "p\n"]),
    ],
    ids=lambda page: page[:40].hex(),
)
def test_bytes_that_this_module_would_not_write_are_unreadable(page):
    with pytest.raises(ManifestUnreadable):
        manifest.decode_page(page)


@pytest.mark.parametrize(
    "rows",
    [
        [[2, "a"], [0, "a/b", 1, digest_of("x"), False]],
        [[1, "x/d", ".."], [1, "x/l", "d/../secret"]],
        [[0, "a", 2**63 - 1, digest_of("x"), False], [0, "b", 2**63 - 1, digest_of("x"), False]],
    ],
    ids=["under an entry", "out through links", "too many bytes"],
)
def test_the_rules_of_the_set_hold_on_read_back_too(rows):
    root, pages = stored_around(rows)
    if rows[0][0] == 0:  # the root cannot even say so many bytes; a smaller lie reaches the check
        root = root.replace(
            b"\xcf\xff\xff\xff\xff\xff\xff\xff\xfe", b"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff"
        )

    with pytest.raises(ManifestUnreadable):
        read_back(root, pages)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: [2, *root[1:]],
        lambda root: [*root, "more"],
        lambda root: root[:-1],
        lambda root: [*root[:4], [[*root[4][0], "more"]]],
    ],
    ids=["version", "longer", "shorter", "longer page"],
)
def test_a_root_that_v1_does_not_have_is_no_root_of_ours(change):
    root = msgspec.msgpack.decode(stored_around(GOOD)[0])

    with pytest.raises((FormatTooNew, ManifestUnreadable)) as caught:
        manifest.decode_root(msgspec.msgpack.encode(change(root)))
    if len(change(root)) != 5 or change(root)[0] != 1:
        assert caught.type is FormatTooNew


@pytest.mark.parametrize(
    "change",
    [
        lambda root: [*root[:2], 5, *root[3:]],
        lambda root: [*root[:3], 7, root[4]],
        lambda root: [root[0], digest_of("other"), *root[2:]],
        lambda root: [root[0], "b3:xyz", *root[2:]],
        lambda root: [*root[:4], []],
        lambda root: [*root[:4], [*root[4], *root[4]]],
        lambda root: [*root[:4], [[root[4][0][0], "b", 4]]],
        lambda root: [*root[:4], [[root[4][0][0], "a", 5]]],
        lambda root: [*root[:2], 0, root[3], [[root[4][0][0], "a", 0]]],
        lambda root: [*root[:4], "pages"],
        lambda root: [0, *root[1:]],
        lambda root: ["1", *root[1:]],
    ],
)
def test_a_root_that_disagrees_with_its_pages_or_itself_is_unreadable(change):
    root_bytes, pages = stored_around(GOOD)
    root = change(msgspec.msgpack.decode(root_bytes))

    with pytest.raises((ManifestUnreadable, FormatTooNew)) as caught:
        read_back(msgspec.msgpack.encode(root), pages)
    if root[0] == 1:
        assert caught.type is ManifestUnreadable


def test_a_page_too_many_too_few_or_in_the_wrong_place_is_noticed():
    root, pages = written(*(stored(f"f{i:05}") for i in range(20_000)))
    assert len(pages) > 2

    for wrong in (pages[:-1], [*pages, pages[0]], [pages[1], pages[0], *pages[2:]]):
        with pytest.raises(ManifestUnreadable):
            read_back(root, wrong)


def test_a_page_or_root_beyond_its_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", 10)
    monkeypatch.setattr(manifest, "MAX_ROOT_BYTES", 10)

    with pytest.raises(ManifestUnreadable, match="limit"):
        manifest.decode_page(page_of(*GOOD))
    with pytest.raises(ManifestUnreadable, match="limit"):
        manifest.decode_root(stored_around(GOOD)[0])


@given(st.binary(max_size=200))
@example(b"\x81\x80\x01")
@example(b"\x91\xc7\x00\x00")
@example(b"\x91\x81\x90\x01")
def test_no_bytes_make_a_reader_fail_in_another_way(data):
    for read in (manifest.decode_page, manifest.decode_root):
        try:
            read(data)
        except (ManifestUnreadable, FormatTooNew):
            continue


@given(st.integers(0, 400), st.integers(1, 255))
def test_no_flipped_bit_goes_unnoticed(position, mask):
    root, pages = stored_around(GOOD)
    data = bytearray(root + pages[0])
    at = position % len(data)
    data[at] ^= mask
    damaged_root, damaged_page = bytes(data[: len(root)]), bytes(data[len(root) :])

    # The digest of the page itself is checked by whoever fetches it; all else is checked here.
    refs = msgspec.msgpack.decode(root)[4]
    if root.index(refs[0][0].encode()) <= at < root.index(refs[0][0].encode()) + 67:
        return
    with pytest.raises((ManifestUnreadable, FormatTooNew)):
        read_back(damaged_root, [damaged_page])


PART = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="/\\:"),
    min_size=1,
    max_size=12,
).filter(lambda text: text not in (".", ".."))


@given(st.sets(st.lists(PART, min_size=1, max_size=4).map("/".join), max_size=30), st.randoms())
def test_what_is_written_is_what_is_read(names, random):
    kept = [n for n in names if not any(other.startswith(n + "/") for other in names)]
    makers = [
        stored,
        EmptyDirectory,
        lambda path: Symlink(path, "x/y"),
        lambda path: RemoteAsset(path, "s3://b/k", None, "etag:1"),
    ]
    entries = [random.choice(makers)(name) for name in kept]
    root, pages = written(*entries)

    assert read_back(root, pages) == Manifest.of(entries)


def test_reading_leaves_the_collector_of_cycles_as_it_was():
    assert gc.isenabled()
    read_back(*written(stored("a")))
    assert gc.isenabled()
    with pytest.raises(ManifestUnreadable):
        read_back(written(stored("a"))[0], [])
    assert gc.isenabled()
