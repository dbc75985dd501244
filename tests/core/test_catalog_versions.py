"""Finding artifacts and versions by name, by reference, by id."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from begat.catalog import Catalog
from begat.errors import (
    AmbiguousReference,
    ArtifactNotFound,
    VersionDeleted,
    VersionNotFound,
)
from begat.identity import Digest
from begat.model import Standing
from begat.reference import parse_reference
from catalog_facts import again, digest, new_version, statements_read


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.create(tmp_path / "catalog.sqlite", "store") as catalog:
        yield catalog


@pytest.fixture
def digits(catalog: Catalog) -> Catalog:
    """Three versions: v1 is 1.0.0, v2 is `best`."""
    catalog.commits.commit(new_version(content="a", semver="1.0.0"))
    catalog.commits.commit(new_version(content="b", aliases=("best", "prod")))
    catalog.commits.commit(new_version(content="c", tags=("clean",)))
    return catalog


def resolve(catalog: Catalog, text: str) -> int:
    return catalog.versions.resolve(parse_reference(text)).number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("digits", 3),
        ("digits:latest", 3),
        ("digits:v1", 1),
        ("digits:best", 2),
        ("digits:1.0.0", 1),
        (f"digits@{digest('b')[:9]}", 2),
        (f"digits@{digest('b')}", 2),
        ("begat://digits:v1/train.csv", 1),
    ],
)
def test_a_reference_of_each_kind_finds_its_version(digits: Catalog, text: str, number: int):
    assert resolve(digits, text) == number


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("digits:v9", "'digits:v9' does not exist; the newest is digits:v3 (begat history digits)"),
        ("digits:bets", "its aliases are best, prod"),
        ("digits:2.0.0", "the newest is digits:v3"),
        ("digits@b3:000000", "the newest is digits:v3"),
    ],
)
def test_a_reference_to_nothing_tells_what_there_is(digits: Catalog, text: str, told: str):
    with pytest.raises(VersionNotFound) as caught:
        resolve(digits, text)
    assert told in str(caught.value)


def test_an_unknown_artifact_names_the_nearest(digits: Catalog):
    digits.commits.commit(new_version("digits-model", "m"))
    with pytest.raises(ArtifactNotFound, match="digits"):
        resolve(digits, "digit:v1")
    for find in (digits.versions.artifact, digits.versions.list):
        with pytest.raises(ArtifactNotFound, match="the nearest names are digits-model, digits"):
            find("digits_modle")
    assert digits.versions.find_artifact("digit") is None


def test_an_empty_store_says_that_it_is_empty(catalog: Catalog):
    with pytest.raises(ArtifactNotFound, match="store is empty; begat doctor"):
        resolve(catalog, "digits")


@pytest.mark.parametrize("text", ["digits:v1", "digits:1.0.0", f"digits@{digest('a')[:12]}"])
def test_a_reference_to_a_deleted_version_says_that_it_was_deleted(digits: Catalog, text: str):
    digits.labels.delete(digits.versions.list("digits")[0].uid, by="ann")
    with pytest.raises(VersionDeleted, match="deleted"):
        resolve(digits, text)


@pytest.mark.parametrize("text", ["digits:v1", "digits:1.0.0", f"digits@{digest('a')[:12]}"])
def test_a_deleted_version_is_found_by_whom_it_matters_to(digits: Catalog, text: str):
    digits.labels.delete(digits.versions.list("digits")[0].uid, by="ann")
    found = digits.versions.resolve(parse_reference(text), with_deleted=True)
    assert (found.number, found.state) == (1, "deleted")


def test_an_artifact_whose_versions_are_all_deleted_has_no_latest(catalog: Catalog):
    version = catalog.commits.commit(new_version()).version
    catalog.labels.delete(version.uid, by="ann")
    with pytest.raises(VersionNotFound, match="no version that is not deleted"):
        resolve(catalog, "digits")
    assert list(catalog.versions.list("digits")) == []
    assert catalog.versions.artifact("digits").latest_number is None
    assert catalog.commits.commit(new_version()).version.number == 2


def test_a_digest_means_the_newest_version_with_it_that_is_there(digits: Catalog):
    first = new_version(content="a")
    fourth = digits.commits.commit(again(first)).version
    assert resolve(digits, f"digits@{digest('a')}") == 4
    digits.labels.delete(fourth.uid, by="ann")
    assert resolve(digits, f"digits@{digest('a')}") == 1


def test_a_digest_prefix_that_fits_two_contents_is_ambiguous(catalog: Catalog):
    for last in "01":
        full = Digest("b3:" + "ab" * 31 + "0" + last)
        catalog.commits.commit(new_version(content=last, digest=full))
    with pytest.raises(AmbiguousReference, match="digits:v2"):
        resolve(catalog, "digits@b3:ababab")
    assert resolve(catalog, "digits@b3:" + "ab" * 31 + "00") == 1


def test_a_listing_has_every_version_with_its_labels(digits: Catalog):
    listed = digits.versions.list("digits")
    assert [version.number for version in listed] == [1, 2, 3]
    assert list(listed) == [digits.versions.get(version.uid) for version in listed]
    assert listed[-1].tags == ("clean",)
    assert [version.number for version in listed[1:]] == [2, 3]


def test_deleted_versions_are_listed_only_when_asked_for(digits: Catalog):
    digits.labels.delete(digits.versions.list("digits")[2].uid, by="ann")
    assert [v.number for v in digits.versions.list("digits")] == [1, 2]
    assert [v.state for v in digits.versions.list("digits", with_deleted=True)][2] == "deleted"


def test_a_listing_costs_the_same_statements_for_few_and_for_many(digits: Catalog):
    seen = statements_read(digits)
    digits.versions.list("digits")
    few = len(seen)
    for i in range(60):
        digits.commits.commit(new_version(content=str(i), aliases=(f"a{i}",), tags=("t",)))
    seen.clear()
    assert [version.aliases for version in digits.versions.list("digits")][-1] == ("a59",)
    assert len(seen) == few <= 5


def test_versions_are_fetched_by_id(digits: Catalog):
    listed = list(digits.versions.list("digits"))
    found = digits.versions.get_many([version.uid for version in listed] + ["none"])
    assert found == {version.uid: version for version in listed}
    with pytest.raises(VersionNotFound):
        digits.versions.get("none")


def test_many_more_versions_than_fit_one_statement_are_fetched(catalog: Catalog):
    made = [catalog.commits.commit(new_version(content=str(i))).version.uid for i in range(520)]
    assert set(catalog.versions.get_many(made)) == set(made)


def test_heads_are_the_latest_and_the_aliased_versions(digits: Catalog):
    digits.commits.commit(new_version("alone", "x"))
    assert [head.ref for head in digits.versions.all_heads()] == [
        "alone:v1",
        "digits:v2",
        "digits:v3",
    ]


def test_versions_are_found_by_their_content(digits: Catalog):
    other = digits.commits.commit(new_version("other", "a")).version
    assert [v.ref for v in digits.versions.find_digest(digest("a"))] == ["digits:v1", "other:v1"]
    digits.labels.delete(other.uid, by="ann")
    assert [v.ref for v in digits.versions.find_digest(digest("a"))] == ["digits:v1"]


def test_artifacts_are_listed_by_the_bytes_of_their_names(catalog: Catalog):
    for name in ("b", "a/b", "B", "a", "a-b", "9"):
        catalog.commits.commit(new_version(name, name))
    listed = [artifact.name for artifact in catalog.versions.list_artifacts()]
    assert listed == ["9", "B", "a", "a-b", "a/b", "b"]


def test_artifacts_are_chosen_by_type_tag_and_text(digits: Catalog):
    model = digits.commits.commit(new_version("vision/resnet", "m", type="model")).version
    digits.labels.add_tags("artifact", model.artifact_uid, ["paper"], by="ann")
    digits.labels.set_description("artifact", model.artifact_uid, "Für ÄPFEL", by="ann")

    def names(**chosen: str) -> list[str]:
        return [artifact.name for artifact in digits.versions.list_artifacts(**chosen)]

    assert names(type="model") == ["vision/resnet"]
    assert names(tag="paper") == ["vision/resnet"]
    assert names(query="RESNET") == ["vision/resnet"]
    assert names(query="äpfel") == ["vision/resnet"]
    assert names(query="i") == ["digits", "vision/resnet"]
    assert names(query="%") == []


def test_an_artifact_counts_its_versions(digits: Catalog):
    digits.labels.delete(digits.versions.list("digits")[2].uid, by="ann")
    artifact = digits.versions.artifact("digits")
    assert (artifact.version_count, artifact.latest_number) == (2, 2)


def test_the_bytes_of_an_artifact_are_those_of_the_versions_whose_bytes_are_kept(catalog: Catalog):
    for number, content in enumerate("abc", start=1):
        sizes = {"size_bytes": 100 * number, "new_bytes": 10 * number, "shared_bytes": number}
        catalog.commits.commit(new_version("digits", content, **sizes))
    catalog.commits.commit(new_version("other", "d", size_bytes=7))
    catalog.labels.delete(catalog.versions.list("digits")[2].uid, by="ann")

    found = {one.name: one for one in catalog.versions.list_artifacts()}
    sums = [(one.size_bytes, one.new_bytes, one.shared_bytes) for one in found.values()]
    assert sums == [(300, 30, 3), (7, 0, 0)]
    assert catalog.versions.artifact("digits") == found["digits"]
    assert [one.shared_bytes for one in catalog.versions.list("digits")] == [1, 2]


def test_how_an_artifact_stands_is_known_by_its_name(digits: Catalog):
    listed = digits.versions.list("digits")
    kind = digits.versions.artifact("digits").type
    assert digits.versions.standing("digits") == Standing(listed[-1], kind, 4)
    digits.labels.delete(listed[-1].uid, by="ann")
    assert digits.versions.standing("digits") == Standing(
        digits.versions.list("digits")[-1], kind, 4
    )
    for version in listed[:-1]:
        digits.labels.delete(version.uid, by="ann", force=True)
    assert digits.versions.standing("digits") == Standing(None, kind, 4)
    assert digits.versions.standing("digit") == Standing(None, None, 1)


def test_every_version_of_every_artifact_can_be_walked(digits: Catalog):
    digits.commits.commit(new_version("alone", "x"))
    digits.labels.delete(digits.versions.list("digits")[0].uid, by="ann")
    walked = [version.ref for version in digits.versions.all()]
    assert walked == ["alone:v1", "digits:v1", "digits:v2", "digits:v3"]
