"""A version's own record: what it says, and that nothing but such a record is read."""

import json

import pytest

import begat
from begat.errors import FormatTooNew, ManifestUnreadable
from begat.record import (
    VersionFile,
    decode_record,
    encode_record,
    encode_run_facts,
    with_facts,
    without_facts,
)


@pytest.fixture
def record() -> VersionFile:
    """The record of a version that a run made from another one."""
    with begat.open_store() as store:
        store.log_artifact("data", b"1")
        with store.start_run("train", job="j", params={"ü": [1, None]}, uses=["data"]) as run:
            draft = begat.Artifact(
                "model", "model", version="1.0.0", aliases=["best"], tags=["t"], metadata={"a": 1}
            )
            version = run.log_artifact(draft.add(b"w", "w", metadata={"m": True}))
        digest = store.catalog.versions.record_of(version.uid)
        assert digest is not None
        return decode_record(store.reader().read(digest))


def test_a_record_says_all_that_a_catalog_must_know(record: VersionFile) -> None:
    assert (record.name, record.type, record.expected_number, record.semver) == (
        "model",
        "model",
        1,
        "1.0.0",
    )
    assert (record.aliases, record.tags, record.metadata) == (("best",), ("t",), {"a": 1})
    assert record.entry_metadata == {"w": {"m": True}}
    assert record.run is not None
    assert (record.run.name, record.run.job, record.run.params) == ("train", "j", {"ü": [1, None]})
    [used] = record.inputs
    assert (used.ref, used.position, used.requested, used.is_declared) == (
        "data:v1",
        1,
        "data",
        True,
    )


def test_a_record_comes_back_from_its_bytes(record: VersionFile) -> None:
    data = encode_record(record)
    assert decode_record(data) == record
    assert encode_record(decode_record(data)) == data


def test_a_record_of_a_newer_begat_is_refused(record: VersionFile) -> None:
    facts = {**json.loads(encode_record(record)), "format": 2, "new": 1}
    with pytest.raises(FormatTooNew):
        decode_record(json.dumps(facts).encode())


@pytest.mark.parametrize(
    "change", [{"uid": None}, {"more": 1}, {"run": 5}, {"inputs": [5]}, {"format": "1"}]
)
def test_what_is_no_record_is_unreadable(record: VersionFile, change: dict[str, object]) -> None:
    facts = json.loads(encode_record(record))
    for key, value in change.items():
        facts[key] = value
    if change == {"uid": None}:
        del facts["uid"]
    with pytest.raises((ManifestUnreadable, FormatTooNew)):
        decode_record(json.dumps(facts).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_bytes_that_are_no_json_object_are_unreadable(data: bytes) -> None:
    with pytest.raises(ManifestUnreadable):
        decode_record(data)


def test_the_facts_of_a_run_lie_apart_and_come_back() -> None:
    with begat.open_store() as store, store.start_run("train") as run:
        bare = without_facts(run.record)
        assert bare.command == bare.git == bare.environment == {}
        assert with_facts(bare, encode_run_facts(run.record)) == run.record
        for data in (b"", b"[]", b'{"format":1}'):
            with pytest.raises(ManifestUnreadable):
                with_facts(bare, data)
        with pytest.raises(FormatTooNew):
            with_facts(bare, b'{"format":2}')
