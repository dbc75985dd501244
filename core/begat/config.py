"""Which store and which cache are meant, and why; and what in an address is a secret."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import unquote

import msgspec

from begat.errors import BadInput, StoreUnavailable, warn

STORE_FOLDER = ".begat"
CACHE_VARIABLE = "BEGAT_CACHE"
DEFAULT_CACHE_BYTES = 20 * 10**9
MASK = "***"


# --- the store ---


class StoreLocation(msgspec.Struct, frozen=True):
    """The store's folder, absolute, which may not exist yet; `why` says in a few words how it was chosen."""

    path: Path
    why: str


def find_store(
    url: str | os.PathLike[str] | None = None, *, start: Path | None = None
) -> StoreLocation:
    """The store that is meant: `url`, else $BEGAT_STORE, else the nearest `.begat`, else one in the user's data folder.

    `url` is a path or a file:// URL. The search for `.begat` begins at `start` (default: the working folder) and goes
    up until it has looked into the home folder, or comes to another file system or to a folder of another user.

    Raises `StoreUnavailable` for stores of other kinds and `BadInput` for addresses that are none or hold a secret.
    """
    if url is not None:
        return StoreLocation(_store_path(url, "the store's address"), "given")
    chosen = os.environ.get("BEGAT_STORE")
    if chosen:
        return StoreLocation(_store_path(chosen, "BEGAT_STORE"), "BEGAT_STORE")
    found = _nearest_store(start)
    if found is not None:
        return StoreLocation(found, f"the nearest {STORE_FOLDER} above the working folder")
    # 14 ms, needed here only.
    import platformdirs

    path = Path(platformdirs.user_data_dir("begat", appauthor=False)) / "store"
    return StoreLocation(
        path,
        f"the user's data folder: no BEGAT_STORE, and no {STORE_FOLDER} above the working folder",
    )


def _store_path(url: str | os.PathLike[str], what: str) -> Path:
    text = os.fspath(url)
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a PathLike of bytes
        raise TypeError(f"{what} is text or a path, not bytes")
    if not text or "\0" in text:
        raise BadInput(f"{what} is {text!r}, which is no path; give a folder such as .begat")
    if "://" not in text:
        return Path(os.path.abspath(os.path.expanduser(text)))
    if has_secret(text):
        raise BadInput(
            f"{what} ({without_secrets(text)}) holds a secret; nothing was opened. Addresses are shown and stored: "
            "keep user names, passwords and tokens out of them"
        )
    path = path_of_file_uri(text)
    if path is None:
        raise StoreUnavailable(
            f"{what} is {text!r}, but postgresql:// and s3:// stores are not supported by this version, nor is any "
            "scheme but file://; give a folder on a local disk"
        )
    return path


def _nearest_store(start: Path | None) -> Path | None:
    try:
        folder = Path(os.path.abspath(start or Path.cwd()))
        device = folder.stat().st_dev
    except OSError:  # the working folder was removed
        return None
    home = _home()
    while True:
        try:
            facts = folder.stat()
        except OSError:
            return None
        if facts.st_dev != device:
            return None
        candidate = folder / STORE_FOLDER
        if candidate.is_dir():
            if _is_of_another_user(folder) or _is_of_another_user(candidate):
                warn(
                    f"the store {candidate} was not used: it or its folder belongs to another user. "
                    f"If it is the one you mean, say BEGAT_STORE={candidate}"
                )
                return None
            return candidate
        if folder in (home, folder.parent) or _is_of_another_user(folder):
            return None
        folder = folder.parent


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and the user is in no list of users
        return None


def _is_of_another_user(path: Path) -> bool:
    """Whether somebody else could have put it there: what is looked at is the name, and what it leads to."""
    if sys.platform == "win32":
        return False
    try:
        return {path.stat().st_uid, path.lstat().st_uid} != {os.geteuid()}
    except OSError:
        return True


def path_of_file_uri(uri: str) -> Path | None:
    """`file:///data/a%20b` -> `/data/a b`; None if it is not a file:// URI of this machine."""
    scheme, mark, rest = uri.partition("://")
    if not mark or scheme.lower() != "file":
        return None
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        raise BadInput(
            f"{without_secrets(uri)!r} is not a file of this machine; write file:///folder/file"
        )
    if "?" in path or "#" in path:
        raise BadInput(
            f"{without_secrets(uri)!r} has a '?' or '#', which in a file:// URI is written %3F or %23"
        )
    decoded = unquote(path, errors="surrogateescape")
    if "\0" in decoded:
        raise BadInput(f"{uri!r} holds a NUL character, which no path does")
    if sys.platform == "win32":
        return Path(decoded)
    return Path(os.path.abspath("/" + decoded))


# --- compression ---

Compression = Literal["auto", "off", "zstd"]
COMPRESSION_VARIABLE = "BEGAT_COMPRESSION"
_COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)


def compression() -> Compression:
    """How files are compressed when they are stored: $BEGAT_COMPRESSION, else `auto`. Raises `BadInput`.

    `auto` compresses what a probe says will shrink, `off` no file, `zstd` whatever shrinks, at any cost of time. What
    was stored in one way is read in any.
    """
    chosen = os.environ.get(COMPRESSION_VARIABLE) or "auto"
    for known in _COMPRESSIONS:
        if chosen == known:
            return known
    raise BadInput(
        f"{COMPRESSION_VARIABLE} is {chosen!r}; it may be {', '.join(_COMPRESSIONS)}. Nothing was stored"
    )


# --- the cache ---


def cache_directory() -> Path:
    """Where read-only copies of versions are kept: $BEGAT_CACHE, else the user's cache folder. It may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    import platformdirs

    return Path(platformdirs.user_cache_dir("begat", appauthor=False))


def cache_limit_bytes() -> int:
    """How large the cache may grow: $BEGAT_CACHE_SIZE such as `20GB` or `500 MiB`, else 20 GB."""
    chosen = os.environ.get("BEGAT_CACHE_SIZE")
    return parse_size(chosen, what="BEGAT_CACHE_SIZE") if chosen else DEFAULT_CACHE_BYTES


_SIZE = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([kmgtp]?)(i?)b?\s*\Z", re.IGNORECASE)


def parse_size(text: str, *, what: str = "the size") -> int:
    """`"20GB"` -> 20000000000, `"1.5 GiB"` -> 1610612736, `"512"` -> 512; in bytes. Raises `BadInput`."""
    found = _SIZE.match(text)
    if not found or (found[3] and not found[2]):
        raise BadInput(f"{what} is {text!r}, which is no size; write 20GB or 500MiB")
    power = "kmgtp".find(found[2].lower()) + 1 if found[2] else 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


# --- secrets: what must be in no record, message or log ---

# Endings of a name, without its punctuation: api_key, X-Amz-Signature, HF_TOKEN, clientSecret.
_SECRET_ENDINGS = (
    *("token", "secret", "password", "passwd", "passphrase", "passcode", "pwd", "pw"),
    *("signature", "sig", "credential", "credentials", "authorization", "jwt", "apikey"),
    *(
        "accesskey",
        "accesskeyid",
        "secretkey",
        "privatekey",
        "accountkey",
        "authkey",
        "connectionstring",
    ),
)
_SECRET_NAMES = {"key", "auth", "pass", "sas", "awsaccesskeyid", "googleaccessid"}
# In machine learning most tokens are words: --pad-token, --max_token.
_WORD_TOKENS = re.compile(
    r"(?:pad|eos|bos|unk|sep|cls|mask|stop|max|min|num|special|image|start|end|next|per)token\Z"
)
_USER_INFO = re.compile(
    # A password may hold what should have been encoded, so up to the last @; but `host:80/a@2x.png` has none. The
    # limits here and below keep the time for hostile text linear.
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{0,31}://)(?:[^\s/?#@:'\"]{0,256}:(?![0-9]{1,5}[/?#])[^\s'\"]{0,512}"
    r"|[^\s/?#'\"]{0,1024})@"
)
# How a name stands before its value in a query, after an option's dashes and in an assignment; and how values end.
# Two steps, because an ordinary value may hold a secret: "error: password=...", "?next=http://host/?token=...".
_QUERY = re.compile(r"[?&;#](?P<name>[^=&;#\s'\"]{1,200})=")
_OPTION = re.compile(r"(?:^|\s)--?(?P<name>[A-Za-z][\w.-]{0,100})\s+(?=[^\s-])")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_.-]{0,100})['\"]?\s?[=:]\s?")
_QUERY_VALUE = re.compile(r"[^&;#\s'\"]+")
_OPTION_VALUE = re.compile(r"\S+")
_ASSIGNMENT_VALUE = re.compile(r"\"[^\"]*\"|'[^']*'|(?:Bearer|Basic|Token)\s+\S+|[^\s,;&'\"}]+")
# Shapes that say themselves what they are: GitHub, GitLab, Hugging Face, AWS, Slack, OpenAI and others, JWT, PEM.
_KNOWN_SHAPES = re.compile(
    r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}"
    r"|xox[abeoprs]-[\w-]{10,}|sk-[\w-]{20,}|pypi-[\w-]{40,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+)"
    r"|(?<=PRIVATE KEY-----)[^-]+"
)


def is_secret_name(name: str) -> bool:
    """Whether what is called so should be seen by nobody: `--api-key`, `X-Amz-Signature`, `db.password`, `HF_TOKEN`."""
    plain = re.sub(r"[^a-z0-9]", "", unquote(name).lower())
    last = re.sub(r"[^a-z0-9]", "", re.split(r"[./]", name)[-1].lower())
    if plain in _SECRET_NAMES or last in _SECRET_NAMES:
        return True
    return plain.endswith(_SECRET_ENDINGS) and not _WORD_TOKENS.search(plain)


def has_secret(uri: str) -> bool:
    """Whether a URI holds user info (`https://user:word@host`) or a signature or token in its query."""
    if _USER_INFO.search(uri) or _KNOWN_SHAPES.search(uri):
        return True
    return any(is_secret_name(found["name"]) for found in _QUERY.finditer(uri))


def without_secrets(text: str) -> str:
    """The text with `***` in place of what looks like a password, token, key or signature in it.

    `https://me:word@host/?sig=x` -> `https://***@host/?sig=***`. A net with holes, for text that somebody will read:
    it knows names and well-known shapes, not every secret.
    """
    text = _USER_INFO.sub(rf"\g<scheme>{MASK}@", text)
    text = _KNOWN_SHAPES.sub(MASK, text)
    text = _masked(text, _QUERY, _QUERY_VALUE)
    text = _masked(text, _OPTION, _OPTION_VALUE)
    return _masked(text, _ASSIGNMENT, _ASSIGNMENT_VALUE)


def _masked(text: str, name: re.Pattern[str], value: re.Pattern[str]) -> str:
    pieces: list[str] = []
    at = 0
    for found in name.finditer(text):
        if found.end() >= at and is_secret_name(found["name"]):
            hidden = value.match(text, found.end())
            if hidden:
                pieces += (text[at : found.end()], MASK)
                at = hidden.end()
    return "".join(pieces) + text[at:]
