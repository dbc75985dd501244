"""The bytes of one log on their way in: what nobody has yet goes into packs, or into an object of its own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from msgspec.structs import replace

from begat.blobs.cutting import (
    Cut,
    CutFile,
    LargeFile,
    Placed,
    cut_file,
    fill_copy,
    in_groups,
)
from begat.blobs.hashing import hash_fd, untold
from begat.blobs.index import BlobIndex, recipes_around
from begat.blobs.reader import BlobReader, recipe_of
from begat.config import Compression, compression
from begat.errors import BegatError, Corrupt, ObjectMissing
from begat.files import NewFile
from begat.identity import digest_of
from begat.model import (
    BlobKind,
    BlobLocation,
    Digest,
    RecipeRecord,
    StagedObject,
    StoredFile,
)
from begat.objects import NewObject, ObjectStore, digest_in
from begat.packs import (
    TARGET_BYTES,
    Compressor,
    Encoded,
    Part,
    Recipe,
    encode_index,
    encode_recipe,
)
from begat.split import Layout, layout_of, sample
from begat.threads import check, gathered

# A file from this size on is not read into memory, and may be cut into parts.
SMALL_FILE_BYTES = 1 << 20
# Parts in memory that are compressed before they are packed, and what one thread takes of them in one go.
WAVE_BYTES = 32 << 20
PIECE_BYTES = 4 << 20

# Of very many very small files, what is held in memory: the blobs of a pack, the new ones that wait for the commit,
# look-ups that are remembered, and pages that wait to be stored.
PACK_BLOBS = 20_000
PLACED_EARLY_BLOBS = 20_000
MOST_LOOK_UPS = 20_000
MOST_WAITING = 64


class BlobWriter:
    """The bytes of one log on their way in. Lives under the writer lock, from the first look-up to the commit."""

    def __init__(
        self, objects: ObjectStore, index: BlobIndex, *, check: Callable[[], object] = tuple
    ) -> None:
        self._check = check
        # Of packs that were placed early, and are not remembered any more.
        self._placed_bytes = self._placed_content_bytes = 0
        self._objects = objects
        self._index = index
        self._compression: Compression = compression()
        self._reader = BlobReader(objects, index)
        self._offered: dict[Digest, BlobLocation] = {}
        self._is_good: dict[str, bool] = {}
        # None: looked up, and stored in one piece.
        self._recipes: dict[Digest, RecipeRecord | None] = {}
        self._new: set[Digest] = set()
        self._waiting: dict[Digest, tuple[bytes, BlobKind]] = {}
        self._new_files: dict[Digest, tuple[Digest, ...]] = {}
        self._staged: list[StagedObject] = []
        self._is_sealed = False
        self._pack: NewObject | None = None
        self._pack_blobs: list[BlobLocation] = []  # their object has no name yet
        self._pack_recipes: list[RecipeRecord] = []
        self._pack_bytes = 0

    @property
    def new_bytes(self) -> int:
        """Bytes that this log added to the object store so far."""
        staged_bytes = sum(staged.size_bytes for staged in self._staged)
        return self._placed_bytes + staged_bytes + self._pack_bytes

    @property
    def content_bytes(self) -> int:
        """Bytes of files that this log added, counted as they are when they are not compressed; asked once sealed."""
        return self._placed_content_bytes + sum(staged.content_bytes for staged in self._staged)

    def add(self, blobs: Sequence[bytes], kind: BlobKind = "file") -> list[Digest]:
        """The digests of these blobs, in order; those that nobody has yet are stored."""
        digests = [digest_of(blob) for blob in blobs]
        self._store({digest: (blob, kind) for digest, blob in zip(digests, blobs, strict=True)})
        return digests

    def later(self, blob: bytes, kind: BlobKind) -> Digest:
        """The digest of a blob that is stored together with others, by one look-up: when this log is settled."""
        digest = digest_of(blob)
        self._waiting[digest] = blob, kind
        if len(self._waiting) >= MOST_WAITING:
            self.settle()
        return digest

    def settle(self) -> None:
        """Store what waits and nobody has yet."""
        waiting, self._waiting = self._waiting, {}
        self._store(waiting)

    def _store(self, blobs: Mapping[Digest, tuple[bytes, BlobKind]]) -> None:
        """Store those of some blobs, each with its kind, that nobody has yet."""
        compressor = Compressor("auto")  # what is not a user's file is small, or shrinks

        def kind_of(digest: Digest) -> BlobKind:
            return blobs[digest][1]

        for kind, some in groupby(self.missing(blobs), kind_of):
            self.pack([compressor.encode(one, blobs[one][0]) for one in some], kind)

    def missing(self, digests: Iterable[Digest]) -> list[Digest]:
        """Those of the digests, each once, that nobody has yet; the caller `pack`s them, or the log must fail."""
        wanted = [each for each in dict.fromkeys(digests) if each not in self._new]
        offered = self._on_offer(wanted)
        new = [each for each in wanted if each not in offered]
        self._new.update(new)
        return new

    def encode(self, blobs: Iterable[tuple[Digest, bytes | memoryview, str]]) -> list[Encoded]:
        """One batch of blobs of files as they are to be stored, each with the ending of its file's name.

        Any thread may do it. How a blob is stored depends on nothing outside its batch.
        """
        compressor = Compressor(self._compression)
        return [compressor.encode(*each) for each in blobs]

    def pack(
        self,
        blobs: Sequence[Encoded],
        kind: BlobKind = "file",
        *,
        joined: memoryview | None = None,
    ) -> None:
        """Store blobs that were found `missing`, in this order; few enough to end in one pack.

        `joined` are the stored bytes of all of them, where these lie side by side in memory already.
        """
        if not blobs:
            return
        if self._pack is None:
            self._pack = self._objects.new()
        at = self._pack_bytes
        for digest, raw_length, stored, codec in blobs:
            length = len(stored)
            self._pack_blobs.append(BlobLocation(digest, "", at, length, raw_length, codec, kind))
            at += length
        self._pack_bytes = at
        if joined is None:
            self._pack.write_all([blob.stored for blob in blobs])
        else:
            self._pack.write(joined)
        if at >= TARGET_BYTES or len(self._pack_blobs) >= PACK_BLOBS:
            self._finish_pack()
            self._place_early()

    def add_data(self, data: bytes, name: str) -> tuple[Digest, tuple[Digest, ...]]:
        """Store a large file that is given in memory; its digest and the blobs that it relies on."""
        digest = digest_of(data)
        needs = self._needs_of_file(digest)
        if needs is None:
            with self._objects.new_file() as copy:
                copy.write(data)
                return self._add(LargeFile(copy.fd, len(data), name), copy, untold)
        return digest, needs

    def add_file(
        self,
        fd: int,
        size_bytes: int,
        name: str,
        *,
        staged: Path | None = None,
        tell: Callable[[int], object] = untold,
    ) -> tuple[Digest, int, tuple[Digest, ...]]:
        """Store an open large file: its digest, how many bytes it had, and the blobs that it relies on.

        `staged` is its path if it is our own copy already. `tell` is called with how many bytes more are done.
        """
        if size_bytes == 0:
            return self.add([b""])[0], 0, (digest_of(b""),)
        own = None if staged is None else self._objects.second_name(staged)
        with own or contextlib.nullcontext():
            file = LargeFile(own.fd if own else fd, size_bytes, name)
            digest, needs = self._add(file, own, tell)
        return digest, size_bytes, needs

    def cut(self, memory: memoryview, name: str, path: str) -> CutFile:
        """A large file that was read into memory, cut and hashed, for `add_cut`; any thread may do it."""
        file = LargeFile(-1, len(memory), name, memory)
        layout = layout_of(file.read, file.size_bytes, name)
        is_compressed = Compressor(self._compression).is_for(file.read, file.size_bytes)
        return CutFile(file, layout, is_compressed, cut_file(file, layout), path)

    def add_cut(self, read: CutFile) -> tuple[Digest, ...]:
        """Store a file that was `cut`: the blobs that it relies on."""
        return self._settle(read, None, untold)

    def look_up(self, files: Iterable[StoredFile]) -> None:
        """Ask for many files that will be required, in one go."""
        asked = list(files)
        self._on_offer(file.digest for file in asked)
        large = [file.digest for file in asked if file.size_bytes >= SMALL_FILE_BYTES]
        self._recipes |= dict.fromkeys(file.digest for file in asked)
        if large:
            self._recipes |= self._index.recipes(large)

    def require(self, file: StoredFile) -> tuple[Digest, ...]:
        """The blobs that a stored file relies on; `ObjectMissing` if its bytes are not on offer any more."""
        needs = self._needs_of_file(file.digest)
        if needs is None:
            raise ObjectMissing(
                f"the stored bytes of {file.path!r} ({file.digest}) are damaged or gone; no version was made. "
                "Add the file itself again to mend them"
            )
        return needs

    def complete(self, files: Sequence[StoredFile]) -> set[Digest]:
        """The digests of those files that are stored completely, and on offer."""
        self.look_up(files)
        return {file.digest for file in files if self._needs_of_file(file.digest) is not None}

    def forget(self) -> None:
        """Remember no more look-ups than fit into memory; to be called where none is in the middle of being used."""
        if len(self._offered) > MOST_LOOK_UPS:
            self._offered.clear()
            self._recipes.clear()

    def is_stored(self, digest: Digest) -> bool:
        """Whether a blob is on offer, or was stored by this log."""
        is_ours = digest in self._new or digest in self._waiting
        return is_ours or bool(self._on_offer([digest]))

    def seal(self) -> tuple[StagedObject, ...]:
        """Make everything durable, and say which objects now hold what."""
        self.settle()
        self._finish_pack()
        self._is_sealed = True
        return tuple(self._staged)

    def discard(self) -> None:
        """Give up: what was stored is removed. Once sealed, a commit may have named it: then gc finds what none has."""
        if self._pack is not None:
            self._pack.file.discard()
            self._pack = None
        if not self._is_sealed:
            for staged in self._staged:
                with contextlib.suppress(BegatError):
                    self._objects.remove(staged.name)
            self._staged = []

    def __enter__(self) -> BlobWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.discard()

    # --- what is there already ---

    def _on_offer(self, digests: Iterable[Digest]) -> set[Digest]:
        """Which blobs the catalog offers in an object that is really there, with its size."""
        digests = list(digests)
        unknown = [digest for digest in digests if digest not in self._offered]
        if unknown:  # a transaction for nothing takes half a millisecond where data fills the processor's caches
            found = self._index.locations(unknown)
            self._check_objects({place.object for place in found.values()})
            self._offered.update({d: p for d, p in found.items() if self._is_good[p.object]})
        return {digest for digest in digests if digest in self._offered}

    def _check_objects(self, names: set[str]) -> None:
        unknown = [name for name in names if name not in self._is_good]
        if not unknown:
            return
        for record in self._index.objects(unknown).values():
            is_good = self._objects.stat(record.name) == record.size_bytes
            if is_good and self._objects.is_linked(record.name):
                is_good = self._is_as_named(record.name)
            self._is_good[record.name] = is_good
            if not is_good:
                self._index.mark_damaged(record.name)
        for name in unknown:
            self._is_good.setdefault(name, False)

    def _is_as_named(self, name: str) -> bool:
        """Whether an object, that others may have changed in place, still has the bytes that its name is of."""
        try:
            fd = self._objects.open(name)
        except ObjectMissing:
            return False
        try:
            return hash_fd(fd) == digest_in(name)
        finally:
            os.close(fd)

    def _needs_of_file(
        self, digest: Digest, known: Collection[Digest] | None = None
    ) -> tuple[Digest, ...] | None:
        """All blobs of a file that is stored completely, or None if it must be stored; `known` are on offer."""
        if digest in self._new_files:
            return self._new_files[digest]
        if digest in self._new:
            return (digest,)
        is_whole = digest in (self._on_offer([digest]) if known is None else known)
        if digest not in self._recipes:
            self._recipes[digest] = self._index.recipes([digest]).get(digest)
        record = self._recipes[digest]
        parts = self._needs_of_recipe(digest, record)
        if parts is None and not is_whole:
            return None
        # It is cut again: others may have parts in the whole file, which a rebuild finds by the recipe only.
        if parts is None and record is not None and not self._on_offer([record.recipe]):
            return None
        return ((digest,) if is_whole else ()) + (parts or ())

    def _needs_of_recipe(
        self, digest: Digest, record: RecipeRecord | None
    ) -> tuple[Digest, ...] | None:
        if record is None or not self._on_offer([record.recipe]):
            return None
        try:
            recipe = recipe_of(digest, self._reader.read(record.recipe))
        except Corrupt:
            self._offered.pop(record.recipe, None)
            return None
        parts = tuple(dict.fromkeys(part for part, _ in recipe.parts))
        if len(self._on_offer(parts)) < len(parts):
            return None
        return (record.recipe, *parts, *self._recipes_around(parts))

    def _recipes_around(self, parts: Iterable[Digest]) -> Iterable[Digest]:
        places = [self._offered[part] for part in parts if part in self._offered]
        return self._on_offer(recipes_around(places, self._index))

    # --- storing ---

    def _add(
        self, file: LargeFile, own: NewFile | None, tell: Callable[[int], object]
    ) -> tuple[Digest, tuple[Digest, ...]]:
        """Store a large file: as it is, or its new parts in packs. `own` is our own copy, if it is one.

        What will probably be stored as it is, is copied at once, and our copy is read. Otherwise the file is read
        where it is, and what is new of it once more: that must be what it was.
        """
        layout = layout_of(file.read, file.size_bytes, file.name)
        is_compressed = Compressor(self._compression).is_for(file.read, file.size_bytes)
        with contextlib.ExitStack() as stack:
            copy = own
            if not own and not is_compressed and self._is_probably_new(file, layout):
                copy = stack.enter_context(self._objects.new_file())
            # What is compressed is half done when it was read.
            share = 2 if is_compressed else 1
            found = cut_file(
                file, layout, copy=None if own else copy, tell=lambda size: tell(size // share)
            )
            read = CutFile(file, layout, is_compressed, found)
            return found.digest, self._settle(read, copy, tell)

    def _settle(
        self, read: CutFile, copy: NewFile | None, tell: Callable[[int], object]
    ) -> tuple[Digest, ...]:
        """Store a file that was read, if it is not stored yet: the blobs that it relies on. `copy` is ours of it."""
        file, found = read.file, read.cut
        known = self._on_offer({found.digest, *(part.digest for part in found.parts)})
        needs = self._needs_of_file(found.digest, known)
        if needs is not None:
            return needs
        new = self._new_parts(found, known)
        # Less than a quarter is there already: one copy of the file, without passing through a pack. Text, of
        # which most would go, is compressed instead.
        is_mostly_new = sum(part.length for part in new) * 4 > file.size_bytes * 3
        is_verbatim = is_mostly_new and not read.is_compressed
        if not is_verbatim:
            self._pack_parts(replace(file, fd=copy.fd) if copy else file, new, tell)
        elif copy:
            self._publish_verbatim(copy, found.digest, file.size_bytes, new)
        else:
            with self._objects.new_file() as copy:
                fill_copy(read, copy)
                self._publish_verbatim(copy, found.digest, file.size_bytes, new)
        needs = self._recorded(read, is_verbatim=is_verbatim)
        self._new_files[found.digest] = needs
        return needs

    def _is_probably_new(self, file: LargeFile, layout: Layout) -> bool:
        """Whether less than a quarter of a few parts is there already."""
        parts = [digest_of(part) for part in sample(layout, file.read)]
        known = self._on_offer(parts) | self._new.intersection(parts)
        return len(known) * 4 < len(set(parts))

    def _new_parts(self, found: Cut, known: Collection[Digest]) -> list[Placed]:
        new: dict[Digest, Placed] = {}
        for part in found.parts:
            if part.digest not in known and part.digest not in self._new:
                new.setdefault(part.digest, part)
        return list(new.values())

    def _recorded(self, read: CutFile, *, is_verbatim: bool) -> tuple[Digest, ...]:
        """The blobs that a file relies on, its recipe, which is stored, among them."""
        file, splitter, found = read.file, read.layout.splitter, read.cut
        digest = found.digest
        whole = (digest,) if is_verbatim else ()
        if len(found.parts) == 1 and is_verbatim:
            return whole
        parts = tuple(Part(part.digest, part.length) for part in found.parts)
        recipe = Recipe(digest, file.size_bytes, splitter, parts)
        [recipe_digest] = self.add([encode_recipe(recipe)], "recipe")
        self._pack_recipes.append(RecipeRecord(digest, recipe_digest, splitter, file.size_bytes))
        own = dict.fromkeys(part.digest for part in parts)
        return (*whole, recipe_digest, *own, *self._recipes_around(own))

    def _pack_parts(
        self, file: LargeFile, parts: Sequence[Placed], tell: Callable[[int], object]
    ) -> None:
        self._new.update(part.digest for part in parts)

        def encode(group: Sequence[Placed]) -> list[Encoded]:
            check()
            return self.encode((part.digest, file.read_again(part), "") for part in group)

        for wave in in_groups(parts, WAVE_BYTES):
            for group in gathered(list(in_groups(wave, PIECE_BYTES)), encode):
                self.pack(group, "part")
                tell(sum(blob.raw_length for blob in group) // 2)

    def _publish_verbatim(
        self, copy: NewFile, digest: Digest, size: int, parts: Sequence[Placed]
    ) -> None:
        name = self._objects.publish_file(copy, digest)
        blobs = [BlobLocation(digest, name, 0, size, size, "none", "file")]
        blobs += [
            BlobLocation(part, name, at, length, length, "none", "part")
            for part, at, length in parts
            if part != digest
        ]
        self._staged.append(StagedObject(name, size, tuple(blobs)))
        self._new.update(blob.digest for blob in blobs)

    def _finish_pack(self) -> None:
        if self._pack is None:
            return
        self._pack.write(encode_index(self._pack_blobs))
        name, size = self._objects.publish(self._pack)
        blobs = tuple(
            BlobLocation(digest, name, at, stored_length, raw_length, codec, kind)
            for digest, _, at, stored_length, raw_length, codec, kind in self._pack_blobs
        )
        self._staged.append(StagedObject(name, size, blobs, tuple(self._pack_recipes)))
        self._pack, self._pack_bytes = None, 0
        self._pack_blobs, self._pack_recipes = [], []

    def _place_early(self) -> None:
        """Let the catalog remember the packs of small blobs, once there are many of them."""
        if sum(len(staged.blobs) for staged in self._staged) < PLACED_EARLY_BLOBS:
            return
        early = [staged for staged in self._staged if _is_of_small_blobs(staged)]
        if not early:
            return
        self._check()
        # Before they are placed: whether the catalog names them now, nobody knows if that fails.
        self._staged = [staged for staged in self._staged if not _is_of_small_blobs(staged)]
        self._index.place(early)
        self._placed_bytes += sum(staged.size_bytes for staged in early)
        self._placed_content_bytes += sum(staged.content_bytes for staged in early)
        for staged in early:
            self._new.difference_update(blob.digest for blob in staged.blobs)


def _is_of_small_blobs(staged: StagedObject) -> bool:
    kinds = ("file", "page")
    return not staged.recipes and all(
        blob.kind in kinds and blob.raw_length < SMALL_FILE_BYTES for blob in staged.blobs
    )
