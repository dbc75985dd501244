"""Remote assets are pinned, and what changed since is an error and never other bytes."""

import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from blake3 import blake3

from begat.errors import (
    AccessDenied,
    BadInput,
    BadPath,
    BegatWarning,
    LimitExceeded,
    RemoteChanged,
    Unavailable,
    UnsupportedFile,
)
from begat.model import RemoteAsset
from begat.remote import check_uri, fetch, pin

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


def fetched(asset: RemoteAsset, *, timeout_s: float = 5) -> bytes:
    """All bytes of an asset."""
    pieces: list[bytes] = []
    fetch(asset, pieces.append, timeout_s=timeout_s)
    return b"".join(pieces)


# --- a server on this machine ---


@dataclass
class Page:
    """What the server answers for one path."""

    body: bytes = b"0123456789"
    headers: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    status: int = 200
    head_status: int | None = None
    says_length: str | None = ""  # "": the true one; None: not at all
    head_length: str | None = ""
    has_ranges: bool = True
    is_chunked: bool = False
    cut_after: int | None = None
    wait_s: float = 0.0
    piece_wait_s: float = 0.0


class Site:
    """An HTTP server whose pages a test changes while it runs."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}
        self.requests: list[tuple[str, str]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.answer(is_head=True)

            def do_GET(self) -> None:
                self.answer(is_head=False)

            def answer(self, is_head: bool) -> None:
                site.requests.append((self.command, self.path))
                page = site.pages.get(self.path, Page(status=404))
                time.sleep(page.wait_s)
                status = page.head_status if is_head and page.head_status else page.status
                body = page.body
                ranged = None
                if self.headers.get("Range") and page.has_ranges and status == 200:
                    status = 206 if body else 416
                    ranged = f"bytes {'0-0' if body else '*'}/{len(page.body)}"
                    body = body[:1]
                self.send_response(status)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                if ranged:
                    self.send_header("Content-Range", ranged)
                length = page.head_length if is_head else page.says_length
                if page.is_chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                elif length is not None:
                    self.send_header("Content-Length", length or str(len(body)))
                self.send_header("Connection", "close")
                self.end_headers()
                self.close_connection = True
                if not is_head:
                    self.send_body(page, body)

            def send_body(self, page: Page, body: bytes) -> None:
                for at in range(0, len(body), 4):
                    if page.cut_after is not None and at >= page.cut_after:
                        return
                    piece = body[at : at + 4]
                    if page.is_chunked:
                        piece = b"%x\r\n%s\r\n" % (len(piece), piece)
                    try:
                        self.wfile.write(piece)
                        self.wfile.flush()
                    except OSError:  # the client has gone
                        return
                    time.sleep(page.piece_wait_s)
                if page.is_chunked:
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server on the loopback interface, with no page yet; a proxy of the caller's is not asked."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    server = Site()
    yield server
    server.close()


def pinned(site: Site, page: Page) -> RemoteAsset:
    """The asset of a page that is put on the site."""
    site.pages["/data.csv"] = page
    [asset] = pin(f"{site.url}/data.csv", "data.csv", timeout_s=5)
    return asset


# --- URIs ---


@pytest.mark.parametrize(
    "uri",
    [
        *("https://host/a%20b?page=2", "s3://bucket/key", "file:///data/a", "hf://datasets/me/x@v1", "doi:10.5281/z"),
        *("gs://b/ü", "http://[::1]:8080/x", "https://host/token", "az://container/a@b"),
    ],
)  # fmt: skip
def test_any_scheme_may_be_recorded(uri: str) -> None:
    assert check_uri(uri) == uri


@pytest.mark.parametrize(
    "uri",
    [
        *("", "data.csv", "/data/a.csv", "C:\\data", "C:/data", "//host/x", "s3:", "https://", "http:///x", "1a://x"),
        *("https://host:port/", "https://host:99999999/", "https://ho st/", "https://host/a\nb", "https://host/a\0"),
        *("https://host/\u202etxt", "https://host/\ud800", "http://[::1/", "https://" + "a" * 70 + ".org/"),
    ],
)  # fmt: skip
def test_what_is_no_uri_is_refused(uri: str) -> None:
    with pytest.raises(BadInput):
        check_uri(uri)


def test_a_uri_of_absurd_length_is_refused() -> None:
    with pytest.raises(LimitExceeded):
        check_uri("https://host/" + "a" * 9000)


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:hunter2@host/x",
        "s3://b/k?X-Amz-Signature=hunter2",
        "https://host/?token=hunter2",
    ],
)
def test_a_secret_in_a_uri_is_refused_unless_it_is_allowed_and_never_shown(uri: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_uri(uri)
    assert "hunter2" not in str(caught.value)
    assert check_uri(uri, allow_secrets=True) == uri


def test_a_uri_that_is_no_text_is_misuse() -> None:
    with pytest.raises(TypeError):
        check_uri(Path("/data"))  # type: ignore[arg-type]


# --- other schemes ---


def test_another_scheme_is_recorded_with_a_warning_and_cannot_be_fetched() -> None:
    with pytest.warns(BegatWarning, match="not pinned"):
        [asset] = pin("s3://bucket/key", "a/key")
    assert asset == RemoteAsset("a/key", "s3://bucket/key")
    with pytest.raises(BadInput, match=r"fetches file://, http:// and https://"):
        fetched(asset)


def test_without_sync_nobody_is_asked(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pin("https://host.invalid/x", "x", sync=False) == [
            RemoteAsset("x", "https://host.invalid/x")
        ]
        missing = (tmp_path / "missing").as_uri()
        assert pin(missing, "x", sync=False) == [RemoteAsset("x", missing)]


def test_a_path_that_cannot_be_stored_is_refused() -> None:
    with pytest.raises(BadPath):
        pin("s3://bucket/key", "../key")


# --- files ---


def test_a_file_is_pinned_by_size_and_digest_and_read_back(tmp_path: Path) -> None:
    file = tmp_path / "a b ü.bin"
    file.write_bytes(b"x" * 3_000_000)
    [asset] = pin(file.as_uri(), "data/a.bin")
    digest = blake3(b"x" * 3_000_000).hexdigest()
    assert asset == RemoteAsset("data/a.bin", file.as_uri(), 3_000_000, f"b3:{digest}")
    assert fetched(asset) == b"x" * 3_000_000


def test_an_empty_file_is_pinned_too(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    [asset] = pin((tmp_path / "a").as_uri(), "a")
    assert asset.size_bytes == 0
    assert fetched(asset) == b""


@pytest.mark.parametrize("content", [b"other", b"0123456789x", b"", b"012345678X"])
def test_a_file_that_changed_is_an_error_that_names_both(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"0123456789")
    [asset] = pin(file.as_uri(), "a")
    file.write_bytes(content)
    with pytest.raises(RemoteChanged) as caught:
        fetched(asset)
    assert str(asset.pin) in str(caught.value)
    assert f"{len(content)} bytes" in str(caught.value) or blake3(content).hexdigest() in str(
        caught.value
    )


@pytest.mark.parametrize("now", ["nothing", "folder", "pipe"])
def test_a_file_that_is_no_file_any_more_has_changed(tmp_path: Path, now: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x")
    [asset] = pin(file.as_uri(), "a")
    file.unlink()
    if now == "folder":
        file.mkdir()
    elif now == "pipe":
        os.mkfifo(file)
    with pytest.raises(RemoteChanged):
        fetched(asset)


def test_a_folder_gives_one_asset_for_each_file_sorted_by_path(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z", "a.txt", "a/deep/er/x y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty").mkdir()
    assets = pin(tmp_path.as_uri(), "data")
    assert [asset.path for asset in assets] == [
        "data/a.txt",
        "data/a/deep/er/x y",
        "data/a/z",
        "data/b.txt",
    ]
    assert [fetched(asset).decode() for asset in assets] == [
        "a.txt",
        "a/deep/er/x y",
        "a/z",
        "b.txt",
    ]


def test_links_to_files_count_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "real").write_text("real")
    (folder / "link").symlink_to(tmp_path / "real")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling").symlink_to("nowhere")
    os.mkfifo(folder / "pipe")
    (folder / ".git").mkdir()
    (folder / ".git/config").touch()
    with pytest.warns(BegatWarning) as caught:
        assets = pin(folder.as_uri(), "d")
    assert [asset.path for asset in assets] == ["d/link"]
    assert sorted(str(one.message).split(" ")[0].rpartition("/")[2] for one in caught) == [
        *(".git", "dangling", "loop", "pipe")
    ]  # fmt: skip
    assert fetched(assets[0]) == b"real"


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / str(number)).touch()
    assert len(pin(tmp_path.as_uri(), "d", max_objects=4)) == 4
    with pytest.raises(LimitExceeded, match="max_objects"):
        pin(tmp_path.as_uri(), "d", max_objects=3)


def test_a_name_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad-\xff")).touch()
    with pytest.raises(BadPath):
        pin(tmp_path.as_uri(), "d")


def test_what_is_not_there_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("missing", "file/x", "empty"):
        with pytest.raises(BadInput):
            pin((tmp_path / name).as_uri(), "x")
    with pytest.raises(BadInput):
        pin("file://elsewhere/data", "x")


def test_a_special_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name in ("pipe", "socket"):
            with pytest.raises(UnsupportedFile):
                pin((tmp_path / name).as_uri(), "x")


# --- the web ---


def test_a_page_is_pinned_by_size_and_etag_and_read_back(site: Site) -> None:
    asset = pinned(site, Page())
    assert asset == RemoteAsset("data.csv", f"{site.url}/data.csv", 10, 'etag:"one"')
    assert site.requests == [("HEAD", "/data.csv")]
    assert fetched(asset) == b"0123456789"


def test_without_an_etag_the_time_of_the_last_change_is_the_pin(site: Site) -> None:
    asset = pinned(site, Page(headers={"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}))
    assert asset.pin == "modified:Mon, 01 Jan 2024 00:00:00 GMT"
    assert fetched(asset) == b"0123456789"
    site.pages["/data.csv"].headers["Last-Modified"] = "Tue, 02 Jan 2024 00:00:00 GMT"
    with pytest.raises(RemoteChanged, match="Tue, 02 Jan"):
        fetched(asset)


def test_with_neither_only_the_size_is_pinned_and_that_is_said(site: Site) -> None:
    with pytest.warns(BegatWarning, match="change of equal size"):
        asset = pinned(site, Page(headers={}))
    assert (asset.size_bytes, asset.pin) == (10, None)
    assert fetched(asset) == b"0123456789"
    site.pages["/data.csv"].body = b"0123"
    with pytest.raises(RemoteChanged, match="4 bytes"):
        fetched(asset)


@pytest.mark.parametrize(
    "page",
    [
        Page(headers={"ETag": '"two"'}),
        Page(headers={"ETag": 'W/"one"'}),
        Page(headers={}),
        Page(headers={"Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}),
        Page(body=b"0123456789+"),
        Page(body=b"0123"),
        Page(body=b"0123", is_chunked=True),
        Page(body=b"0123456789+", is_chunked=True),
        Page(status=404),
        Page(status=410),
    ],
)
def test_a_page_that_changed_is_an_error_that_names_what_was_pinned(site: Site, page: Page) -> None:
    asset = pinned(site, Page())
    site.pages["/data.csv"] = page
    with pytest.raises(RemoteChanged, match='10 bytes, etag:"one"'):
        fetched(asset)


def test_a_change_that_the_headers_tell_hands_out_no_byte(site: Site) -> None:
    asset = pinned(site, Page())
    site.pages["/data.csv"] = Page(headers={"ETag": '"two"'})
    pieces: list[bytes] = []
    with pytest.raises(RemoteChanged):
        fetch(asset, pieces.append)
    assert pieces == []


def test_a_weak_etag_is_a_pin_and_compared_weakly(site: Site) -> None:
    asset = pinned(site, Page(headers={"ETag": 'W/"one"'}))
    assert asset.pin == 'etag:W/"one"'
    site.pages["/data.csv"].headers["ETag"] = '"one"'
    assert fetched(asset) == b"0123456789"
    site.pages["/data.csv"].headers["ETag"] = 'W/"two"'
    with pytest.raises(RemoteChanged):
        fetched(asset)


@pytest.mark.parametrize(
    "head",
    [{"head_status": 405}, {"head_status": 403}, {"head_length": "0"}, {"head_length": None}],
)
@pytest.mark.parametrize("has_ranges", [True, False])
def test_where_head_says_nothing_useful_the_first_byte_is_asked_for(
    site: Site, head: dict[str, object], has_ranges: bool
) -> None:
    asset = pinned(site, Page(has_ranges=has_ranges, **head))  # type: ignore[arg-type]
    assert (asset.size_bytes, asset.pin) == (10, 'etag:"one"')
    assert [method for method, _ in site.requests] == ["HEAD", "GET"]


@pytest.mark.parametrize("has_ranges", [True, False])
def test_an_empty_page_is_pinned_as_empty(site: Site, has_ranges: bool) -> None:
    asset = pinned(site, Page(body=b"", has_ranges=has_ranges))
    assert asset.size_bytes == 0
    assert fetched(asset) == b""


def test_a_page_in_chunks_has_no_size_and_is_read_whole(site: Site) -> None:
    asset = pinned(site, Page(is_chunked=True, has_ranges=False))
    assert (asset.size_bytes, asset.pin) == (None, 'etag:"one"')
    assert fetched(asset) == b"0123456789"


@pytest.mark.parametrize("is_chunked", [True, False])
def test_a_body_that_is_cut_off_is_an_error(site: Site, is_chunked: bool) -> None:
    asset = pinned(site, Page(is_chunked=is_chunked, cut_after=4))
    with pytest.raises(Unavailable, match="cut off"):
        fetched(asset)


def test_a_cut_that_would_not_be_noticed_is_not_risked(site: Site) -> None:
    asset = pinned(site, Page())
    site.pages["/data.csv"] = Page(says_length=None)
    assert fetched(asset) == b"0123456789"  # the pinned size tells
    unsized = RemoteAsset(asset.path, asset.uri, None, asset.pin)
    with pytest.raises(Unavailable, match="Content-Length"):
        fetched(unsized)


def test_redirects_are_followed_in_the_same_way_as_asked(site: Site) -> None:
    site.pages["/data.csv"] = Page(status=302, headers={"Location": "/a b?x=1"}, body=b"")
    site.pages["/a%20b?x=1"] = Page()
    [asset] = pin(f"{site.url}/data.csv", "data.csv", timeout_s=5)
    assert (asset.size_bytes, asset.pin) == (10, 'etag:"one"')
    assert [method for method, _ in site.requests] == ["HEAD", "HEAD"]
    assert asset.uri == f"{site.url}/data.csv"
    assert fetched(asset) == b"0123456789"


def test_redirects_without_end_are_an_error(site: Site) -> None:
    site.pages["/data.csv"] = Page(status=302, headers={"Location": "/data.csv"}, body=b"")
    with pytest.raises(BadInput, match="302"):
        pin(f"{site.url}/data.csv", "x", timeout_s=5)
    assert len(site.requests) < 25


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://host/x", "gopher://host/"])
def test_a_redirect_leads_to_the_web_only(site: Site, target: str) -> None:
    site.pages["/data.csv"] = Page(status=302, headers={"Location": target}, body=b"")
    with pytest.raises(BadInput, match="not followed"):
        pin(f"{site.url}/data.csv", "x", timeout_s=5)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, BadInput),
        (410, BadInput),
        (401, AccessDenied),
        (403, AccessDenied),
        (429, Unavailable),
        (500, Unavailable),
    ],
)
def test_a_page_that_is_refused_says_what_to_expect(
    site: Site, status: int, error: type[Exception]
) -> None:
    site.pages["/data.csv"] = Page(status=status)
    with pytest.raises(error, match=str(status)):
        pin(f"{site.url}/data.csv", "x", timeout_s=5)


def test_a_part_of_a_page_is_not_taken_for_the_page(site: Site) -> None:
    asset = pinned(site, Page())
    site.pages["/data.csv"] = Page(status=206)
    with pytest.raises(Unavailable):
        fetched(asset)


def test_a_server_that_does_not_answer_is_given_up(site: Site) -> None:
    site.pages["/data.csv"] = Page(wait_s=3)
    started = time.monotonic()
    with pytest.raises(Unavailable):
        pin(f"{site.url}/data.csv", "x", timeout_s=0.2)
    assert time.monotonic() - started < 2.5


def test_a_server_that_stalls_or_drips_is_given_up(site: Site) -> None:
    asset = pinned(site, Page(body=b"0123456789" * 10))
    for piece_wait_s in (3, 0.1):
        site.pages["/data.csv"].piece_wait_s = piece_wait_s
        started = time.monotonic()
        with pytest.raises(Unavailable):
            fetched(asset, timeout_s=0.3)
        assert time.monotonic() - started < 2


def test_a_host_that_is_not_there_is_unavailable_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound and not listening: refused
        with pytest.raises(Unavailable):
            pin(f"http://127.0.0.1:{unused.getsockname()[1]}/x", "x", timeout_s=5)


def test_an_error_of_the_writer_is_not_one_of_the_source(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def gone(data: bytes) -> None:
        raise FileNotFoundError(2, "the destination was removed")

    for asset in (pinned(site, Page()), *pin((tmp_path / "a").as_uri(), "a")):
        with pytest.raises(FileNotFoundError, match="destination"):
            fetch(asset, gone)


def test_a_pin_of_another_version_of_begat_is_not_ignored(site: Site, tmp_path: Path) -> None:
    asset = pinned(site, Page())
    with pytest.raises(BadInput, match="cannot check"):
        fetched(RemoteAsset(asset.path, asset.uri, asset.size_bytes, "crc64:abc"))
    (tmp_path / "a").touch()
    with pytest.raises(RemoteChanged):
        fetched(RemoteAsset("a", (tmp_path / "a").as_uri(), 0, "crc64:abc"))


def test_a_secret_that_was_allowed_is_in_no_message(site: Site) -> None:
    asset = RemoteAsset("x", f"{site.url}/gone?token=hunter2", 1, 'etag:"x"')
    with pytest.raises(RemoteChanged) as caught:
        fetched(asset)
    assert "hunter2" not in str(caught.value)
