"""Read and write `digits`, `digits:v3`, `digits:best`, `digits:1.4.0`, `digits@b3:9f31c0`, `begat://digits:v3/a.csv`.

`digits:v3/a.csv`, as lists and messages name a file, is the same as with `begat://`: a version has no `/` in it.

Parsed by hand: a URL library would decode, lower-case or drop parts of what was typed.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec
from msgspec.structs import replace

from begat.errors import AliasReserved, BadName, BadReference
from begat.paths import check_path

MAX_NAME = 255
MAX_LABEL = 128
SCHEME = "begat://"
MIN_DIGEST_PREFIX = 6

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_LABEL = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,127}\Z")
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")
_NUMBER = re.compile(r"v([0-9]+)\Z")
_SCHEME_OF_OTHERS = re.compile(r"[^:@/]*://")
_DIGITS = frozenset("0123456789")
_DIGEST = re.compile(r"b3:([0-9a-f]{6,64})\Z")
# The expression that semver.org suggests for SemVer 2.0.0.
_SEMVER = re.compile(
    r"(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)"
    r"(?:-((?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*))*))?"
    r"(?:\+([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?\Z"
)

Kind = Literal["latest", "number", "alias", "semver", "digest"]
Bump = Literal["major", "minor", "patch"]


class Reference(msgspec.Struct, frozen=True):
    """Which version of which artifact, as a user says it.

    `value` is the text of the selector: `v3`, `best`, `1.4.0`, `b3:9f31c0`, or `latest`. `path` is the file inside
    the version, if one was named.
    """

    name: str
    kind: Kind
    value: str
    path: str | None = None

    @property
    def number(self) -> int:
        """3 for `digits:v3`; only where `kind` is "number"."""
        return int(self.value[1:])

    @property
    def is_pinned(self) -> bool:
        """True if it can never mean another version (a number, a label or a digest)."""
        return self.kind in ("number", "semver", "digest")

    def __str__(self) -> str:
        joint = "@" if self.kind == "digest" else ":"
        text = f"{self.name}{joint}{self.value}"
        return text if self.path is None else f"{SCHEME}{text}/{self.path}"


def parse_reference(text: object) -> Reference:
    """`"digits:v3"` -> `Reference("digits", "number", "v3")`; raises `BadReference` that says what to write."""
    if not isinstance(text, str):
        raise TypeError(f"a reference is text such as 'digits:v3', not {type(text).__name__}")
    if not text.startswith(SCHEME) and _SCHEME_OF_OTHERS.match(text):
        raise _bad(text, f"only {SCHEME} is known as a scheme")
    body, path = _split_path(text)
    name, joint, selector = _split_selector(body)
    _check_reference_name(text, name)
    if not joint:
        return Reference(name, "latest", "latest", path)
    if joint == "@":
        return Reference(name, "digest", _digest_prefix(text, selector), path)
    kind, value = _selector(text, name, selector)
    return Reference(name, kind, value, path)


def parse_version_reference(text: object) -> Reference:
    """As `parse_reference`, where a version is asked for as a whole: a path in it is `BadReference`, not ignored."""
    found = parse_reference(text)
    if found.path is None:
        return found
    whole = str(replace(found, path=None))
    raise BadReference(
        f"{_shown(str(text))} names one file, and a version is asked for here; nothing was recorded. Write {whole!r}, "
        f"and read the file with version.open({_shown(found.path)}), or give the path to begat get"
    )


def check_name(name: object, *, what: str = "an artifact's name") -> str:
    """The name itself if it may name an artifact; else `BadName`.

    Segments of letters, digits and `._-`, joined by `/`; the first character of each is a letter or a digit.
    """
    if not isinstance(name, str):
        raise TypeError(f"{what} is text, not {type(name).__name__}")
    problem = _name_problem(name)
    if problem:
        fitting = "/".join(filter(None, (_fitting(each) for each in name.split("/"))))
        would_do = "" if _name_problem(fitting) else _would_do(name, fitting)
        raise BadName(f"{_shown(name)} cannot be {what}: {problem}; nothing was stored{would_do}")
    return name


def check_type(text: object) -> str:
    """The type itself if it is a word that may be one (`dataset`, `model`); else `BadName`."""
    if not isinstance(text, str):
        raise TypeError(f"an artifact's type is text, not {type(text).__name__}")
    if not _LABEL.match(text):
        raise BadName(
            f"{_shown(text)} cannot be a type: a letter, then letters, digits and ._- (128 at most); nothing was stored"
        )
    return text


def check_alias(text: object) -> str:
    """The alias itself if users may move it; else `BadName`, or `AliasReserved` for `latest`."""
    label = _check_label(text, "an alias")
    if label.lower() == "latest":
        raise AliasReserved(
            f"{label!r} cannot be set: 'latest' is always the highest version that is not deleted. Nothing was changed"
        )
    return label


def check_tag(text: object) -> str:
    """The tag itself if it may be one; else `BadName`."""
    label = _check_label(text, "a tag")
    if label.lower() == "latest":
        raise BadName(
            f"{label!r} cannot be a tag: 'latest' has a meaning of its own; nothing was stored"
        )
    return label


def _check_label(text: object, what: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{what} is text, not {type(text).__name__}")
    if not _LABEL.match(text):
        fitting = _fitting(text).lstrip("0123456789._-")
        would_do = _would_do(text, fitting)
        raise BadName(
            f"{_shown(text)} cannot be {what}: a letter, then letters, digits and ._- (128 at most); nothing was "
            f"stored{would_do}"
        )
    if re.match(r"[vV][0-9]+\Z", text):
        raise BadName(
            f"{text!r} cannot be {what}: it reads as a version number; nothing was stored"
        )
    return text


# --- SemVer ---


class SemVer(msgspec.Struct, frozen=True):
    """A label of Semantic Versioning 2.0.0, ordered by its section 11.

    Build metadata, which has no precedence there, only orders labels that are equal otherwise.
    """

    major: int
    minor: int
    patch: int
    prerelease: str = ""
    build: str = ""

    @classmethod
    def parse(cls, text: object) -> SemVer:
        """`"1.4.0-rc.1"` -> `SemVer(1, 4, 0, "rc.1")`; raises `BadName` that names the nearest label."""
        if not isinstance(text, str):
            raise TypeError(f"a version label is text such as '1.4.0', not {type(text).__name__}")
        found = _SEMVER.match(text)
        if len(text) > MAX_LABEL:
            raise BadName(
                f"{_shown(text)} is not a SemVer label: it has {len(text)} characters, {MAX_LABEL} are allowed. "
                "Nothing was stored"
            )
        if not found:
            nearest = nearest_semver(text)
            advice = f"did you mean {nearest!r}?" if nearest else "write it as 1.4.0."
            raise BadName(f"{_shown(text)} is not a SemVer label; {advice} Nothing was stored")
        major, minor, patch, prerelease, build = found.groups()
        return cls(int(major), int(minor), int(patch), prerelease or "", build or "")

    def bump(self, part: Bump) -> SemVer:
        """The next label: `1.4.2`, "minor" -> `1.5.0`; a pre-release is released (`2.0.0-rc.1`, "major" -> `2.0.0`)."""
        if part == "major":
            is_waiting = self.prerelease and not self.minor and not self.patch
            return SemVer(self.major if is_waiting else self.major + 1, 0, 0)
        if part == "minor":
            return SemVer(
                self.major, self.minor if self.prerelease and not self.patch else self.minor + 1, 0
            )
        if part == "patch":
            return SemVer(self.major, self.minor, self.patch if self.prerelease else self.patch + 1)
        raise TypeError(f"bump is 'major', 'minor' or 'patch', not {part!r}")

    def __str__(self) -> str:
        text = f"{self.major}.{self.minor}.{self.patch}"
        text += f"-{self.prerelease}" if self.prerelease else ""
        return text + (f"+{self.build}" if self.build else "")

    def __lt__(self, other: SemVer) -> bool:
        return self._precedence() < other._precedence()

    def __le__(self, other: SemVer) -> bool:
        return self._precedence() <= other._precedence()

    def __gt__(self, other: SemVer) -> bool:
        return self._precedence() > other._precedence()

    def __ge__(self, other: SemVer) -> bool:
        return self._precedence() >= other._precedence()

    def _precedence(self) -> tuple[object, ...]:
        identifiers = [
            (0, int(part), "") if part.isdigit() else (1, 0, part)
            for part in self.prerelease.split(".")
            if part
        ]
        return (self.major, self.minor, self.patch, not self.prerelease, identifiers, self.build)


def nearest_semver(text: str) -> str | None:
    """The SemVer label that was probably meant: `1.4` -> `1.4.0`, `v1.2.3` -> `1.2.3`, `01.2.0` -> `1.2.0`."""
    if text[:1] in ("v", "V") and _SEMVER.match(text[1:]):
        return text[1:]
    # Ten digits at most: Python refuses to turn thousands of them into a number.
    found = re.match(r"[vV]?([0-9]{1,10})(?:\.([0-9]{1,10}))?(?:\.([0-9]{1,10}))?(?![0-9])", text)
    if not found:
        return None
    return ".".join(str(int(part or "0")) for part in found.groups())


# --- the parts of a reference ---


def _split_path(text: str) -> tuple[str, str | None]:
    body = text.removeprefix(SCHEME)
    found = re.match(r"([^:@]*)([:@](?:b3:)?[^/]*)?(/.*)?\Z", body, re.DOTALL)
    if found is None or (not body and text):
        raise _bad(text, "write begat://digits:v3/train.parquet")
    name, selector, rest = found.groups()
    if rest is None:
        return body, None
    if selector is None or rest == "/":
        raise _bad(text, "a path needs the version part before it and cannot be empty")
    return name + selector, check_path(rest[1:])


def _split_selector(body: str) -> tuple[str, str, str]:
    at = min((body.find(mark) for mark in ":@" if mark in body), default=-1)
    return (body, "", "") if at < 0 else (body[:at], body[at], body[at + 1 :])


def _check_reference_name(text: str, name: str) -> None:
    problem = _name_problem(name)
    if problem:
        raise _bad(text, f"{_shown(name)} cannot be an artifact's name: {problem}")


def _fitting(text: str) -> str:
    """The text with what no name may hold replaced: `my data (new)` -> `my-data-new`; may be empty."""
    return _NOT_IN_A_NAME.sub("-", text).strip("._-")[:MAX_LABEL]


def _would_do(text: str, fitting: str) -> str:
    # Not of what is shown in part, as it may hold a secret.
    return f". {fitting!r} would do" if fitting and _shown(text) == repr(text) else ""


def _name_problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} characters, {MAX_NAME} are allowed"
    for segment in name.split("/"):
        if not _SEGMENT.match(segment):
            return (
                f"the segment {segment!r} must begin with a letter or digit and hold only letters, digits and ._- "
                "(128 at most)"
            )
    return None


def _digest_prefix(text: str, selector: str) -> str:
    if not _DIGEST.match(selector):
        raise _bad(
            text,
            f"a digest is 'b3:' and at least {MIN_DIGEST_PREFIX} lower-case hexadecimal digits",
        )
    return selector


def _selector(text: str, name: str, selector: str) -> tuple[Kind, str]:
    if selector == "latest":
        return "latest", selector
    if selector.lower() == "latest":
        raise _bad(text, f"write {name}:latest")
    number = _NUMBER.match(selector.lower())
    if number:
        if len(selector) > 10:
            raise _bad(text, "no version has a number of more than nine digits")
        value = int(number.group(1))
        if selector != f"v{value}" or value < 1:
            raise _bad(text, f"version numbers count from v1; write {name}:v{max(value, 1)}")
        return "number", selector
    if selector[:1] in _DIGITS:
        return "semver", _semver_selector(text, name, selector)
    if not _LABEL.match(selector):
        raise _bad(
            text, f"after ':' comes v3, latest, an alias or a SemVer label, not {selector!r}"
        )
    return "alias", selector


def _semver_selector(text: str, name: str, selector: str) -> str:
    if len(selector) > MAX_LABEL:
        raise _bad(text, f"a SemVer label has {MAX_LABEL} characters at most")
    if _SEMVER.match(selector):
        return selector
    nearest = nearest_semver(selector)
    if nearest and "." not in selector:
        nearest = f"v{max(int(nearest.split('.')[0]), 1)}"
    advice = f"did you mean {name}:{nearest}?" if nearest else f"write {name}:1.4.0"
    raise _bad(text, f"{selector!r} is not a SemVer label; {advice}")


def _bad(text: str, problem: str) -> BadReference:
    return BadReference(f"{_shown(text)} is not a reference: {problem}")


def _shown(text: str) -> str:
    """The text as a message may show it: not too long, and no password or signature of a URI that is not ours."""
    if "://" in text and not text.startswith(SCHEME):
        return repr(f"{text.partition('://')[0][:20]}://...")
    return repr(text if len(text) <= 120 else text[:100] + "...")
