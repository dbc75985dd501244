"""What an asset was pinned as: the last checks of what was fetched, and how a change is told."""

from __future__ import annotations

from begat.config import without_secrets
from begat.errors import RemoteChanged
from begat.model import RemoteAsset


def check_end(asset: RemoteAsset, size_bytes: int, mark: str | None) -> None:
    """Raise `RemoteChanged` unless size and mark are the pinned ones; a mark is a digest, or what a server says."""
    if asset.size_bytes is not None and size_bytes != asset.size_bytes:
        raise changed(asset, f"it has {size_bytes} bytes")
    if asset.pin is not None and mark != asset.pin:
        raise changed(asset, f"its bytes are {mark}")


def changed(asset: RemoteAsset, now: str) -> RemoteChanged:
    """The error for an asset that is another one now: what is there, and what was pinned."""
    size = "an unknown number of" if asset.size_bytes is None else str(asset.size_bytes)
    return RemoteChanged(
        f"{shown(asset.uri)} ({asset.path}) is not what was pinned: now {now}; pinned were {size} bytes, "
        f"{asset.pin or 'no mark'}. Nothing was kept; log a new version to accept the change"
    )


def shown(uri: str) -> str:
    """The URI as a message may show it: not too long, and without secrets."""
    text = without_secrets(uri)
    return ascii(text if len(text) <= 200 else text[:180] + "...")
