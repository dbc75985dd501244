"""What is known of the folders of a log before they are read, and is to be known after it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from begat.blobs import BlobWriter
from begat.identity import Digest
from begat.listing import LocalFile, Plan, Planned, Tree
from begat.model import StoredFile
from begat.progress import current as current_progress
from begat.snapshot import Snapshot
from begat.statcache import (
    NOTHING,
    UNKNOWN,
    Block,
    Clock,
    Recalled,
    Seen,
    StatCache,
    seen_of,
)

_AT_ONCE = 2048


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
        self._trees = [tree.unknown() for tree in trees if len(tree)]
        self._clocks: list[Clock] = []
        self.whole = NOTHING
        self.plan: Plan = plan
        if cache is None or not believes:
            return
        found = [self._recalled(cache, tree, is_listed_now) for tree in self._trees]
        if isinstance(plan, Tree):
            [self.plan], [self.whole] = self._trees, found
        elif self._trees:
            known = {
                source.path: source
                for tree in self._trees
                for _, source in tree.sources()
                if isinstance(source, LocalFile)
            }
            self.plan = [_with_digest(planned, known) for planned in plan]

    @staticmethod
    def _recalled(cache: StatCache, tree: Tree, is_listed_now: bool) -> Recalled:
        found = cache.recall(tree.real_root, tree.prefix, tree.blocks)
        # A folder that was added a while ago is read as it is now, and metadata is no part of what is recalled.
        is_as_listed = is_listed_now or _forget_changed(tree)
        return found if is_as_listed and not tree.metadata else NOTHING

    def start_clock(self) -> None:
        """To be called before the first file is read."""
        if self._cache is not None:
            self._clocks = [self._cache.clock(tree.root) for tree in self._trees]

    def stored(self, writer: BlobWriter) -> Iterable[Planned]:
        """The plan, with files that need not be read as stored ones: their bytes are known, and on offer."""
        return self.plan if self._cache is None else _stored(self.plan, writer)

    def keep(self, snapshot: Snapshot, *, content: Digest, problem: str) -> None:
        """Remember what the files held that were read."""
        if self._cache is None or not self._trees:
            return
        is_one = isinstance(self.plan, Tree)
        read = _read(self.plan, snapshot)
        for tree, clock in zip(self._trees, self._clocks, strict=True):
            columns = [_column(tree, block, read) for block in tree.blocks]
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
    progress = current_progress()
    rest = iter(plan)
    while batch := list(islice(rest, _AT_ONCE)):
        known = {
            planned.source.digest
            for planned in batch
            if isinstance(planned.source, LocalFile) and planned.source.digest is not None
        }
        complete = writer.complete(known)
        for planned in batch:
            source = planned.source
            digest = source.digest if isinstance(source, LocalFile) else None
            if isinstance(source, LocalFile) and digest is not None and digest in complete:
                size_bytes, is_executable = source.size_bytes, source.is_executable
                entry = StoredFile(planned.path, size_bytes, digest, is_executable)
                progress.advance(bytes=size_bytes, files=1)
                yield replace(planned, source=entry)
            else:
                yield planned


def _read(plan: Iterable[Planned], snapshot: Snapshot) -> dict[str, tuple[Seen, bytes]]:
    """What files held that were listed in a folder, by their real paths."""
    found: dict[str, tuple[Seen, bytes]] = {}
    digests = {e.path: e.digest for e in snapshot.entries if isinstance(e, StoredFile)}
    for planned in plan:
        source = planned.source
        if isinstance(source, LocalFile) and source.seen is not None:
            if planned.path not in snapshot.changed:
                found[source.path] = source.seen, bytes.fromhex(digests[planned.path][3:])
    return found


def _column(tree: Tree, block: Block, read: dict[str, tuple[Seen, bytes]]) -> bytes:
    digests: list[bytes] = []
    for _, source in tree.sources_of(block):
        found = read.get(source.path) if isinstance(source, LocalFile) else None
        is_it = isinstance(source, LocalFile) and found is not None and found[0] == source.seen
        digests.append(found[1] if found is not None and is_it else UNKNOWN)
    return b"".join(digests)
