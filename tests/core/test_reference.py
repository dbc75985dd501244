"""References in every form they may have, and what is said to those that have none."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from begat.errors import AliasReserved, BadInput, BadName, BadPath, BadReference
from begat.reference import (
    Reference,
    SemVer,
    check_alias,
    check_name,
    check_tag,
    check_type,
    nearest_semver,
    parse_reference,
)

HEX = "9f31c0" + "0" * 58
FORMS = {
    "digits": Reference("digits", "latest", "latest"),
    "digits:latest": Reference("digits", "latest", "latest"),
    "digits:v3": Reference("digits", "number", "v3"),
    "digits:v123456789": Reference("digits", "number", "v123456789"),
    "digits:best": Reference("digits", "alias", "best"),
    "digits:Best-2.x_y": Reference("digits", "alias", "Best-2.x_y"),
    "digits:v": Reference("digits", "alias", "v"),
    "digits:v3a": Reference("digits", "alias", "v3a"),
    "digits:vv3": Reference("digits", "alias", "vv3"),
    "digits:latest2": Reference("digits", "alias", "latest2"),
    "digits:1.4.0": Reference("digits", "semver", "1.4.0"),
    "digits:0.0.0": Reference("digits", "semver", "0.0.0"),
    "digits:1.4.0-rc.1+build.5": Reference("digits", "semver", "1.4.0-rc.1+build.5"),
    "digits@b3:9f31c0": Reference("digits", "digest", "b3:9f31c0"),
    f"digits@b3:{HEX}": Reference("digits", "digest", f"b3:{HEX}"),
    "vision/resnet": Reference("vision/resnet", "latest", "latest"),
    "vision/resnet:v3": Reference("vision/resnet", "number", "v3"),
    "a/b/c@b3:9f31c0": Reference("a/b/c", "digest", "b3:9f31c0"),
    "1": Reference("1", "latest", "latest"),
    "v3": Reference("v3", "latest", "latest"),
    "digits:v3/train.parquet": Reference("digits", "number", "v3", "train.parquet"),
    "vision/resnet:best/a/b c.pt": Reference("vision/resnet", "alias", "best", "a/b c.pt"),
    "digits@b3:9f31c0/a": Reference("digits", "digest", "b3:9f31c0", "a"),
    "digits:1.4.0+b/x/aa:b@c": Reference("digits", "semver", "1.4.0+b", "x/aa:b@c"),
    "begat://digits": Reference("digits", "latest", "latest"),
    "begat://vision/resnet": Reference("vision/resnet", "latest", "latest"),
    "begat://digits:v3": Reference("digits", "number", "v3"),
    "begat://digits:v3/train.parquet": Reference("digits", "number", "v3", "train.parquet"),
    "begat://vision/resnet:best/a/b c.pt": Reference("vision/resnet", "alias", "best", "a/b c.pt"),
    "begat://digits:latest/a": Reference("digits", "latest", "latest", "a"),
    "begat://digits:1.4.0+b/a": Reference("digits", "semver", "1.4.0+b", "a"),
    "begat://digits@b3:9f31c0/a": Reference("digits", "digest", "b3:9f31c0", "a"),
    # What a URL library would take apart or decode is part of the path.
    "begat://digits:v3/a%20b?c=d#e": Reference("digits", "number", "v3", "a%20b?c=d#e"),
    "begat://digits:v3/x/aa:b@c": Reference("digits", "number", "v3", "x/aa:b@c"),
}


@pytest.mark.parametrize("text", FORMS)
def test_a_reference_is_read(text: str) -> None:
    assert parse_reference(text) == FORMS[text]


# Each with a part of what must be said.
MALFORMED = {
    "": "it is empty",
    ":v3": "it is empty",
    "@b3:9f31c0": "it is empty",
    "digits:": "after ':' comes",
    "digits@": "at least 6 lower-case hexadecimal",
    "digits:V3": "write digits:v3",
    "digits:v0": "write digits:v1",
    "digits:v03": "write digits:v3",
    "digits:v00": "write digits:v1",
    "digits:v1234567890123": "nine digits",
    "digits:v" + "9" * 5000: "nine digits",
    "digits:3": "did you mean digits:v3?",
    "digits:0": "did you mean digits:v1?",
    "digits:007": "did you mean digits:v7?",
    "digits:1.4": "did you mean digits:1.4.0?",
    "digits:01.4.0": "did you mean digits:1.4.0?",
    "digits:1.4.0.1": "did you mean digits:1.4.0?",
    "digits:1.4.0-": "did you mean digits:1.4.0?",
    "digits:1.4.x": "did you mean digits:1.4.0?",
    "digits:" + "9" * 5000: "128 characters",
    "digits:1.0.0-" + "a" * 200: "128 characters",
    "digits:99999999999": "write digits:1.4.0",
    "digits:\u00b2": "after ':' comes",  # digits to Python, not to anybody else
    "digits:\u0663": "after ':' comes",
    "digits:v\u0663": "after ':' comes",
    "digits:Latest": "write digits:latest",
    "digits:LATEST": "write digits:latest",
    "digits:-best": "after ':' comes",
    "digits:be st": "after ':' comes",
    "digits:best\n": "after ':' comes",
    "digits:v3\n": "after ':' comes",
    "digits:best:v3": "after ':' comes",
    "digits:v3@b3:9f31c0": "after ':' comes",
    "digits:b3:9f31c0": "after ':' comes",
    "digits:V3/a.csv": "write digits:v3",
    "digits/a.csv:v3/": "a path needs the version part",
    "digits:" + "a" * 129: "after ':' comes",
    "digits@b3:9f31c": "at least 6",
    "digits@b3:9F31C0": "lower-case",
    "digits@b3:9f31cg": "hexadecimal",
    "digits@9f31c0": "'b3:'",
    "digits@sha256:9f31c0": "'b3:'",
    "digits@best": "'b3:'",
    f"digits@b3:{HEX}0": "'b3:'",
    " digits": "cannot be an artifact's name",
    "digits ": "cannot be an artifact's name",
    "digits\n": "cannot be an artifact's name",
    "-digits": "must begin with a letter or digit",
    ".digits": "must begin with a letter or digit",
    "../digits": "must begin with a letter or digit",
    "a/../b": "must begin with a letter or digit",
    "/digits": "the segment ''",
    "digits/": "the segment ''",
    "a//b": "the segment ''",
    "dig\\its": "cannot be an artifact's name",
    "naïve": "cannot be an artifact's name",
    "a" * 129: "128 at most",
    "a/" * 127 + "ab": "256 characters",
    "digits:v3/": "a path needs the version part",
    ":v3/a": "it is empty",
    "begat://": "write begat://digits:v3/train.parquet",
    "begat://:v3/a": "it is empty",
    "begat://digits:v3/": "a path needs the version part",
    "begat://digits/": "the segment ''",
    "BEGAT://digits": "only begat:// is known",
    "s3://bucket/key": "only begat:// is known",
    "https://example.org/digits:v3": "only begat:// is known",
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: ascii(text)[:40])
def test_a_malformed_reference_is_told_what_to_write(text: str) -> None:
    with pytest.raises(BadReference) as caught:
        parse_reference(text)
    message = str(caught.value)
    assert MALFORMED[text] in message
    assert message.isprintable()
    assert len(message) < 600


@pytest.mark.parametrize("path", ["../x", "a//b", "/a", "a/", "a\x00", "a\\b", "C:x", "."])
def test_a_hostile_path_in_a_uri_is_refused(path: str) -> None:
    with pytest.raises(BadPath):
        parse_reference(f"begat://digits:v3/{path}")
    with pytest.raises(BadPath):
        parse_reference(f"digits:v3/{path}")


@pytest.mark.parametrize("value", [None, 3, b"digits", ["digits"]])
def test_what_is_not_text_is_a_mistake_of_the_programmer(value: object) -> None:
    for parse in (parse_reference, check_name, check_type, check_alias, check_tag, SemVer.parse):
        with pytest.raises(TypeError):
            parse(value)


@pytest.mark.parametrize("act", [parse_reference, check_name, check_type, check_alias, check_tag])
def test_a_secret_in_a_uri_is_not_repeated(act: object) -> None:
    assert callable(act)
    with pytest.raises(BadInput) as caught:
        act("https://user:hunter2@example.org/x?sig=hunter3")
    assert "hunter" not in str(caught.value)


NAMES = st.from_regex(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}(/[A-Za-z0-9][A-Za-z0-9._-]{0,9}){0,3}", fullmatch=True
)
NUMBERS = st.integers(0, 10**6)
IDENTIFIERS = st.one_of(
    st.integers(0, 99).map(str), st.from_regex(r"[a-z-][0-9a-z-]{0,4}", fullmatch=True)
)
DOTTED = st.lists(IDENTIFIERS, max_size=3).map(".".join)
SEMVERS = st.builds(SemVer, NUMBERS, NUMBERS, NUMBERS, DOTTED, DOTTED)
ALIASES = st.from_regex(r"[a-u][A-Za-z0-9._-]{0,9}", fullmatch=True).filter(
    lambda a: a.lower() != "latest"
)
PATHS = st.lists(
    st.from_regex(r"[a-zé:@%?#& -]{3,6}", fullmatch=True).map(lambda s: "ab" + s),
    min_size=1,
    max_size=3,
)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    selectors = {
        "latest": st.just("latest"),
        "number": st.integers(1, 10**9 - 1).map("v{}".format),
        "alias": ALIASES,
        "semver": SEMVERS.map(str),
        "digest": st.text("0123456789abcdef", min_size=6, max_size=64).map("b3:{}".format),
    }
    kind = draw(st.sampled_from(["latest", "number", "alias", "semver", "digest"]))
    path = draw(st.none() | PATHS.map("/".join))
    return Reference(draw(NAMES), kind, draw(selectors[kind]), path)  # type: ignore[arg-type]


@given(references())
def test_a_reference_is_read_as_it_is_written(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference


@given(st.text(st.sampled_from("ab3:@/.v19-+\n begt²"), max_size=30) | st.text(max_size=20))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except BadInput:
        return
    assert parse_reference(str(reference)) == reference


def test_a_number_is_read_from_a_reference() -> None:
    assert parse_reference("digits:v12").number == 12


@pytest.mark.parametrize(
    ("text", "is_pinned"),
    [("d", False), ("d:best", False), ("d:v1", True), ("d:1.0.0", True), ("d@b3:9f31c0", True)],
)
def test_numbers_labels_and_digests_are_pinned(text: str, is_pinned: bool) -> None:
    assert parse_reference(text).is_pinned is is_pinned


# --- names, types, aliases, tags ---


@pytest.mark.parametrize(
    "name", ["a", "7", "a/b", "A.b_c-d", "a" * 128, "/".join(["a" * 63] * 4), "v3", "latest"]
)
def test_a_good_name_is_kept(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *[
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/..",
            ".a",
            "-a",
            "_a",
            "a b",
            "a:b",
            "a@b",
            "a\\b",
            "a\n",
        ],
        "é",
        "a" * 129,
    ],
)
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(BadName, match="nothing was stored"):
        check_name(name)


@pytest.mark.parametrize("text", ["dataset", "model", "Model-2", "a" * 128, "v3"])
def test_a_type_is_any_word(text: str) -> None:
    assert check_type(text) == text


@pytest.mark.parametrize("text", ["", "2d", "a b", "a/b", "-a", "a:b", "a\n", "é", "a" * 129])
def test_what_is_no_word_is_no_type(text: str) -> None:
    with pytest.raises(BadName):
        check_type(text)


@pytest.mark.parametrize("check", [check_alias, check_tag])
@pytest.mark.parametrize(
    "label", ["best", "prod", "A", "v", "vx3", "v3.1", "v3-best", "a._-9", "a" * 128]
)
def test_a_good_label_is_kept(check: object, label: str) -> None:
    assert callable(check)
    assert check(label) == label


@pytest.mark.parametrize("check", [check_alias, check_tag])
@pytest.mark.parametrize(
    "label",
    [
        *[
            "",
            "1",
            "1.4.0",
            "3a",
            "v3",
            "V3",
            "v03",
            "a b",
            "a/b",
            "a:b",
            "-a",
            ".a",
            "a\n",
            "é",
            "²",
        ],
        "a" * 129,
    ],
)
def test_a_bad_label_is_refused(check: object, label: str) -> None:
    assert callable(check)
    with pytest.raises(BadName):
        check(label)


@pytest.mark.parametrize("label", ["latest", "Latest", "LATEST"])
def test_latest_is_reserved(label: str) -> None:
    with pytest.raises(AliasReserved):
        check_alias(label)
    with pytest.raises(BadName):
        check_tag(label)


@given(ALIASES)
def test_every_alias_can_be_referred_to(alias: str) -> None:
    assert parse_reference(f"digits:{check_alias(alias)}") == Reference("digits", "alias", alias)


# --- SemVer ---

# Section 11 of the specification, in rising order.
PRECEDENCE = [
    *["0.0.0-0", "0.0.0", "0.0.1", "0.1.0", "0.9.10", "0.10.0"],
    *[
        "1.0.0-0",
        "1.0.0-2",
        "1.0.0-10",
        "1.0.0--",
        "1.0.0-10a",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.1.0",
    ],
    *[
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-beta.11",
        "1.0.0-rc.1",
        "1.0.0",
        "2.0.0",
        "2.1.0",
    ],
    *["2.1.1", "10.0.0"],
]


def test_labels_are_ordered_by_section_11() -> None:
    for lower, higher in itertools.combinations(map(SemVer.parse, PRECEDENCE), 2):
        assert lower < higher
        assert not higher < lower


@given(SEMVERS, SEMVERS, SEMVERS)
def test_the_order_is_total(a: SemVer, b: SemVer, c: SemVer) -> None:
    assert (a < b) + (a == b) + (b < a) == 1
    if a <= b <= c:
        assert a <= c


@given(SEMVERS)
def test_a_label_is_read_as_it_is_written(label: SemVer) -> None:
    assert SemVer.parse(str(label)) == label


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        *[
            ("1", "1.0.0"),
            ("1.4", "1.4.0"),
            ("v1.2.3", "1.2.3"),
            ("V1.2", "1.2.0"),
            ("01.2.0", "1.2.0"),
        ],
        *[
            ("v1.2.3-rc.1", "1.2.3-rc.1"),
            ("1.2.3.4", "1.2.3"),
            ("1.2.x", "1.2.0"),
            ("1.2.3-01", "1.2.3"),
        ],
        *[("best", None), ("", None), ("-1", None), ("²", None), ("9" * 5000, None)],
    ],
)
def test_the_nearest_label_is_found(text: str, nearest: str | None) -> None:
    assert nearest_semver(text) == nearest
    if nearest:
        assert SemVer.parse(nearest)


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "1",
            "1.2",
            "v1.2.3",
            "01.2.3",
            "1.02.3",
            "1.2.03",
            "1.2.3-",
            "1.2.3-01",
            "1.2.3+",
            "1.2.3-a..b",
            "1.2.3+a_b",
        ],
        *[
            " 1.2.3",
            "1.2.3 ",
            "1.2.3\n",
            "-1.2.3",
            "1.2.3-é",
            "²",
            "١.٢.٣",
            "1.2.3-" + "a" * 123,
            "9" * 5000,
        ],
    ],
    ids=lambda text: ascii(text)[:30],
)
def test_a_malformed_label_is_refused_with_advice(text: str) -> None:
    with pytest.raises(BadName, match="Nothing was stored") as caught:
        SemVer.parse(text)
    assert any(
        advice in str(caught.value)
        for advice in ("did you mean '", "write it as 1.4.0. ", "are allowed")
    )


@pytest.mark.parametrize(
    ("text", "part", "bumped"),
    [
        *[("1.4.2", "patch", "1.4.3"), ("1.4.2", "minor", "1.5.0"), ("1.4.2", "major", "2.0.0")],
        *[("0.0.0", "patch", "0.0.1"), ("1.4.2+b", "patch", "1.4.3"), ("1.9.9", "minor", "1.10.0")],
        # A pre-release is released by the bump that it waits for, as npm does it.
        *[
            ("2.0.0-rc.1", "major", "2.0.0"),
            ("2.0.0-rc.1", "minor", "2.0.0"),
            ("2.0.0-rc.1", "patch", "2.0.0"),
        ],
        *[
            ("1.5.0-rc.1", "major", "2.0.0"),
            ("1.5.0-rc.1", "minor", "1.5.0"),
            ("1.5.1-rc.1", "minor", "1.6.0"),
        ],
        *[("1.5.1-rc.1", "patch", "1.5.1"), ("1.5.1-rc.1", "major", "2.0.0")],
    ],
)
def test_a_label_is_bumped(text: str, part: str, bumped: str) -> None:
    assert str(SemVer.parse(text).bump(part)) == bumped  # type: ignore[arg-type]


@given(SEMVERS, st.sampled_from(["major", "minor", "patch"]))
def test_a_bump_is_higher_and_released(label: SemVer, part: str) -> None:
    bumped = label.bump(part)  # type: ignore[arg-type]
    assert (bumped.major, bumped.minor, bumped.patch, not bumped.prerelease) > (
        label.major,
        label.minor,
        label.patch,
        not label.prerelease,
    )
    assert not bumped.prerelease
    assert not bumped.build


def test_an_unknown_bump_is_a_mistake_of_the_programmer() -> None:
    with pytest.raises(TypeError):
        SemVer(1, 0, 0).bump("huge")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "fitting"),
    [("my data (new)", "my-data-new"), ("_a/b c/", "a/b-c")],
)
def test_a_name_that_cannot_be_is_told_with_one_that_would_do(name: str, fitting: str) -> None:
    with pytest.raises(BadName, match=f"'{fitting}' would do"):
        check_name(name)
    assert check_name(fitting) == fitting


def test_where_nothing_is_left_of_a_name_none_is_told() -> None:
    for check in (check_name, check_alias):
        with pytest.raises(BadName) as caught:
            check("???")
        assert "would do" not in str(caught.value)
    with pytest.raises(BadName, match="'best-model' would do"):
        check_alias("2 best model")
