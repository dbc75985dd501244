"""What is known of the folders of a log before they are read, and is to be known after it."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

from msgspec.structs import replace

from begat.blobs import BlobWriter
from begat.identity import Digest
from begat.listing import Forest, LocalFile, Plan, Planned, Tree
from begat.model import Entry, StoredFile
from begat.statcache import (
    NOTHING,
    UNKNOWN,
    Block,
    Clock,
    Numbers,
    Recalled,
    StatCache,
    seen_of,
)

_AT_ONCE = 2048
_DIGEST_BYTES = 32
_UNKNOWN_HEX = UNKNOWN.hex()


class Recollection:
    """What the stat cache says of one log's folders.

    `plan` is the plan with what is known of each file, `whole` what is known of it as a whole: more than nothing only
    if it is one folder, and nothing in it has changed.
    """

    def __init__(
        self,
        plan: Plan,
        trees: Sequence[Tree],
        cache: StatCache | None,
        *,
        believes: bool,
        is_listed_now: bool,
    ) -> None:
        self._cache = cache
        unknown = {id(tree): tree.unknown() for tree in trees if len(tree)}
        self._trees = list(unknown.values())
        self._clocks: list[Clock] = []
        self._digests = bytearray()
        self.whole = NOTHING
        if isinstance(plan, Tree):
            plan = unknown[id(plan)]
        elif isinstance(plan, Forest):
            plan = Forest([unknown[id(tree)] for tree in plan.trees], plan.others)
        self.plan: Plan = plan
        if cache is None or not believes:
            return
        found = [self._recalled(cache, tree, is_listed_now) for tree in self._trees]
        if isinstance(plan, Tree):
            [self.whole] = found
        elif isinstance(plan, Forest):
            self.plan = Forest(plan.trees, self._with_digests(plan.others, besides=plan.trees))
        else:
            self.plan = self._with_digests(plan)

    def _with_digests(
        self, plan: Sequence[Planned], besides: Sequence[Tree] = ()
    ) -> Sequence[Planned]:
        """Single entries with what is known of them, from the folders that are not kept as such."""
        known = {
            source.path: source
            for tree in self._trees
            if tree not in besides
            for _, source in tree.sources()
            if isinstance(source, LocalFile)
        }
        return [_with_digest(planned, known) for planned in plan] if known else plan

    @staticmethod
    def _recalled(cache: StatCache, tree: Tree, is_listed_now: bool) -> Recalled:
        found = cache.recall(tree.real_root, tree.prefix, tree.blocks)
        # A folder that was added a while ago is read as it is now, and metadata is no part of what is recalled.
        is_as_listed = is_listed_now or _forget_changed(tree)
        return found if is_as_listed and not tree.metadata else NOTHING

    def start(self) -> None:
        """To be called before the first file is read, and each time that it is begun anew."""
        self._digests.clear()
        if self._cache is not None:
            self._clocks = [self._cache.clock(tree.root) for tree in self._trees]

    def stored(self, writer: BlobWriter) -> Iterable[Planned]:
        """The plan, with files that need not be read as stored ones: their bytes are known, and on offer."""
        if not any(block.digests for tree in self._trees for block in tree.blocks):
            return self.plan
        return _stored(self.plan, writer)

    def note(self, entries: Iterable[Entry]) -> None:
        """What the next paths of the plan were found to be."""
        if self._clocks:
            digests = [e.digest[3:] if isinstance(e, StoredFile) else _UNKNOWN_HEX for e in entries]
            self._digests += bytes.fromhex("".join(digests))

    def keep(self, changed: Collection[str], *, content: Digest, problem: str) -> None:
        """Remember what the files held that were read; `changed` are paths that were no longer as they were listed."""
        if self._cache is None or not self._clocks:
            return
        is_one = isinstance(self.plan, Tree)
        of_trees, read = self._held(changed)
        for tree, clock in zip(self._trees, self._clocks, strict=True):
            columns = of_trees.get(id(tree)) or [_column(tree, each, read) for each in tree.blocks]
            is_known = columns == [block.digests for block in tree.blocks]
            if is_known and (not is_one or self.whole.content == content):
                continue
            for block, column in zip(tree.blocks, columns, strict=True):
                block.digests = column
            self._cache.keep(
                tree.real_root,
                tree.prefix,
                tree.blocks,
                clock=clock,
                content=content if is_one else None,
                problem=problem,
            )

    def _held(
        self, changed: Collection[str]
    ) -> tuple[dict[int, list[bytes]], dict[str, tuple[Numbers, bytes]]]:
        """What was noted: of each folder a column for each block, of single files of a folder by their real paths."""
        columns: dict[int, list[bytes]] = {}
        read: dict[str, tuple[Numbers, bytes]] = {}
        at = 0

        def next_digests(count: int) -> bytes:
            nonlocal at
            begin, at = at, at + _DIGEST_BYTES * count
            return bytes(self._digests[begin:at])

        for part in _parts(self.plan):
            if isinstance(part, Tree):
                columns[id(part)] = [
                    _without(changed, block, next_digests(len(block))) for block in part.blocks
                ]
                continue
            digest, source = next_digests(1), part.source
            if isinstance(source, LocalFile) and source.seen and part.path not in changed:
                read[source.path] = source.seen, digest
        return columns, read


def _parts(plan: Plan) -> Sequence[Tree | Planned]:
    if isinstance(plan, Tree):
        return [plan]
    return plan.parts if isinstance(plan, Forest) else plan


def _forget_changed(tree: Tree) -> bool:
    """Forget the digests of files that have changed since they were listed; False if there were any."""
    is_same = True
    for block in tree.blocks:
        digests = list(block.raw_digests())
        for at, (_, source) in enumerate(tree.sources_of(block)):
            if isinstance(source, LocalFile) and digests[at] != UNKNOWN and not _is_now(source):
                digests[at], is_same = UNKNOWN, False
        block.digests = b"".join(digests)
    return is_same


def _is_now(source: LocalFile) -> bool:
    try:
        return seen_of(os.lstat(source.path)) == source.seen
    except OSError:
        return False


def _with_digest(planned: Planned, known: dict[str, LocalFile]) -> Planned:
    source = planned.source
    if not isinstance(source, LocalFile) or source.seen is None:
        return planned
    found = known.get(source.path)
    if found is None or found.seen != source.seen:
        return planned
    return replace(planned, source=replace(source, digest=found.digest))


def _stored(plan: Iterable[Planned], writer: BlobWriter) -> Iterator[Planned]:
    rest = iter(plan)
    while batch := list(islice(rest, _AT_ONCE)):
        known = [_as_stored(planned) for planned in batch]
        complete = writer.complete([entry for entry in known if entry is not None])
        for planned, entry in zip(batch, known, strict=True):
            is_complete = entry is not None and entry.digest in complete
            yield replace(planned, source=entry) if is_complete and entry else planned


def _as_stored(planned: Planned) -> StoredFile | None:
    source = planned.source
    if not isinstance(source, LocalFile) or source.digest is None:
        return None
    return StoredFile(planned.path, source.size_bytes, source.digest, source.is_executable)


def _without(changed: Collection[str], block: Block, digests: bytes) -> bytes:
    if not changed:
        return digests
    pieces = (digests[at : at + _DIGEST_BYTES] for at in range(0, len(digests), _DIGEST_BYTES))
    paths = block.paths.split("\n")
    return b"".join(
        UNKNOWN if path in changed else raw for path, raw in zip(paths, pieces, strict=True)
    )


def _column(tree: Tree, block: Block, read: dict[str, tuple[Numbers, bytes]]) -> bytes:
    digests: list[bytes] = []
    for _, source in tree.sources_of(block):
        found = read.get(source.path) if isinstance(source, LocalFile) else None
        is_it = isinstance(source, LocalFile) and found is not None and found[0] == source.seen
        digests.append(found[1] if found is not None and is_it else UNKNOWN)
    return b"".join(digests)
