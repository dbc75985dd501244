"""`http(s)://`: pinned by size and ETag or Last-Modified, with nothing but the standard library."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from begat.config import without_secrets
from begat.errors import (
    AccessDenied,
    BadInput,
    BegatError,
    Unavailable,
)
from begat.model import RemoteAsset
from begat.remote.pinned import changed, check_end, shown

if TYPE_CHECKING:
    from http.client import HTTPResponse
    from urllib.request import OpenerDirector

MAX_REDIRECTS = 10
READ_BYTES = 1 << 20
# A server that sends less than this in the time limit is as good as silent.
LEAST_BYTES = 1024

_URI_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # what stays as it is when the rest is percent-encoded
_HEADER_VALUE = re.compile(r"[\x20-\x7e]{1,1024}\Z")


def is_web(uri: str) -> bool:
    """Whether a URI is one of http or https."""
    return uri.partition("://")[0].lower() in ("http", "https")


def check_web(uri: str) -> None:
    """Raise `BadInput` for a URL that names no host."""
    try:
        parts = urlsplit(uri)
        is_good = (parts.hostname or "").encode("idna") and parts.port != 0
    except ValueError:  # a port that is no number, brackets left open, a label that is too long
        is_good = False
    if not is_good:
        raise BadInput(f"{shown(uri)} names no host that could be asked; nothing was stored")


def ask_web(uri: str, timeout_s: float) -> tuple[int | None, str | None]:
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


def fetch_web(asset: RemoteAsset, write: Callable[[bytes], None], timeout_s: float) -> None:
    """Hand the bytes of what a URL leads to to `write`; `RemoteChanged` if it is not what was pinned."""
    with _answer(asset.uri, "GET", timeout_s=timeout_s, asset=asset) as response:
        length = _length(response)
        if response.status != 200:
            raise _refused(asset.uri, response.status, asset)
        if asset.size_bytes is not None and length not in (None, asset.size_bytes):
            raise changed(asset, f"it has {length} bytes")
        _check_mark(asset, response)
        if (
            length is None
            and asset.size_bytes is None
            and not response.headers.get("Transfer-Encoding")
        ):
            raise Unavailable(
                f"{shown(asset.uri)} has no Content-Length, so that a cut would not be noticed; nothing was kept"
            )
        size_bytes = 0
        for data in _body(response, asset.uri, timeout_s):
            size_bytes += len(data)
            if asset.size_bytes is not None and size_bytes > asset.size_bytes:
                raise changed(asset, "it is longer")
            write(data)
    if length is not None and size_bytes != length:
        raise Unavailable(
            f"{shown(asset.uri)} was cut off after {size_bytes} of {length} bytes; nothing was kept. Try again"
        )
    check_end(asset, size_bytes, asset.pin)


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
                f"{shown(uri)} was cut off: {_reason(error)}; nothing was kept. Try again"
            ) from error
        if not data:
            return
        yield data
        received += len(data)
        if time.monotonic() - since > timeout_s:
            if received < LEAST_BYTES:
                raise Unavailable(
                    f"{shown(uri)} sends less than {LEAST_BYTES} bytes in {timeout_s:g} s; nothing was kept. Try again"
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

    check_web(uri)
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
            f"{shown(uri)} cannot be reached: {_reason(error)}; nothing was changed. Try again"
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
            if not is_web(newurl) or (
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
            return changed(asset, f"it is not there any more (HTTP {status})")
        return BadInput(f"{shown(uri)} is not there (HTTP {status}); nothing was stored")
    if 300 <= status < 400:
        return BadInput(
            f"{shown(uri)} redirects in circles, or to what is not followed (HTTP {status}); nothing was stored"
        )
    if status in (401, 403, 407):
        return AccessDenied(
            f"{shown(uri)} may not be read without a login (HTTP {status}); nothing was changed"
        )
    return Unavailable(
        f"{shown(uri)} answers with HTTP {status}; nothing was changed. Try again later"
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
            f"{shown(asset.uri)} is pinned by {kind!r}, which this version of begat cannot check"
        )
    now = response.headers.get(header, "").strip()
    # Weak comparison (RFC 9110, section 8.8.3.2) only where no more was promised from the start.
    is_same = now == pinned or (pinned.startswith("W/") and now == pinned.removeprefix("W/"))
    if not is_same:
        raise changed(asset, f"its {header} is {now!r}" if now else f"it has no {header}")


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", error)
    return without_secrets(str(inner) or type(inner).__name__)
