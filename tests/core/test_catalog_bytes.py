"""Where blobs lie, and what garbage collection is told it may remove."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from begat.catalog import Catalog
from begat.identity import Digest
from begat.model import BlobLocation, RecipeRecord, StagedObject
from catalog_facts import digest, new_version, object_name, staged


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


def moved(blob: BlobLocation, target: StagedObject) -> tuple[Digest, str, BlobLocation]:
    return (blob.digest, blob.object, blob._replace(object=target.name))


def test_blobs_are_found_where_they_were_staged(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    found = catalog.bytes.locations([*new.needs, digest("unknown")])
    assert found == {blob.digest: blob for blob in new.staged[0].blobs}
    assert catalog.bytes.blobs_in(new.staged[0].name) == list(new.staged[0].blobs)


def test_more_blobs_than_fit_one_statement_are_found(catalog: Catalog):
    names = [str(i) for i in range(1201)]
    pack = staged("pack", *names)
    needs = tuple(digest(name) for name in names)
    catalog.commits.commit(new_version(root=needs[0], staged=(pack,), needs=needs))
    assert set(catalog.bytes.locations(needs)) == set(needs)


def test_the_recipe_of_a_file_in_parts_is_found(catalog: Catalog):
    pack = staged("pack", "root", "file", "recipe")
    recipe = RecipeRecord(digest("large"), digest("recipe"), "fixed/4M", 5000)
    staged_pack = StagedObject(pack.name, 30, pack.blobs, (recipe,))
    catalog.commits.commit(
        new_version(root=digest("root"), staged=(staged_pack,), needs=(digest("root"),))
    )
    assert catalog.bytes.recipes([digest("large")]) == {digest("large"): recipe}


def test_objects_are_found_by_name_and_walked(catalog: Catalog):
    for text in "abc":
        catalog.commits.commit(new_version(content=text))
    names = sorted(object_name(f"pack of {text}") for text in "abc")
    assert [each.name for each in catalog.bytes.all_objects()] == names
    assert set(catalog.bytes.objects([names[0], "none"])) == {names[0]}


def test_objects_are_walked_in_pages(catalog: Catalog, monkeypatch: pytest.MonkeyPatch):
    from begat.catalog import bytes as module

    monkeypatch.setattr(module, "_PAGE", 2)
    monkeypatch.setattr(module, "_NEXT_OBJECTS", module._NEXT_OBJECTS.limit(2))
    for i in range(5):
        catalog.commits.commit(new_version(content=str(i)))
    assert len({each.name for each in catalog.bytes.all_objects()}) == 5


def test_a_damaged_object_is_marked_once_and_no_longer_offered(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    name = new.staged[0].name
    assert catalog.bytes.mark_damaged(name)
    assert not catalog.bytes.mark_damaged(name)
    assert not catalog.bytes.mark_damaged("none")
    assert catalog.bytes.objects([name])[name].state == "damaged"
    assert catalog.bytes.locations(new.needs) == {}
    assert [event.subject for event in catalog.events.list(limit=1)] == [name]


def test_versions_and_objects_know_each_other(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.commits.commit(replace(new, uid="u", token="t", name="other", staged=()))
    name = new.staged[0].name
    assert [v.ref for v in catalog.bytes.versions_holding(name)] == ["digits:v1", "other:v1"]
    assert [each.name for each in catalog.bytes.held_objects("u")] == [name]


# --- garbage collection ---


def test_an_object_is_forgotten_only_when_no_version_needs_it(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    name = new.staged[0].name
    assert catalog.bytes.dead_objects() == []
    assert catalog.bytes.forget_objects([name, "none"]) == []
    catalog.labels.delete(new.uid, by="ann")
    assert [each.name for each in catalog.bytes.dead_objects(1)] == [name]
    assert catalog.bytes.forget_objects([name]) == [name]
    assert catalog.bytes.objects([name]) == {}
    assert catalog.bytes.blobs_in(name) == []
    assert catalog.check() == []


def test_an_object_that_a_version_came_to_need_is_not_forgotten(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.labels.delete(new.uid, by="ann")
    dead = [each.name for each in catalog.bytes.dead_objects()]
    catalog.commits.commit(replace(new, uid="u", token="t", staged=()))
    assert catalog.bytes.forget_objects(dead) == []


def test_a_recipe_goes_with_the_object_it_lies_in(catalog: Catalog):
    pack = staged("pack", "root", "recipe")
    recipe = RecipeRecord(digest("large"), digest("recipe"), "fixed/4M", 5000)
    new = new_version(
        root=digest("root"),
        staged=(StagedObject(pack.name, 20, pack.blobs, (recipe,)),),
        needs=(digest("root"), digest("recipe")),
    )
    catalog.commits.commit(new)
    catalog.labels.delete(new.uid, by="ann")
    catalog.bytes.forget_objects([pack.name])
    assert catalog.bytes.recipes([digest("large")]) == {}


def test_blobs_move_and_versions_hold_their_new_place(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    old = new.staged[0]
    fresh = staged("new pack", "root of one", "file of one")
    catalog.bytes.relocate([moved(blob, fresh) for blob in old.blobs], [fresh])
    assert {place.object for place in catalog.bytes.locations(new.needs).values()} == {fresh.name}
    assert [each.name for each in catalog.bytes.held_objects(new.uid)] == [fresh.name]
    assert [each.name for each in catalog.bytes.dead_objects()] == [old.name]


def test_an_object_with_blobs_left_in_it_stays_held(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    old = new.staged[0]
    fresh = staged("new pack", "file of one")
    catalog.bytes.relocate([moved(old.blobs[1], fresh)], [fresh])
    held = [each.name for each in catalog.bytes.held_objects(new.uid)]
    assert held == sorted([old.name, fresh.name])


def test_what_is_left_in_an_emptied_object_is_forgotten(catalog: Catalog):
    pack = staged("pack", "root", "needed", "dead")
    new = new_version(root=digest("root"), staged=(pack,), needs=(digest("root"), digest("needed")))
    catalog.commits.commit(new)
    fresh = staged("new pack", "root", "needed")
    moves = [moved(blob, fresh) for blob in pack.blobs[:2]]
    catalog.bytes.relocate(moves, [fresh], emptied=[pack.name])
    assert catalog.bytes.blobs_in(pack.name) == []
    assert [each.name for each in catalog.bytes.held_objects(new.uid)] == [fresh.name]
    assert catalog.bytes.forget_objects([pack.name]) == [pack.name]


def test_a_blob_that_is_elsewhere_by_now_does_not_move(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    old = new.staged[0]
    first, second = (staged(name, "root of one", "file of one") for name in ("first", "second"))
    for fresh in (first, second):
        catalog.bytes.relocate([moved(blob, fresh) for blob in old.blobs], [fresh])
    assert {place.object for place in catalog.bytes.locations(new.needs).values()} == {first.name}
    assert [each.name for each in catalog.bytes.held_objects(new.uid)] == [first.name]


# --- fingerprints ---


def test_data_in_memory_is_known_again_by_its_fingerprint(catalog: Catalog):
    versions = [catalog.commits.commit(new_version(content=text)).version for text in "ab"]
    for version in versions:
        for _ in range(2):
            catalog.fingerprints.add(version.uid, "a.npy", fingerprint="f", kind="ndarray")
    assert catalog.fingerprints.find("f") == [
        (versions[1].uid, "a.npy"),
        (versions[0].uid, "a.npy"),
    ]
    assert catalog.fingerprints.find("g") == []
    catalog.labels.delete(versions[1].uid, by="ann")
    assert catalog.fingerprints.find("f") == [(versions[0].uid, "a.npy")]
