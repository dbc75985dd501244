"""The one commit point: numbers, reuse, tokens, labels, and which objects a version holds."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from begat.catalog import Catalog, StageAgain
from begat.errors import RunFinished, RunNotFound, TypeMismatch, VersionExists
from begat.model import RecipeRecord, StagedObject
from catalog_facts import again, digest, new_run, new_version, object_name, staged, unstaged


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


def held(catalog: Catalog, uid: str) -> list[str]:
    return [each.name for each in catalog.bytes.held_objects(uid)]


# --- new versions ---


def test_numbers_count_from_one_in_the_order_of_commits(catalog: Catalog):
    made = [catalog.commits.commit(new_version("digits", text)) for text in "abc"]
    assert [commit.version.number for commit in made] == [1, 2, 3]
    assert all(commit.is_new for commit in made)


def test_a_commit_tells_what_the_catalog_says_afterwards(catalog: Catalog):
    run = catalog.runs.start(new_run())
    new = new_version(
        type="dataset",
        metadata={"acc": 0.97, "tags": ["x", None]},
        description="first",
        semver="1.0.0",
        aliases=("best", "prod"),
        tags=("b", "a"),
        run_uid=run.uid,
        size_bytes=7,
        new_bytes=5,
        file_count=1,
    )
    version = catalog.commits.commit(new).version
    assert version == catalog.versions.get(new.uid)
    assert (version.ref, version.type, version.version) == ("digits:v1", "dataset", "1.0.0")
    assert (version.aliases, version.tags) == (("best", "prod"), ("a", "b"))
    assert version.metadata == {"acc": 0.97, "tags": ["x", None]}
    assert (version.size_bytes, version.new_bytes, version.file_count) == (7, 5, 1)
    assert version.is_latest
    assert version.state == "live"
    assert version.run_uid == run.uid


def test_an_artifact_without_a_type_is_data(catalog: Catalog):
    assert catalog.commits.commit(new_version()).version.type == "data"


def test_a_later_version_takes_the_artifacts_type(catalog: Catalog):
    catalog.commits.commit(new_version(content="a", type="model"))
    assert catalog.commits.commit(new_version(content="b")).version.type == "model"


def test_another_type_is_refused_and_stores_nothing(catalog: Catalog):
    catalog.commits.commit(new_version(content="a", type="model"))
    with pytest.raises(TypeMismatch, match="'model', not 'dataset'"):
        catalog.commits.commit(new_version(content="b", type="dataset"))
    assert catalog.versions.artifact("digits").version_count == 1
    assert object_name("pack of b") not in catalog.bytes.objects([object_name("pack of b")])


def test_content_of_an_older_version_makes_a_new_one_that_shares_its_bytes(catalog: Catalog):
    first = new_version(content="a")
    catalog.commits.commit(first)
    catalog.commits.commit(new_version(content="b"))
    third = catalog.commits.commit(again(first, staged=()))
    assert (third.version.number, third.is_new) == (3, True)
    assert held(catalog, third.version.uid) == held(catalog, first.uid)


def test_metadata_of_entries_is_kept(catalog: Catalog):
    new = new_version(entry_metadata={"a.txt": {"rows": 3}})
    catalog.commits.commit(new)
    assert catalog.versions.entry_metadata(new.uid) == {"a.txt": {"rows": 3}}


# --- runs ---


def test_a_run_that_makes_a_version_has_an_edge_to_it(catalog: Catalog):
    run = catalog.runs.start(new_run())
    versions = [
        catalog.commits.commit(new_version(content=text, run_uid=run.uid)).version for text in "ab"
    ]
    edges = catalog.runs.edges_of_run(run.uid)
    assert [(edge.kind, edge.version_uid, edge.position) for edge in edges] == [
        ("made", versions[0].uid, 1),
        ("made", versions[1].uid, 2),
    ]


def test_an_unknown_run_is_refused(catalog: Catalog):
    with pytest.raises(RunNotFound):
        catalog.commits.commit(new_version(run_uid="none"))
    assert catalog.versions.find_artifact("digits") is None


def test_a_run_that_is_over_makes_nothing_more(catalog: Catalog):
    run = catalog.runs.start(new_run())
    catalog.runs.finish(run.uid, "finished")
    with pytest.raises(RunFinished, match="finished"):
        catalog.commits.commit(new_version(run_uid=run.uid))
    assert catalog.versions.find_artifact("digits") is None


# --- the same token ---


def test_the_same_token_gives_the_same_version(catalog: Catalog):
    new = new_version()
    first = catalog.commits.commit(new)
    catalog.commits.commit(new_version(content="b"))
    retried = catalog.commits.commit(new)
    assert (retried.version.uid, retried.is_new) == (first.version.uid, True)
    assert catalog.versions.artifact("digits").version_count == 2


def test_the_token_of_an_attempt_that_reused_a_version_finds_it_again(catalog: Catalog):
    new = new_version()
    first = catalog.commits.commit(new).version
    attempt = unstaged(new)
    assert not catalog.commits.commit(attempt).is_new
    catalog.commits.commit(new_version(content="b"))
    retried = catalog.commits.commit(attempt)
    assert (retried.version.uid, retried.is_new) == (first.uid, False)
    assert catalog.versions.artifact("digits").version_count == 2


def test_an_attempt_is_found_by_its_token(catalog: Catalog):
    new = new_version()
    assert catalog.commits.find_token(new.token) is None
    catalog.commits.commit(new)
    found = catalog.commits.find_token(new.token)
    assert found is not None
    assert (found.version.uid, found.is_new) == (new.uid, True)


# --- content that is the latest already ---


def test_equal_content_is_the_latest_version_again(catalog: Catalog):
    new = new_version()
    first = catalog.commits.commit(new).version
    second = catalog.commits.commit(unstaged(new))
    assert (second.version, second.is_new) == (first, False)


@pytest.mark.parametrize(
    "change",
    [{"metadata": {"lr": 0.2}}, {"entry_metadata": {"a": {"b": 1}}}, {"if_unchanged": "new"}],
    ids=lambda change: next(iter(change)),
)
def test_a_new_version_is_made_of_equal_content_if(catalog: Catalog, change: dict[str, object]):
    new = new_version(metadata={"lr": 0.1})
    catalog.commits.commit(new)
    assert catalog.commits.commit(again(new, **change)).version.number == 2


def test_metadata_in_another_order_is_equal(catalog: Catalog):
    new = new_version(metadata={"a": 1, "b": {"c": [1.0], "d": "é"}})
    catalog.commits.commit(new)
    other = {"b": {"d": "é", "c": [1.0]}, "a": 1}
    assert not catalog.commits.commit(again(new, metadata=other)).is_new


def test_a_reuse_applies_labels_and_description(catalog: Catalog):
    new = new_version(aliases=("best",))
    catalog.commits.commit(new)
    reused = replace(
        unstaged(new), aliases=("prod",), tags=("t",), description="why", semver="1.0.0"
    )
    version = catalog.commits.commit(reused).version
    assert (version.aliases, version.tags) == (("best", "prod"), ("t",))
    assert (version.description, version.version) == ("why", "1.0.0")


def test_a_reuse_without_a_description_keeps_the_one_there_is(catalog: Catalog):
    new = new_version(description="why")
    catalog.commits.commit(new)
    assert (
        catalog.commits.commit(replace(unstaged(new), description=None)).version.description
        == "why"
    )


def test_a_run_that_comes_to_the_latest_content_confirms_it(catalog: Catalog):
    new = new_version()
    version = catalog.commits.commit(new).version
    run = catalog.runs.start(new_run())
    for _ in range(2):
        catalog.commits.commit(replace(unstaged(new), run_uid=run.uid))
    edges = catalog.runs.edges_of_version(version.uid)
    assert [(edge.kind, edge.run_uid) for edge in edges] == [("confirmed", run.uid)]


def test_a_run_does_not_confirm_what_it_made(catalog: Catalog):
    run = catalog.runs.start(new_run())
    new = new_version(run_uid=run.uid)
    catalog.commits.commit(new)
    catalog.commits.commit(unstaged(new))
    assert [edge.kind for edge in catalog.runs.edges_of_run(run.uid)] == ["made"]


def test_a_deleted_version_is_not_reused(catalog: Catalog):
    first = new_version(content="a")
    catalog.commits.commit(first)
    second = new_version(content="b")
    catalog.commits.commit(second)
    catalog.labels.delete(second.uid, by="ann")
    # The latest is v1 again, so its content is no new version; that of v2 is.
    assert catalog.commits.commit(unstaged(first)).version.number == 1
    assert catalog.commits.commit(again(second)).version.number == 3


def test_whoever_staged_nothing_is_asked_to_when_the_latest_is_another_by_now(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.commits.commit(new_version(content="b"))
    with pytest.raises(StageAgain):
        catalog.commits.commit(unstaged(new))
    assert catalog.versions.artifact("digits").version_count == 2


def test_a_reuse_of_a_retired_version_makes_it_live_again(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.labels.retire(new.uid, by="ann")
    assert catalog.commits.commit(unstaged(new)).version.state == "live"
    assert held(catalog, new.uid) == [object_name("pack of one")]


def test_a_version_whose_bytes_are_gone_lives_again_when_they_are_staged(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.labels.retire(new.uid, by="ann")
    assert catalog.labels.drop_bytes([new.uid]) == [new.uid]
    assert catalog.bytes.forget_objects([object_name("pack of one")])
    with pytest.raises(StageAgain):
        catalog.commits.commit(unstaged(new))
    fresh = staged("second pack", "root of one", "file of one", "record")
    revived = again(
        new, staged=(fresh,), record=digest("record"), needs=(*new.needs, digest("record"))
    )
    commit = catalog.commits.commit(revived)
    assert (commit.version.uid, commit.version.state, commit.is_new) == (new.uid, "live", False)
    assert held(catalog, new.uid) == [fresh.name]
    assert catalog.versions.record_of(new.uid) == digest("record")


# --- SemVer ---


def test_a_semver_label_belongs_to_one_version(catalog: Catalog):
    catalog.commits.commit(new_version(content="a", semver="1.0.0"))
    with pytest.raises(VersionExists, match=r"digits:1\.0\.0.*digits:v1"):
        catalog.commits.commit(new_version(content="b", semver="1.0.0"))
    assert catalog.versions.artifact("digits").version_count == 1


def test_a_semver_label_of_a_deleted_version_stays_taken(catalog: Catalog):
    new = new_version(content="a", semver="1.0.0")
    catalog.commits.commit(new)
    catalog.labels.delete(new.uid, by="ann")
    with pytest.raises(VersionExists):
        catalog.commits.commit(new_version(content="b", semver="1.0.0"))


def test_a_reuse_with_its_own_label_fits_and_with_another_does_not(catalog: Catalog):
    new = new_version(semver="1.0.0")
    catalog.commits.commit(new)
    assert not catalog.commits.commit(unstaged(new)).is_new
    with pytest.raises(VersionExists, match=r"1\.0\.0"):
        catalog.commits.commit(replace(unstaged(new), semver="2.0.0", aliases=("best",)))
    assert catalog.versions.get(new.uid).aliases == ()


@pytest.mark.parametrize(
    ("part", "label"), [("major", "1.0.0"), ("minor", "0.1.0"), ("patch", "0.0.1")]
)
def test_the_first_bump_of_an_artifact(catalog: Catalog, part: str, label: str):
    assert catalog.commits.commit(new_version(bump=part)).version.version == label


def test_a_bump_counts_on_from_the_highest_label(catalog: Catalog):
    for content, label in (("a", "1.10.0"), ("b", "1.9.3")):
        catalog.commits.commit(new_version(content=content, semver=label))
    assert (
        catalog.commits.commit(new_version(content="c", bump="minor")).version.version == "1.11.0"
    )


def test_a_bump_of_unchanged_content_keeps_its_label(catalog: Catalog):
    new = new_version(semver="1.0.0")
    catalog.commits.commit(new)
    bumped = replace(unstaged(new), semver=None, bump="major")
    assert catalog.commits.commit(bumped).version.version == "1.0.0"


# --- where the bytes are ---


def test_of_two_writers_of_one_blob_the_first_place_counts_and_is_held(catalog: Catalog):
    mine, theirs = staged("mine", "root a", "shared"), staged("theirs", "root b", "shared")
    for content, pack in (("a", mine), ("b", theirs)):
        root = digest(f"root {content}")
        needs = (root, digest("shared"))
        catalog.commits.commit(
            new_version(content, content, root=root, staged=(pack,), needs=needs)
        )
    second = catalog.versions.list("b")[0]
    assert catalog.bytes.locations([digest("shared")])[digest("shared")].object == mine.name
    assert held(catalog, second.uid) == sorted([mine.name, theirs.name])


def test_a_commit_that_needs_a_blob_without_a_place_must_stage_it(catalog: Catalog):
    new = new_version()
    lacking = replace(new, needs=(*new.needs, digest("elsewhere")))
    with pytest.raises(StageAgain) as caught:
        catalog.commits.commit(lacking)
    assert caught.value.missing == {digest("elsewhere")}
    assert catalog.versions.find_artifact("digits") is None


def test_a_blob_in_a_damaged_object_has_no_place(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.bytes.mark_damaged(object_name("pack of one"))
    assert catalog.bytes.locations(new.needs) == {}
    with pytest.raises(StageAgain):
        catalog.commits.commit(replace(unstaged(new), name="other", root=new.root))


def test_logging_the_right_bytes_again_heals_every_version_that_needs_them(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.commits.commit(replace(again(new, staged=()), name="other"))
    catalog.bytes.mark_damaged(object_name("pack of one"))
    fresh = staged("second pack", "root of one", "file of one")
    commit = catalog.commits.commit(again(new, staged=(fresh,)))
    assert not commit.is_new
    assert {place.object for place in catalog.bytes.locations(new.needs).values()} == {fresh.name}
    for name in ("digits", "other"):
        assert held(catalog, catalog.versions.list(name)[0].uid) == [fresh.name]
    assert [each.name for each in catalog.bytes.dead_objects()] == [object_name("pack of one")]


def test_a_damaged_object_of_which_only_a_part_is_healed_stays_held(catalog: Catalog):
    new = new_version()
    catalog.commits.commit(new)
    catalog.bytes.mark_damaged(object_name("pack of one"))
    fresh = staged("second pack", "root of x", "file of one")
    catalog.commits.commit(
        new_version(
            "x", "x", root=digest("root of x"), staged=(fresh,), needs=(digest("root of x"),)
        )
    )
    assert held(catalog, new.uid) == sorted([object_name("pack of one"), fresh.name])


def test_bytes_that_heal_are_kept_even_if_the_version_is_new(catalog: Catalog):
    first = new_version(content="a")
    catalog.commits.commit(first)
    catalog.bytes.mark_damaged(object_name("pack of a"))
    fresh = staged("second pack", "root of b", "root of a", "file of a")
    second = new_version(
        content="b",
        root=digest("root of b"),
        staged=(fresh,),
        needs=(digest("root of b"), digest("file of a")),
    )
    catalog.commits.commit(second)
    assert held(catalog, first.uid) == [fresh.name]


def test_the_newest_recipe_of_a_file_is_the_one_that_is_known(catalog: Catalog):
    file = digest("large")
    for number in (1, 2):
        pack = staged(f"pack {number}", f"root {number}", f"recipe {number}")
        recipe = RecipeRecord(file, digest(f"recipe {number}"), "fixed/4M", 1 << 30)
        with_recipe = StagedObject(pack.name, pack.size_bytes, pack.blobs, (recipe,))
        catalog.commits.commit(
            new_version(
                content=str(number),
                root=digest(f"root {number}"),
                staged=(with_recipe,),
                needs=(digest(f"root {number}"), digest(f"recipe {number}")),
            )
        )
    assert catalog.bytes.recipes([file, digest("other")])[file].recipe == digest("recipe 2")


# --- rebuilding ---


def test_a_rebuilt_version_keeps_its_number_and_time(catalog: Catalog):
    run = catalog.runs.start(new_run(status="finished", started_at=1, ended_at=2))
    for number in (3, 1):
        new = new_version(content=str(number), number=number, created_at=number, run_uid=run.uid)
        catalog.commits.commit(replace(new, if_unchanged="new"))
    listed = catalog.versions.list("digits")
    assert [(v.number, v.created_at, v.is_latest) for v in listed] == [(1, 1, False), (3, 3, True)]
    assert catalog.commits.commit(new_version(content="next")).version.number == 4


# --- many at once ---


def commit_same(path: Path, results) -> None:
    with Catalog.open(path) as catalog:
        results.put(catalog.commits.commit(new_version()).is_new)


def test_of_processes_that_log_the_same_content_one_makes_the_version(catalog: Catalog):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=commit_same, args=(catalog.path, results)) for _ in range(6)]
    for writer in writers:
        writer.start()
    answers = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join(60)
    results.close()
    results.join_thread()
    assert sorted(answers) == [False] * 5 + [True]
    assert catalog.versions.artifact("digits").version_count == 1
