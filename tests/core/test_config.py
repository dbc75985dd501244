"""Which store and cache are meant, and what is kept out of sight."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from begat.config import (
    DEFAULT_CACHE_BYTES,
    cache_directory,
    cache_limit_bytes,
    find_store,
    has_secret,
    is_secret_name,
    parse_size,
    without_secrets,
)
from begat.errors import BadInput, BegatWarning, StoreUnavailable

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away"
)


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No store is named in the environment."""
    monkeypatch.delenv("BEGAT_STORE")
    return monkeypatch


# --- which store ---


def test_a_given_path_wins(tmp_path: Path) -> None:
    found = find_store(tmp_path / "mine")
    assert found.path == tmp_path / "mine"
    assert found.why == "given"


def test_a_relative_path_is_made_absolute() -> None:
    assert find_store("some/store").path == Path.cwd() / "some/store"


def test_a_tilde_is_the_home_folder() -> None:
    assert find_store("~/store").path == Path.home() / "store"


def test_a_file_url_is_decoded() -> None:
    assert find_store("file:///data/a%20b/%C3%BC").path == Path("/data/a b/ü")
    assert find_store("FILE://localhost/data").path == Path("/data")


@pytest.mark.parametrize(
    "url", ["file://elsewhere/data", "file://data", "file:///a?b", "file:///a%00b", "", "a\0b"]
)
def test_an_address_that_is_no_path_is_refused(url: str) -> None:
    with pytest.raises(BadInput):
        find_store(url)


@pytest.mark.parametrize("url", ["postgresql://host/db", "s3://bucket/prefix", "https://host/"])
def test_a_store_of_another_kind_is_unavailable_and_says_so(url: str) -> None:
    with pytest.raises(
        StoreUnavailable, match=r"postgresql:// and s3:// stores are not supported by this version"
    ):
        find_store(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@host/db",
        "s3://bucket?token=hunter2",
        "postgresql://u:hunter2/x@host/db",
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_shown(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput) as caught:
        find_store(url)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("BEGAT_STORE", url)
    with pytest.raises(BadInput) as caught:
        find_store()
    assert "hunter2" not in str(caught.value)


def test_the_environment_comes_before_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".begat").mkdir()
    monkeypatch.setenv("BEGAT_STORE", str(tmp_path / "named"))
    found = find_store(start=tmp_path)
    assert found.path == tmp_path / "named"
    assert found.why == "BEGAT_STORE"


@pytest.mark.usefixtures("unset")
def test_the_nearest_store_above_the_working_folder_is_found(tmp_path: Path) -> None:
    deep = tmp_path / "a/b/c"
    deep.mkdir(parents=True)
    (tmp_path / ".begat").mkdir()
    (tmp_path / "a/.begat").mkdir()
    assert find_store(start=deep).path == tmp_path / "a/.begat"


def test_the_search_looks_into_the_home_folder_and_no_further(
    tmp_path: Path, unset: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "home/work"
    work.mkdir(parents=True)
    unset.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / ".begat").mkdir()
    assert find_store(start=work).path == tmp_path / "home/.local/share/begat/store"
    (tmp_path / "home/.begat").mkdir()
    assert find_store(start=work).path == tmp_path / "home/.begat"


@pytest.mark.usefixtures("unset")
def test_a_file_called_like_a_store_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/.begat").touch()
    (tmp_path / ".begat").mkdir()
    assert find_store(start=tmp_path / "a").path == tmp_path / ".begat"


@needs_root
@pytest.mark.usefixtures("unset")
def test_a_store_that_somebody_else_put_in_the_way_is_not_used_and_named(tmp_path: Path) -> None:
    planted = tmp_path / ".begat"
    planted.mkdir()
    os.chown(planted, 12345, 12345)
    with pytest.warns(BegatWarning, match=str(planted)):
        found = find_store(start=tmp_path)
    assert found.path == Path.home() / ".local/share/begat/store"


@needs_root
@pytest.mark.usefixtures("unset")
def test_a_link_that_somebody_else_made_is_not_followed_to_a_store(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "work").mkdir()
    (tmp_path / "work/.begat").symlink_to(tmp_path / "real")
    os.lchown(tmp_path / "work/.begat", 12345, 12345)
    with pytest.warns(BegatWarning):
        assert find_store(start=tmp_path / "work").path != tmp_path / "work/.begat"


@needs_root
@pytest.mark.usefixtures("unset")
def test_the_search_stops_at_a_folder_of_somebody_else(tmp_path: Path) -> None:
    work = tmp_path / "theirs/mine"
    work.mkdir(parents=True)
    (tmp_path / ".begat").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    assert find_store(start=work).path == Path.home() / ".local/share/begat/store"


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="needs another file system")
def test_the_search_stops_where_the_file_system_ends(unset: pytest.MonkeyPatch) -> None:
    # /proc/self/fdinfo is on another file system than /, which may well hold a .begat of somebody.
    unset.setattr(Path, "is_dir", lambda self: str(self) == "/.begat")
    assert (
        find_store(start=Path("/proc/self/fdinfo")).path == Path.home() / ".local/share/begat/store"
    )


@pytest.mark.usefixtures("unset")
def test_a_working_folder_that_was_removed_is_no_reason_to_fail(tmp_path: Path) -> None:
    code = "import os; os.rmdir(os.getcwd()); from begat.config import find_store; print(find_store().why)"
    gone = tmp_path / "gone"
    gone.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        cwd=gone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "data folder" in done.stdout


@pytest.mark.usefixtures("unset")
def test_otherwise_the_store_is_in_the_users_data_folder() -> None:
    found = find_store()
    assert found.path == Path.home() / ".local/share/begat/store"
    assert "data folder" in found.why


def test_a_path_of_bytes_is_misuse() -> None:
    with pytest.raises(TypeError):
        find_store(b"store")  # type: ignore[arg-type]


# --- the cache ---


def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("BEGAT_CACHE", str(tmp_path / "c"))
    assert cache_directory() == tmp_path / "c"
    monkeypatch.delenv("BEGAT_CACHE")
    assert cache_directory() == Path.home() / ".cache/begat"


def test_the_cache_may_grow_as_far_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_limit_bytes() == DEFAULT_CACHE_BYTES == 20_000_000_000
    monkeypatch.setenv("BEGAT_CACHE_SIZE", "1.5 GiB")
    assert cache_limit_bytes() == 3 * 2**29
    monkeypatch.setenv("BEGAT_CACHE_SIZE", "lots")
    with pytest.raises(BadInput, match="BEGAT_CACHE_SIZE is 'lots'"):
        cache_limit_bytes()


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", 1000),
        ("2 KB", 2000),
        ("1KiB", 1024),
        ("20GB", 20 * 10**9),
        (" 3 tib ", 3 * 2**40),
    ],
)
def test_a_size_is_read_with_its_unit(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "GB", "1 XB", "1iB", "1e9", "nan", "1GB2", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        parse_size(text)


# --- secrets ---

SECRET = [
    *(
        "https://me@host/x",
        "https://me:word@host/x",
        "postgresql://u:p/w@h/d",
        "http://h:80@evil/",
        "s3://k:s@b",
    ),
    *(
        "https://h/x?sig=1",
        "https://h/x?a=1&X-Amz-Signature=2",
        "https://h/x?access_token=3",
        "https://h/?key=A",
    ),
    *(
        "https://h/?X-Goog-Credential=a",
        "https://h/?%74oken=a",
        "https://h/#token=a",
        "https://h/?client_secret=a",
    ),
    "https://h/hf_" + "a" * 34,
]
NOT_SECRET = [
    *(
        "https://host/x",
        "https://host:8080/img@2x.png",
        "file:///data/a@b",
        "hf://datasets/me/x@v1",
        "s3://bucket/a:b@c",
    ),
    *(
        "https://h/?page=2&sort=asc",
        "https://h/token/signature",
        "s3://b/k?versionId=x",
        "https://h/?max_token=5",
    ),
]


@pytest.mark.parametrize("uri", SECRET)
def test_a_secret_in_a_uri_is_seen_and_masked(uri: str) -> None:
    assert has_secret(uri)
    assert not has_secret(without_secrets(uri).replace("***@", "").replace("=***", ""))


@pytest.mark.parametrize("uri", NOT_SECRET)
def test_an_ordinary_uri_is_not_taken_for_one_with_a_secret(uri: str) -> None:
    assert not has_secret(uri)
    assert without_secrets(uri) == uri


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            "could not reach https://me:word@host:80/x?sig=ab&n=1",
            "could not reach https://***@host:80/x?sig=***&n=1",
        ),
        ("mysql --password hunter2 --host h", "mysql --password *** --host h"),
        ('{"api_key": "abc", "lr": 0.1}', '{"api_key": ***, "lr": 0.1}'),
        (
            "AWS_SECRET_ACCESS_KEY=abc/def+g= AWS_REGION=eu",
            "AWS_SECRET_ACCESS_KEY=*** AWS_REGION=eu",
        ),
        ("error: password=hunter2", "error: password=***"),
        ("Authorization: Bearer abc.def", "Authorization: ***"),
        ("logged in with ghp_" + "a1" * 18, "logged in with ***"),
        (
            "'digits:v9' does not exist; the newest is digits:v7",
            "'digits:v9' does not exist; the newest is digits:v7",
        ),
        (
            "lr=0.1, tokens=512, tokenizer: bert, max_token=7",
            "lr=0.1, tokens=512, tokenizer: bert, max_token=7",
        ),
    ],
)
def test_secrets_in_text_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert without_secrets(text) == masked


@pytest.mark.parametrize(
    "name",
    [
        "--password",
        "--api-key",
        "HF_TOKEN",
        "X-Amz-Signature",
        "db.password",
        "clientSecret",
        "AWS_ACCESS_KEY_ID",
    ],
)
def test_the_name_of_a_secret_is_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name", ["--lr", "--pad-token", "tokenizer", "config", "keys", "monkey", "author", "passes"]
)
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "piece", ["a", "a:", "://", "x://a:", "?a=", "--a ", "a=", "eyJaaaaaaaa.", "@", "key="]
)
def test_long_text_is_masked_in_no_time(piece: str) -> None:
    started = time.perf_counter()
    without_secrets(piece * (100_000 // len(piece)))
    assert time.perf_counter() - started < 3
