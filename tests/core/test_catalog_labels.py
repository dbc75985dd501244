"""Aliases, tags, descriptions and states of versions that are there."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest

from begat.catalog import Catalog
from begat.catalog.changes import TagTarget
from begat.errors import (
    AliasMoved,
    AliasReserved,
    ArtifactNotFound,
    BytesRetired,
    RunNotFound,
    VersionDeleted,
    VersionNotFound,
)
from begat.model import Expect, VersionRecord
from begat.reference import parse_reference
from catalog_facts import new_run, new_version, object_name


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


@pytest.fixture
def versions(catalog: Catalog) -> list[VersionRecord]:
    return [catalog.commits.commit(new_version(content=text)).version for text in "abc"]


def gone(catalog: Catalog, version: VersionRecord) -> VersionRecord:
    catalog.labels.retire(version.uid, by="ann")
    assert catalog.labels.drop_bytes([version.uid]) == [version.uid]
    return catalog.versions.get(version.uid)


# --- aliases ---


def test_an_alias_moves_and_its_history_is_kept(catalog: Catalog, versions: list[VersionRecord]):
    for version in versions[:2]:
        catalog.labels.move_alias(version.uid, "best", by="ann")
    catalog.labels.remove_alias("digits", "best", by="bob")
    moves = catalog.labels.alias_history("digits", "best")
    assert [(m.from_number, m.to_number, m.by) for m in moves] == [
        (None, 1, "ann"),
        (1, 2, "ann"),
        (2, None, "bob"),
    ]
    assert catalog.versions.get(versions[1].uid).aliases == ()


def test_an_alias_moved_by_a_run_remembers_it(catalog: Catalog, versions: list[VersionRecord]):
    run = catalog.runs.start(new_run())
    move = catalog.labels.move_alias(versions[0].uid, "best", by="ann", run_uid=run.uid)
    assert catalog.labels.alias_history("digits", "best") == [move]
    assert move.run_uid == run.uid


def test_an_alias_that_is_there_already_moves_without_a_line(
    catalog: Catalog, versions: list[VersionRecord]
):
    for _ in range(2):
        catalog.labels.move_alias(versions[0].uid, "best", by="ann")
    assert len(catalog.labels.alias_history("digits", "best")) == 1


def test_an_alias_moves_from_where_it_is_expected(catalog: Catalog, versions: list[VersionRecord]):
    catalog.labels.move_alias(versions[0].uid, "best", expect=Expect.ABSENT, by="ann")
    catalog.labels.move_alias(versions[1].uid, "best", expect=1, by="ann")
    assert catalog.versions.get(versions[1].uid).aliases == ("best",)


@pytest.mark.parametrize("expect", [Expect.ABSENT, 2])
def test_an_alias_that_is_elsewhere_does_not_move(
    catalog: Catalog, versions: list[VersionRecord], expect: Expect | int
):
    catalog.labels.move_alias(versions[0].uid, "best", by="ann")
    with pytest.raises(AliasMoved, match="is at digits:v1"):
        catalog.labels.move_alias(versions[2].uid, "best", expect=expect, by="ann")
    with pytest.raises(AliasMoved):
        catalog.labels.remove_alias("digits", "best", expect=expect, by="ann")
    assert catalog.versions.get(versions[0].uid).aliases == ("best",)


def test_an_alias_that_is_expected_and_not_there_does_not_move(
    catalog: Catalog, versions: list[VersionRecord]
):
    with pytest.raises(AliasMoved, match="does not exist"):
        catalog.labels.move_alias(versions[0].uid, "best", expect=1, by="ann")


def test_removing_an_alias_that_is_not_there_says_so(
    catalog: Catalog, versions: list[VersionRecord]
):
    with pytest.raises(VersionNotFound, match="no alias 'best'"):
        catalog.labels.remove_alias("digits", "best", by="ann")
    with pytest.raises(ArtifactNotFound):
        catalog.labels.remove_alias("nothing", "best", by="ann")


def race(path: Path, uid: str, results) -> None:
    with Catalog.open(path) as catalog:
        try:
            catalog.labels.move_alias(uid, "best", expect=Expect.ABSENT, by="racer")
            results.put(uid)
        except AliasMoved:
            results.put(None)


def test_of_processes_that_race_for_an_alias_one_wins(
    catalog: Catalog, versions: list[VersionRecord]
):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    racers = [
        context.Process(target=race, args=(catalog.path, versions[i % 3].uid, results))
        for i in range(6)
    ]
    for racer in racers:
        racer.start()
    answers = [results.get(timeout=60) for _ in racers]
    for racer in racers:
        racer.join(60)
    results.close()
    results.join_thread()
    winners = [answer for answer in answers if answer]
    assert len(winners) == 1
    assert catalog.versions.resolve(parse_reference("digits:best")).uid == winners[0]
    assert len(catalog.labels.alias_history("digits", "best")) == 1


# --- tags and descriptions ---


def test_tags_are_put_on_and_taken_off(catalog: Catalog, versions: list[VersionRecord]):
    run = catalog.runs.start(new_run(tags=("first",)))
    targets: list[tuple[TagTarget, str]] = [
        ("artifact", versions[0].artifact_uid),
        ("version", versions[0].uid),
        ("run", run.uid),
    ]
    for kind, uid in targets:
        catalog.labels.add_tags(kind, uid, ["x", "y", "x"], by="ann")
        catalog.labels.remove_tags(kind, uid, ["y", "never there"], by="ann")
    assert catalog.versions.artifact("digits").tags == ("x",)
    assert catalog.versions.get(versions[0].uid).tags == ("x",)
    assert catalog.runs.get(run.uid).tags == ("first", "x")


def test_tags_of_what_is_not_there_are_refused(catalog: Catalog):
    missing: dict[TagTarget, type[Exception]] = {
        "artifact": ArtifactNotFound,
        "version": VersionNotFound,
        "run": RunNotFound,
    }
    for kind, error in missing.items():
        with pytest.raises(error):
            catalog.labels.add_tags(kind, "none", ["x"], by="ann")


def test_descriptions_change(catalog: Catalog, versions: list[VersionRecord]):
    catalog.labels.set_description("artifact", versions[0].artifact_uid, "ten digits", by="ann")
    catalog.labels.set_description("version", versions[0].uid, "clean", by="ann")
    assert catalog.versions.artifact("digits").description == "ten digits"
    assert catalog.versions.get(versions[0].uid).description == "clean"
    catalog.labels.set_description("version", versions[0].uid, None, by="ann")
    assert catalog.versions.get(versions[0].uid).description is None


# --- deleting ---


def test_a_deleted_version_keeps_its_number_and_its_lineage(catalog: Catalog):
    run = catalog.runs.start(new_run())
    version = catalog.commits.commit(new_version(run_uid=run.uid)).version
    catalog.labels.delete(version.uid, by="ann")
    assert catalog.versions.get(version.uid).state == "deleted"
    assert [edge.kind for edge in catalog.runs.edges_of_version(version.uid)] == ["made"]
    assert catalog.commits.commit(new_version()).version.number == 2
    assert catalog.check() == []


def test_latest_falls_to_the_next_version_that_is_there(
    catalog: Catalog, versions: list[VersionRecord]
):
    catalog.labels.delete(versions[1].uid, by="ann")
    assert catalog.versions.resolve(parse_reference("digits")).number == 3
    catalog.labels.delete(versions[2].uid, by="ann")
    assert catalog.versions.resolve(parse_reference("digits")).number == 1
    assert catalog.versions.get(versions[0].uid).is_latest
    assert not catalog.versions.get(versions[2].uid).is_latest


def test_a_deleted_version_holds_nothing(catalog: Catalog, versions: list[VersionRecord]):
    catalog.labels.delete(versions[0].uid, by="ann")
    assert [each.name for each in catalog.bytes.dead_objects()] == [object_name("pack of a")]


def test_an_aliased_version_is_deleted_only_on_purpose(
    catalog: Catalog, versions: list[VersionRecord]
):
    for alias in ("best", "prod"):
        catalog.labels.move_alias(versions[0].uid, alias, by="ann")
    with pytest.raises(AliasReserved, match="'best', 'prod'"):
        catalog.labels.delete(versions[0].uid, by="ann")
    catalog.labels.delete(versions[0].uid, force=True, by="bob")
    assert catalog.labels.alias_history("digits", "prod")[-1].to_number is None
    with pytest.raises(VersionNotFound):
        catalog.versions.resolve(parse_reference("digits:best"))


def test_a_deleted_version_takes_no_labels(catalog: Catalog, versions: list[VersionRecord]):
    uid = versions[0].uid
    catalog.labels.delete(uid, by="ann")
    for act in (
        lambda: catalog.labels.delete(uid, by="ann"),
        lambda: catalog.labels.retire(uid, by="ann"),
        lambda: catalog.labels.move_alias(uid, "best", by="ann"),
        lambda: catalog.labels.add_tags("version", uid, ["x"], by="ann"),
    ):
        with pytest.raises(VersionDeleted, match="digits:v1"):
            act()


# --- retiring ---


def test_a_retired_version_that_nothing_needs_lets_go_of_its_bytes(
    catalog: Catalog, versions: list[VersionRecord]
):
    catalog.labels.retire(versions[0].uid, by="ann")
    [(version, reason)] = catalog.bytes.retired_candidates()
    assert (version.uid, reason) == (versions[0].uid, None)
    assert gone(catalog, versions[0]).state == "bytes-gone"
    assert catalog.bytes.retired_candidates() == []


def keep_by_alias(catalog: Catalog, version: VersionRecord) -> None:
    catalog.labels.move_alias(version.uid, "best", by="ann")


def keep_by_tag(catalog: Catalog, version: VersionRecord) -> None:
    catalog.labels.add_tags("version", version.uid, ["paper"], by="ann")


def keep_by_use(catalog: Catalog, version: VersionRecord) -> None:
    run = catalog.runs.start(new_run())
    catalog.runs.use(run.uid, version.uid, requested="digits:v1")


@pytest.mark.parametrize(
    ("keep", "reason"),
    [(keep_by_alias, "alias best"), (keep_by_tag, "tag paper"), (keep_by_use, "used it")],
)
def test_a_retired_version_keeps_its_bytes_while_something_needs_them(
    catalog: Catalog, versions: list[VersionRecord], keep, reason: str
):
    catalog.labels.retire(versions[0].uid, by="ann")
    keep(catalog, versions[0])
    [(_, told)] = catalog.bytes.retired_candidates()
    assert told is not None
    assert reason in told
    assert catalog.labels.drop_bytes([versions[0].uid]) == []
    assert catalog.versions.get(versions[0].uid).state == "retired"


def test_use_by_the_run_that_made_it_does_not_keep_a_versions_bytes(catalog: Catalog):
    run = catalog.runs.start(new_run())
    version = catalog.commits.commit(new_version(run_uid=run.uid)).version
    catalog.runs.use(run.uid, version.uid, requested="digits")
    catalog.labels.retire(version.uid, by="ann")
    assert catalog.labels.drop_bytes([version.uid]) == [version.uid]


def test_a_live_version_never_loses_its_bytes(catalog: Catalog, versions: list[VersionRecord]):
    assert catalog.labels.drop_bytes([version.uid for version in versions]) == []


def test_a_version_without_bytes_takes_no_alias_tag_or_use(
    catalog: Catalog, versions: list[VersionRecord]
):
    version = gone(catalog, versions[0])
    run = catalog.runs.start(new_run())
    for act in (
        lambda: catalog.labels.move_alias(version.uid, "best", by="ann"),
        lambda: catalog.labels.add_tags("version", version.uid, ["x"], by="ann"),
        lambda: catalog.runs.use(run.uid, version.uid, requested="digits:v1"),
    ):
        with pytest.raises(BytesRetired, match="digits:v1"):
            act()
    assert catalog.runs.edges_of_run(run.uid) == []


# --- history ---


def test_what_changed_is_written_down(catalog: Catalog, versions: list[VersionRecord]):
    catalog.labels.move_alias(versions[0].uid, "best", by="ann")
    catalog.labels.delete(versions[1].uid, by="bob")
    newest, before = catalog.events.list(limit=2)
    assert (newest.kind, newest.subject, newest.by) == ("version-deleted", "digits:v2", "bob")
    assert (before.kind, before.subject, before.detail) == (
        "alias-moved",
        "digits:best",
        {"from": None, "to": 1},
    )
    assert [event.kind for event in catalog.events.list(subject="digits:v1")] == ["version-made"]
