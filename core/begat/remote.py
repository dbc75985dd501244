"""Remote assets: bytes that stay where they are, pinned so that a change is an error and never other bytes.

`file://` is pinned by size and digest, `http(s)://` by size and ETag or Last-Modified (RFC 9110, sections 8.8.2 and
8.8.3). Any other scheme may be recorded, and is neither pinned nor fetched. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from blake3 import blake3

from begat.config import has_secret, path_of_file_uri, without_secrets
from begat.errors import (
    AccessDenied,
    BadInput,
    BegatError,
    LimitExceeded,
    RemoteChanged,
    SourceChanged,
    Unavailable,
    UnsupportedFile,
    warn,
)
from begat.files import open_source, told_as
from begat.ignore import is_always_left_out
from begat.model import RemoteAsset
from begat.paths import check_path, path_key
from begat.progress import current, reporting

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.request import OpenerDirector

MAX_URI_BYTES = 8192
MAX_REDIRECTS = 10
READ_BYTES = 1 << 20
# A server that sends less than this in the time limit is as good as silent.
LEAST_BYTES = 1024

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")  # two letters: C:\ is no scheme
_UNPRINTABLE = re.compile(
    "[\\s\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_URI_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # what stays as it is when the rest is percent-encoded
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{1,1024}\Z")


def check_uri(uri: str, *, allow_secrets: bool = False) -> str:
    """The URI itself if it may be recorded; any scheme may.

    Raises `BadInput` for what is no URI and, unless `allow_secrets`, for one with user info or with a signature or
    token in its query (it would be stored and shown); `LimitExceeded` above 8192 bytes.
    """
    if not isinstance(uri, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"a URI is text, not {type(uri).__name__}")
    if not allow_secrets and has_secret(uri):
        raise BadInput(
            f"the URI {_shown(uri)} holds a user name, a password, a signature or a token; nothing was stored. "
            "URIs are shown to everybody who sees the version: give one without it"
        )
    if len(uri.encode("utf-8", "surrogatepass")) > MAX_URI_BYTES:
        raise LimitExceeded(
            f"the URI {_shown(uri)} is longer than {MAX_URI_BYTES} bytes; nothing was stored"
        )
    if _UNPRINTABLE.search(uri):
        raise BadInput(
            f"the URI {_shown(uri)} holds a space or an invisible character; nothing was stored. Percent-encode it"
        )
    found = _SCHEME.match(uri)
    if not found or found.end() == len(uri):
        raise BadInput(
            f"{_shown(uri)} is no URI: it has no scheme; nothing was stored. For a file write file:///folder/file"
        )
    if _is_web(uri):
        _check_web(uri)
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
    if _is_web(uri):
        size_bytes, mark = _ask_web(uri, timeout_s)
        if mark is None:
            _warn(
                f"{_shown(uri)} has neither an ETag nor a Last-Modified: "
                f"a change {'of equal size ' if size_bytes is not None else ''}will not be noticed"
            )
        return [RemoteAsset(path, uri, size_bytes, mark)]
    place = path_of_file_uri(uri)
    if place is not None:
        return _pin_place(place, uri, path, max_objects)
    _warn(
        f"{_shown(uri)} is recorded, but not pinned: this version of begat asks only file:// and http(s)://. "
        "A change will not be noticed"
    )
    return [RemoteAsset(path, uri)]


def fetch(asset: RemoteAsset, write: Callable[[bytes], None], *, timeout_s: float = 30) -> None:
    """Hand the bytes of an asset to `write`, in pieces, and make sure that they are the pinned ones.

    The last checks come after the last piece: if this raises, what was written must be thrown away. Raises
    `RemoteChanged` for other bytes (it names what was pinned and what is there), `Unavailable` for a network that
    fails, stalls or cuts the body off, `BadInput` for schemes that are not supported.
    """
    place = None if _is_web(asset.uri) else path_of_file_uri(asset.uri)
    if place is not None:
        _fetch_file(place, asset, write)
    elif _is_web(asset.uri):
        _fetch_web(asset, write, timeout_s)
    else:
        raise BadInput(
            f"{_shown(asset.uri)} cannot be fetched: begat fetches file://, http:// and https://. "
            f"Get it with a tool of its own and put it at {asset.path!r}"
        )


# --- files ---


def _pin_place(place: Path, uri: str, path: str, max_objects: int) -> list[RemoteAsset]:
    try:
        mode = os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{_shown(uri)} is not there; nothing was stored") from None
    except OSError as error:
        raise _cannot_read(uri, error) from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise UnsupportedFile(f"{_shown(uri)} is neither a file nor a folder; nothing was stored")
    if stat.S_ISREG(mode):
        with reporting(f"pinning {path}"):
            return [_pin_file(place, uri, path)]
    with told_as(f"listing {_shown(uri)}"):
        found = list(_files_below(place, max_objects))
    if not found:
        raise BadInput(f"{_shown(uri)} is a folder without a file; nothing was stored")
    with reporting(f"pinning {path}", total_files=len(found)):
        assets = [
            _pin_file(place / name, (place / name).as_uri(), f"{path}/{name}") for name in found
        ]
    return sorted(assets, key=lambda asset: path_key(asset.path))


def _files_below(root: Path, max_objects: int) -> Iterator[str]:
    folders = [""]
    count = 0
    while folders:
        folder = folders.pop()
        with os.scandir(root / folder) as listed:
            for entry in listed:
                name = f"{folder}{entry.name}"
                if is_always_left_out(entry.name, entry.path):
                    _warn(
                        f"{entry.path} is left out: folders of version control and begat stores always are"
                    )
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif not entry.is_file():
                    _warn(f"{entry.path} is left out: it is not a file, or a link to none")
                else:
                    count += 1
                    if count > max_objects:
                        raise LimitExceeded(
                            f"{root} holds more than {max_objects} files; nothing was stored. "
                            "Raise max_objects, or choose a smaller folder"
                        )
                    yield name


def _pin_file(place: Path, uri: str, path: str) -> RemoteAsset:
    check_path(path)
    hasher = blake3()
    size_bytes = 0
    try:
        file = _opened(place, uri)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise SourceChanged(f"{_shown(uri)} vanished meanwhile; nothing was stored") from None
    with file:
        before = os.fstat(file.fileno())
        for data in _pieces(file, uri):
            hasher.update(data)
            size_bytes += len(data)
            current().advance(bytes=len(data))
        after = os.fstat(file.fileno())
    if before.st_mtime_ns != after.st_mtime_ns or not before.st_size == after.st_size == size_bytes:
        raise SourceChanged(f"{_shown(uri)} changed while it was read; nothing was stored")
    current().advance(files=1)
    return RemoteAsset(path, uri, size_bytes, f"b3:{hasher.hexdigest()}")


def _fetch_file(place: Path, asset: RemoteAsset, write: Callable[[bytes], None]) -> None:
    hasher = blake3()
    size_bytes = 0
    try:
        file = _opened(place, asset.uri)
    except (FileNotFoundError, NotADirectoryError):
        raise _changed(asset, "it is not there any more") from None
    except IsADirectoryError:
        raise _changed(asset, "it is a folder") from None
    with file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise _changed(asset, "it is no file any more")
        if asset.size_bytes is not None and facts.st_size != asset.size_bytes:
            raise _changed(asset, f"it has {facts.st_size} bytes")
        for data in _pieces(file, asset.uri):
            hasher.update(data)
            size_bytes += len(data)
            write(data)
    _check_end(asset, size_bytes, f"b3:{hasher.hexdigest()}")


def _opened(place: Path, uri: str) -> FileIO:
    """The file for reading; a link is followed (the URI is what the user chose), a pipe is not waited for."""
    try:
        return open(
            place, "rb", buffering=0, opener=lambda path, _: open_source(os.path.realpath(path))
        )
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise _cannot_read(uri, error) from error


def _pieces(file: FileIO, uri: str) -> Iterator[bytes]:
    try:
        while data := file.read(READ_BYTES):
            yield data
    except OSError as error:
        raise _cannot_read(uri, error) from error


def _cannot_read(uri: str, error: OSError) -> BegatError:
    message = f"{_shown(uri)} cannot be read: {error.strerror}; nothing was changed"
    return AccessDenied(message) if isinstance(error, PermissionError) else Unavailable(message)


# --- the web ---


def _is_web(uri: str) -> bool:
    return uri.partition("://")[0].lower() in ("http", "https")


def _check_web(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        is_good = (parts.hostname or "").encode("idna") and parts.port != 0
    except ValueError:  # a port that is no number, brackets left open, a label that is too long
        is_good = False
    if not is_good:
        raise BadInput(f"{_shown(uri)} names no host that could be asked; nothing was stored")


def _ask_web(uri: str, timeout_s: float) -> tuple[int | None, str | None]:
    """Size and pin of what a URL leads to: by HEAD, and where that says too little by asking for the first byte."""
    from urllib.error import HTTPError

    try:
        with _answer(uri, "HEAD", timeout_s=timeout_s) as response:
            size_bytes, mark = _length(response), _mark(response)
    except BegatError as error:
        if not isinstance(error.__cause__, HTTPError):
            raise
        size_bytes = mark = None  # a server may know GET only, and tell so in many ways
    if size_bytes and mark:
        return size_bytes, mark
    # Some servers answer HEAD with a length of 0, whatever GET would send.
    with _answer(uri, "GET", timeout_s=timeout_s, first_byte_only=True) as response:
        whole = re.fullmatch(r"bytes [^/]*/([0-9]+)", response.headers.get("Content-Range", ""))
        if whole:
            return int(whole[1]), _mark(response)
        return (_length(response) if response.status == 200 else None), _mark(response)


def _fetch_web(asset: RemoteAsset, write: Callable[[bytes], None], timeout_s: float) -> None:
    with _answer(asset.uri, "GET", timeout_s=timeout_s, asset=asset) as response:
        length = _length(response)
        if response.status != 200:
            raise _refused(asset.uri, response.status, asset)
        if asset.size_bytes is not None and length not in (None, asset.size_bytes):
            raise _changed(asset, f"it has {length} bytes")
        _check_mark(asset, response)
        if (
            length is None
            and asset.size_bytes is None
            and not response.headers.get("Transfer-Encoding")
        ):
            raise Unavailable(
                f"{_shown(asset.uri)} has no Content-Length, so that a cut would not be noticed; nothing was kept"
            )
        size_bytes = 0
        for data in _body(response, asset.uri, timeout_s):
            size_bytes += len(data)
            if asset.size_bytes is not None and size_bytes > asset.size_bytes:
                raise _changed(asset, "it is longer")
            write(data)
    if length is not None and size_bytes != length:
        raise Unavailable(
            f"{_shown(asset.uri)} was cut off after {size_bytes} of {length} bytes; nothing was kept. Try again"
        )
    _check_end(asset, size_bytes, asset.pin)


def _body(response: HTTPResponse, uri: str, timeout_s: float) -> Iterator[bytes]:
    from http.client import HTTPException

    since = time.monotonic()
    received = 0
    while True:
        try:
            data = response.read1(
                READ_BYTES
            )  # not read(): it would wait for the whole MiB, however slow
        except (OSError, HTTPException) as error:
            raise Unavailable(
                f"{_shown(uri)} was cut off: {_reason(error)}; nothing was kept. Try again"
            ) from error
        if not data:
            return
        yield data
        received += len(data)
        if time.monotonic() - since > timeout_s:
            if received < LEAST_BYTES:
                raise Unavailable(
                    f"{_shown(uri)} sends less than {LEAST_BYTES} bytes in {timeout_s:g} s; nothing was kept. Try again"
                )
            since, received = time.monotonic(), 0


@contextlib.contextmanager
def _answer(
    uri: str,
    method: str,
    *,
    timeout_s: float,
    first_byte_only: bool = False,
    asset: RemoteAsset | None = None,
) -> Generator[HTTPResponse]:
    """The final answer after redirects, its body unread; errors of HTTP and of the network as errors of our tree."""
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request

    _check_web(uri)
    # Bytes as they are: what is compressed on the way has another length, and a weak ETag at best.
    headers = {"User-Agent": "begat", "Accept-Encoding": "identity", "Cache-Control": "no-cache"}
    if first_byte_only:
        headers["Range"] = "bytes=0-0"
    request = Request(quote(uri, safe=_URI_CHARACTERS), headers=headers, method=method)
    try:
        response: HTTPResponse = _opener().open(request, timeout=timeout_s)
    except HTTPError as error:
        if error.code != 416 or not first_byte_only:  # 416: an empty file has no first byte
            with error:
                raise _refused(uri, error.code, asset) from error
        response = error  # pyright: ignore[reportAssignmentType] - it is a response as well
    except (OSError, HTTPException, UnicodeError) as error:
        raise Unavailable(
            f"{_shown(uri)} cannot be reached: {_reason(error)}; nothing was changed. Try again"
        ) from error
    with response:
        yield response


def _opener() -> OpenerDirector:
    from urllib.request import HTTPRedirectHandler, Request, build_opener

    class Redirects(HTTPRedirectHandler):
        """Follows to http and https only, never from https to http, and asks in the same way as before."""

        max_redirections = MAX_REDIRECTS

        def redirect_request(
            self, req: Request, fp: object, code: int, msg: str, headers: object, newurl: str
        ) -> Request | None:
            if not _is_web(newurl) or (
                req.type == "https" and not newurl.lower().startswith("https:")
            ):
                return None  # urllib then ends with the redirect itself as an error
            # urllib turns a HEAD into a GET here before Python 3.13.
            return Request(
                quote(newurl, safe=_URI_CHARACTERS),
                headers=req.headers,
                method=req.get_method(),
            )

    return build_opener(Redirects)


def _refused(uri: str, status: int, asset: RemoteAsset | None) -> BegatError:
    if status in (404, 410):
        if asset is not None:
            return _changed(asset, f"it is not there any more (HTTP {status})")
        return BadInput(f"{_shown(uri)} is not there (HTTP {status}); nothing was stored")
    if 300 <= status < 400:
        return BadInput(
            f"{_shown(uri)} redirects in circles, or to what is not followed (HTTP {status}); nothing was stored"
        )
    if status in (401, 403, 407):
        return AccessDenied(
            f"{_shown(uri)} may not be read without a login (HTTP {status}); nothing was changed"
        )
    return Unavailable(
        f"{_shown(uri)} answers with HTTP {status}; nothing was changed. Try again later"
    )


def _length(response: HTTPResponse) -> int | None:
    value = response.headers.get("Content-Length", "")
    if response.headers.get("Transfer-Encoding") or not re.fullmatch(r"[0-9]{1,18}", value):
        return None
    return int(value)


def _mark(response: HTTPResponse) -> str | None:
    for kind, header in (("etag", "ETag"), ("modified", "Last-Modified")):
        value = response.headers.get(header, "").strip()
        if _HEADER_VALUE.match(value):
            return f"{kind}:{value}"
    return None


def _check_mark(asset: RemoteAsset, response: HTTPResponse) -> None:
    if asset.pin is None:
        return
    kind, _, pinned = asset.pin.partition(":")
    header = {"etag": "ETag", "modified": "Last-Modified"}.get(kind)
    if header is None:
        raise BadInput(
            f"{_shown(asset.uri)} is pinned by {kind!r}, which this version of begat cannot check"
        )
    now = response.headers.get(header, "").strip()
    # Weak comparison (RFC 9110, section 8.8.3.2) only where no more was promised from the start.
    is_same = now == pinned or (pinned.startswith("W/") and now == pinned.removeprefix("W/"))
    if not is_same:
        raise _changed(asset, f"its {header} is {now!r}" if now else f"it has no {header}")


# --- both ---


def _check_end(asset: RemoteAsset, size_bytes: int, mark: str | None) -> None:
    if asset.size_bytes is not None and size_bytes != asset.size_bytes:
        raise _changed(asset, f"it has {size_bytes} bytes")
    if asset.pin is not None and mark != asset.pin:
        raise _changed(asset, f"its bytes are {mark}")


def _changed(asset: RemoteAsset, now: str) -> RemoteChanged:
    size = "an unknown number of" if asset.size_bytes is None else str(asset.size_bytes)
    return RemoteChanged(
        f"{_shown(asset.uri)} ({asset.path}) is not what was pinned: now {now}; pinned were {size} bytes, "
        f"{asset.pin or 'no mark'}. Nothing was kept; log a new version to accept the change"
    )


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", error)
    return without_secrets(str(inner) or type(inner).__name__)


def _shown(uri: str) -> str:
    shown = without_secrets(uri)
    return ascii(shown) if len(shown) <= 200 else ascii(shown[:180] + "...")


def _warn(message: str) -> None:
    warn(message)
