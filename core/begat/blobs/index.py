"""What blobs ask of the catalog: where they lie, and what may be relied on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from begat.model import BlobLocation, Digest, ObjectRecord, RecipeRecord, StagedObject
from begat.objects import digest_in


class BlobIndex(Protocol):
    """What blobs ask of the catalog."""

    def locations(self, digests: Iterable[Digest]) -> Mapping[Digest, BlobLocation]:
        """Where blobs lie, of those whose object is not damaged."""
        ...

    def readable_locations(self, digests: Iterable[Digest]) -> Mapping[Digest, BlobLocation]:
        """Where to look for blobs, in damaged objects too."""
        ...

    def recipes(self, files: Iterable[Digest]) -> Mapping[Digest, RecipeRecord]:
        """The recipes of files that are cut into parts."""
        ...

    def objects(self, names: Iterable[str]) -> Mapping[str, ObjectRecord]:
        """Objects by name."""
        ...

    def place(self, staged: Sequence[StagedObject]) -> None:
        """Record durable objects of small blobs before their version."""
        ...

    def mark_damaged(self, name: str) -> bool:
        """Offer an object no more; False if it was marked before."""
        ...


def recipes_around(places: Iterable[BlobLocation], index: BlobIndex) -> list[Digest]:
    """The recipes of the large files that parts lie in, of those that lie in one.

    Whoever relies on such a part relies on the recipe: that object has no index, so a rebuild finds the part by it.
    """
    names = {place.object for place in places if place.kind == "part"}
    if not names:
        return []
    return [record.recipe for record in index.recipes(digest_in(name) for name in names).values()]
