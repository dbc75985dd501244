"""Remote assets: bytes that stay where they are, pinned so that a change is an error and never other bytes.

`file://` is pinned by size and digest, `http(s)://` by size and ETag or Last-Modified (RFC 9110, sections 8.8.2 and
8.8.3). Any other scheme may be recorded, and is neither pinned nor fetched. Only the standard library is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from begat.config import has_secret, path_of_file_uri
from begat.errors import BadInput, LimitExceeded, warn
from begat.model import RemoteAsset
from begat.paths import check_path
from begat.remote.local import fetch_file, pin_place
from begat.remote.pinned import shown
from begat.remote.web import ask_web, check_web, fetch_web, is_web

MAX_URI_BYTES = 8192

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters: C:\ is no scheme
_UNPRINTABLE = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def check_uri(uri: str, *, allow_secrets: bool = False) -> str:
    """The URI itself if it may be recorded; any scheme may.

    Raises `BadInput` for what is no URI and, unless `allow_secrets`, for one with user info or with a signature or
    token in its query (it would be stored and shown); `LimitExceeded` above 8192 bytes.
    """
    if not isinstance(uri, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a URI is text, not {type(uri).__name__}")
    if not allow_secrets and has_secret(uri):
        raise BadInput(
            f"the URI {shown(uri)} holds a user name, a password, a signature or a token; nothing was stored. "
            "URIs are shown to everybody who sees the version: give one without it"
        )
    if len(uri.encode("utf-8", "surrogatepass")) > MAX_URI_BYTES:
        raise LimitExceeded(
            f"the URI {shown(uri)} is longer than {MAX_URI_BYTES} bytes; nothing was stored"
        )
    if _UNPRINTABLE.search(uri):
        raise BadInput(
            f"the URI {shown(uri)} holds a space or an invisible character; nothing was stored. Percent-encode it"
        )
    found = _SCHEME.match(uri)
    if not found or found.end() == len(uri):
        raise BadInput(
            f"{shown(uri)} is no URI: it has no scheme; nothing was stored. For a file write file:///folder/file"
        )
    if is_web(uri):
        check_web(uri)
    return uri


def pin(
    uri: str,
    path: str,
    *,
    sync: bool = True,
    max_objects: int = 10_000,
    timeout_s: float = 10,
    allow_secrets: bool = False,
) -> list[RemoteAsset]:
    """The assets at a URI as they are now, at `path` in the version; sorted by path.

    A `file://` folder gives one asset for each file below it; links to files count as files, links to folders are
    not entered, and special files are left out, each with a warning. With `sync=False` nobody is asked, and one asset
    without a pin is given. Another scheme gives the same, with a warning.

    Raises `LimitExceeded` above `max_objects` files, `BadInput` for what is not there, `AccessDenied`, and
    `Unavailable` if it cannot be reached within `timeout_s` (for each step of the connection).
    """
    check_uri(uri, allow_secrets=allow_secrets)
    check_path(path)
    if not sync:
        return [RemoteAsset(path, uri)]
    if is_web(uri):
        size_bytes, mark = ask_web(uri, timeout_s)
        if mark is None:
            warn(
                f"{shown(uri)} has neither an ETag nor a Last-Modified: "
                f"a change {'of equal size ' if size_bytes is not None else ''}will not be noticed"
            )
        return [RemoteAsset(path, uri, size_bytes, mark)]
    place = path_of_file_uri(uri)
    if place is not None:
        return pin_place(place, uri, path, max_objects)
    warn(
        f"{shown(uri)} is recorded, but not pinned: this version of begat asks only file:// and http(s)://. "
        "A change will not be noticed"
    )
    return [RemoteAsset(path, uri)]


def fetch(asset: RemoteAsset, write: Callable[[bytes], None], *, timeout_s: float = 30) -> None:
    """Hand the bytes of an asset to `write`, in pieces, and make sure that they are the pinned ones.

    The last checks come after the last piece: if this raises, what was written must be thrown away. Raises
    `RemoteChanged` for other bytes (it names what was pinned and what is there), `Unavailable` for a network that
    fails, stalls or cuts the body off, `BadInput` for schemes that are not supported.
    """
    place = None if is_web(asset.uri) else path_of_file_uri(asset.uri)
    if place is not None:
        fetch_file(place, asset, write)
    elif is_web(asset.uri):
        fetch_web(asset, write, timeout_s)
    else:
        raise BadInput(
            f"{shown(asset.uri)} cannot be fetched: begat fetches file://, http:// and https://. "
            f"Get it with a tool of its own and put it at {asset.path!r}"
        )
