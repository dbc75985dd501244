"""The wheel holds every file of both source roots, under the names people import, and nothing else."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
PACKAGES = [
    ROOT / name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(folder),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_every_integration_in_the_tree_is_listed() -> None:
    found = {path for path in (ROOT / "integrations").iterdir() if path.name.startswith("begat_")}
    assert {*found, ROOT / "core" / "begat"} == set(PACKAGES)


def test_the_wheel_holds_every_source_file_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == expected


def test_each_package_says_that_it_is_typed(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    for package in PACKAGES:
        assert {f"{package.name}/__init__.py", f"{package.name}/py.typed"} <= packed


def test_the_licence_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_every_dependency_is_pinned_for_development() -> None:
    pinned = set(
        re.findall(r"^([a-z0-9-]+)==", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    )
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[\[<>=]", requirement)[0] for requirement in wanted} - {"begat"}
    assert names
    assert names - pinned == set()


def test_the_floors_are_those_that_are_tested() -> None:
    """What pyproject.toml promises at the least is what `make test-floors` installs."""
    text = (ROOT / "constraints-floors.txt").read_text("utf-8")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", text, re.MULTILINE))
    extras = PROJECT["project"]["optional-dependencies"]
    promised = [*PROJECT["project"]["dependencies"]]
    promised += [
        each for name, group in extras.items() if name not in ("test", "dev") for each in group
    ]
    floors = {
        name: floor
        for each in promised
        for name, floor in re.findall(r"^([a-z0-9-]+)>=([0-9.]+)", each)
        if name != "torch"  # see there
    }
    assert floors
    for name, floor in floors.items():
        assert pinned[name] == floor + ".0" * (2 - floor.count(".")), name
