"""What a repository on the Hub says of the version in it: `begat.json`, and a block of front matter in `README.md`."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

import begat
from begat.errors import BadInput, FormatTooNew

CARD = "README.md"
NOTE = "begat.json"
FORMAT = 1
# A front matter is for people; what is longer is in begat.json alone.
MOST_METADATA_CHARACTERS = 2_000

_FRONT = re.compile(r"\A(\s*---[ \t]*\r?\n)(.*?)(^---[ \t]*(?:\r?\n|\Z))", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^begat:[^\n]*\n(?:[ \t]+[^\n]*\n)*", re.MULTILINE)
# YAML takes JSON, but not these characters as they are.
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


class Remote(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A remote asset: its bytes stay where they are."""

    uri: str
    size_bytes: int | None = None
    pin: str | None = None


class Note(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True
):
    """`begat.json`: which version this is, and what the Hub cannot hold itself."""

    begat: int  # the format; not FORMAT by default, which would be left out
    name: str
    number: int
    type: str
    digest: str
    uid: str
    semver: str | None = None
    made_by: dict[str, Any] | None = None
    used: tuple[dict[str, str], ...] = ()
    metadata: dict[str, Any] = {}
    files: tuple[str, ...] = ()
    executables: tuple[str, ...] = ()
    symlinks: dict[str, str] = {}
    empty_directories: tuple[str, ...] = ()
    remote: dict[str, Remote] = {}
    entry_metadata: dict[str, dict[str, Any]] = {}
    readme: str | None = None

    @property
    def ref(self) -> str:
        """`digits:v3`, as it is called where it was pushed from."""
        return f"{self.name}:v{self.number}"


def note_of(version: begat.Version) -> Note:
    """What is to be said of a version; equal for the same version, whenever it is asked."""
    entries = version.entries
    kept = {entry.path: dict(entry.metadata) for entry in entries if entry.metadata}
    stored = [entry for entry in entries if isinstance(entry, begat.StoredFile)]
    made_by, used = _origin(version)
    return Note(
        begat=FORMAT,
        uid=version.uid,
        name=version.name,
        type=version.type,
        number=version.number,
        digest=version.digest,
        semver=version.version,
        metadata=dict(version.metadata),
        files=tuple(entry.path for entry in stored),
        executables=tuple(entry.path for entry in stored if entry.is_executable),
        symlinks={one.path: one.target for one in entries if isinstance(one, begat.Symlink)},
        empty_directories=tuple(
            one.path for one in entries if isinstance(one, begat.EmptyDirectory)
        ),
        remote={
            one.path: Remote(one.uri, one.size_bytes, one.pin)
            for one in entries
            if isinstance(one, begat.RemoteAsset)
        },
        entry_metadata=kept,
        made_by=made_by,
        used=used,
    )


def _origin(version: begat.Version) -> tuple[dict[str, Any] | None, tuple[dict[str, str], ...]]:
    """The run that made it, and what that had used before: no command line, no machine, no user, no parameters."""
    run = version.produced_by
    if run is None:
        return None, ()
    edges = run.edges
    end = next(
        (one.position for one in edges if one.kind == "made" and one.version_uid == version.uid), 0
    )
    before = {one.version_uid for one in edges if one.kind == "used" and one.position < end}
    used = [one for one in run.inputs if one.uid in before]
    facts = {"run": run.id, "name": run.name, "job": run.job, "commit": run.git.get("commit")}
    return (
        {key: value for key, value in facts.items() if value is not None},
        tuple({"ref": one.ref, "digest": str(one.digest)} for one in used),
    )


def bytes_of_note(note: Note) -> bytes:
    """`begat.json`, without what is empty; equal for equal notes."""
    return msgspec.json.format(msgspec.json.encode(note, order="deterministic"), indent=1) + b"\n"


def parse_note(data: bytes) -> Note | None:
    """What a `begat.json` says; None if it is not one of ours. Raises `FormatTooNew`, `BadInput`."""
    try:
        format = msgspec.json.decode(data, type=_Format).begat
    except msgspec.DecodeError:
        return None
    if format > FORMAT:
        raise FormatTooNew(
            f"{NOTE} has format {format}, and this begat knows {FORMAT}; nothing was changed. Use a newer begat"
        )
    try:
        return msgspec.json.decode(data, type=Note)
    except msgspec.DecodeError as error:
        raise BadInput(f"{NOTE} is damaged: {error}") from error


class _Format(msgspec.Struct):
    begat: int


# --- the card ---


def new_card(note: Note, repo_id: str) -> str:
    """A card for a repository that has none; it says nothing that another version would make wrong."""
    return (
        f"# {note.name}\n\nEach version of `{note.name}` is a commit of this repository with a tag (`v1`, `v2`, ...). "
        f"What it was made from is in the front matter above and in `{NOTE}`.\n\n"
        f'```python\nfrom begat_huggingface import pull_from_hub\n\npull_from_hub("{repo_id}")\n```\n'
    )


def with_block(card: str, note: Note) -> str:
    """The card with our block of front matter; all else in it stays as it is."""
    card = without_block(card)
    found = _FRONT.match(card)
    newline = "\r\n" if "\r\n" in card.partition("\n")[0] + "\n" else "\n"
    block = "".join(f"{line}{newline}" for line in _block(note))
    if found is None:
        return f"---{newline}{block}---{newline}{card}"
    return f"{found[1]}{found[2]}{block}{found[3]}{card[found.end() :]}"


def without_block(card: str) -> str:
    """The card without our block, and without a front matter that held nothing else."""
    found = _FRONT.match(card)
    if found is None or not _BLOCK.search(found[2]):
        return card
    rest = _BLOCK.sub("", found[2])
    if not rest:
        return card[found.end() :]
    return f"{found[1]}{rest}{found[3]}{card[found.end() :]}"


def _block(note: Note) -> list[str]:
    lines = ["begat:", f"  version: {_yaml(note.ref)}", f"  digest: {_yaml(note.digest)}"]
    if note.made_by is not None:
        lines.append(f"  made_by: {_yaml(note.made_by.get('job') or note.made_by['name'])}")
        lines.append(f"  run: {_yaml(note.made_by['run'])}")
    if note.used:
        lines += ["  used:", *(f"    - {_yaml(one['ref'])}" for one in note.used)]
    metadata = _yaml(note.metadata)
    if note.metadata and len(metadata) <= MOST_METADATA_CHARACTERS:
        lines.append(f"  metadata: {metadata}")
    return lines


def _yaml(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
