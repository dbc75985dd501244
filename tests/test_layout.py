"""What the source itself must keep to, read from its syntax: nothing stored is executed, one module writes files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "core" / "begat").rglob("*.py"))
PRODUCT = [*CORE, *sorted((ROOT / "integrations").rglob("*.py"))]

MOST_LINES = 500
MOST_FUNCTION_LINES_P95 = 45

# --- what the core never does: run what it reads ---

EXECUTING_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve", "_pickle"}
EXECUTING_NAMES = {
    *("eval", "exec", "compile", "__import__"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("shutil.unpack_archive", "runpy.run_path", "runpy.run_module"),
}
EXECUTING_METHODS = {"extractall"}

# --- what only `files` and `folders` do: write ---

WRITING_MODULES = {"shutil", "tempfile"}
READING_NAMES = {
    "shutil.disk_usage",
    "shutil.get_terminal_size",
    "shutil.which",
    "tempfile.gettempdir",
}
WRITING_NAMES = {
    "fcntl.ioctl",  # reflinks
    *(
        f"os.{name}"
        for name in (
            *(
                "open",
                "write",
                "writev",
                "pwrite",
                "pwritev",
                "sendfile",
                "copy_file_range",
                "splice",
            ),
            *(
                "truncate",
                "ftruncate",
                "posix_fallocate",
                "fsync",
                "fdatasync",
                "sync",
                "memfd_create",
            ),
            *("rename", "renames", "replace", "link", "symlink", "unlink", "remove", "removedirs"),
            *("mkdir", "makedirs", "rmdir", "mkfifo", "mknod", "setxattr", "removexattr", "utime"),
            *("chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "chflags", "lchflags"),
        )
    ),
}
# Of pathlib.Path; an object cannot be told by its syntax, so these names are for files only, everywhere.
WRITING_METHODS = {
    *("write_text", "write_bytes", "mkdir", "rmdir", "unlink", "touch", "chmod", "lchmod"),
    *("symlink_to", "hardlink_to", "copy_into", "move_into"),
}
# Each takes the mode as its second argument; reading is free.
OPENERS = {
    *("open", "io.open", "io.FileIO", "codecs.open", "os.fdopen"),
    *("gzip.open", "bz2.open", "lzma.open", "tarfile.open", "zipfile.ZipFile"),
}


class Reader(ast.NodeVisitor):
    """Collects what a module does that it should not; names are followed through imports and their aliases."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.imported: dict[str, str] = {}
        self.executes: list[tuple[int, str]] = []
        self.writes: list[tuple[int, str]] = []

    def visit_Import(self, node: ast.Import) -> None:
        for name in node.names:
            top = name.name.partition(".")[0]
            self.imported[name.asname or top] = name.name if name.asname else top
            self._see_module(node, name.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = node.module or ""
        if node.level:  # relative: seen from the package that this module lies in
            package = self.module.split(".")[: -node.level]
            source = ".".join([*package, *source.split(".")] if source else package)
        self._see_module(node, source)
        for name in node.names:
            full = f"{source}.{name.name}"
            self.imported[name.asname or name.name] = full
            self._see_name(node, full)
            if name.name == "*" and source in {"os", "io", "pathlib", *WRITING_MODULES}:
                self.writes.append((node.lineno, f"from {source} import *"))

    def visit_Name(self, node: ast.Name) -> None:
        self._see_name(node, self._dotted(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._dotted(node)
        self._see_name(node, name)
        if node.attr in EXECUTING_METHODS:
            self.executes.append((node.lineno, f".{node.attr}"))
        if node.attr in WRITING_METHODS and not name.startswith("begat.files."):
            self.writes.append((node.lineno, f".{node.attr}"))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._dotted(node.func)
        # typer's function gives the text of a script for the shell of that name, and runs none.
        for keyword in node.keywords if name != "typer.completion.get_completion_script" else ():
            if keyword.arg == "shell" and getattr(keyword.value, "value", True) is not False:
                self.executes.append((node.lineno, "shell="))
        if name in OPENERS:
            self._see_mode(node, name, 1)
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "open":
            self._see_mode(node, ".open", 0, only_modes=True)  # Path.open(mode)
        elif isinstance(node.func, ast.Attribute) and node.func.attr in {"rename", "replace"}:
            # Of a Path they take one argument. With two they belong to str or to folders.Folder, with keywords to
            # dataclasses and datetime.
            alone = len(node.args) == 1 and not node.keywords
            if alone and not name.startswith("begat.files."):
                self.writes.append((node.lineno, f".{node.func.attr}(target)"))
        self.generic_visit(node)

    def _dotted(self, node: ast.expr) -> str:
        """The full name of what an expression names (`o.replace` after `import os as o`: os.replace), or ''."""
        if isinstance(node, ast.Name):
            return self.imported.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (owner := self._dotted(node.value)):
            return f"{owner}.{node.attr}"
        return ""

    def _see_module(self, node: ast.stmt, name: str) -> None:
        if name.partition(".")[0] in EXECUTING_MODULES:
            self.executes.append((node.lineno, f"import {name}"))

    def _see_name(self, node: ast.stmt | ast.expr, name: str) -> None:
        if name in EXECUTING_NAMES:
            self.executes.append((node.lineno, name))
        if name in WRITING_NAMES or (
            name.partition(".")[0] in WRITING_MODULES and "." in name and name not in READING_NAMES
        ):
            self.writes.append((node.lineno, name))

    def _see_mode(self, node: ast.Call, name: str, at: int, *, only_modes: bool = False) -> None:
        given = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
        given += node.args[at : at + 1]
        if not given:
            return
        mode = given[0].value if isinstance(given[0], ast.Constant) else None
        if isinstance(mode, str):
            if set(mode) & set("wax+") and (not only_modes or set(mode) <= set("rwaxbt+")):
                self.writes.append((node.lineno, f"{name} with mode {mode!r}"))
        elif not only_modes:  # a mode that is not written out may be any
            self.writes.append((node.lineno, f"{name} with a mode that is not a literal"))


def read(source: str, module: str = "begat.planted") -> Reader:
    reader = Reader(module)
    reader.visit(ast.parse(source))
    return reader


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "core").with_suffix("").parts)


def places(paths: list[Path], kind: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for path in paths
        for line, what in getattr(read(path.read_text("utf-8"), module_name(path)), kind)
    ]


# --- the rules ---


def test_there_is_something_to_read() -> None:
    assert ROOT / "core" / "begat" / "files.py" in CORE


def test_the_core_never_executes_what_it_stores() -> None:
    assert places(CORE, "executes") == []


def test_only_files_writes_to_the_file_system() -> None:
    others = [path for path in CORE if module_name(path) not in {"begat.files", "begat.folders"}]
    assert places(others, "writes") == []


def test_files_itself_is_seen_to_write() -> None:
    # Else the rule above would pass by seeing nothing at all.
    seen = {what for _, what in read((ROOT / "core/begat/files.py").read_text("utf-8")).writes}
    assert {"os.open", "os.fsync"} <= seen


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    assert too_long({path.name: path.read_text("utf-8") for path in PRODUCT}) == []


def test_most_functions_of_the_core_fit_on_a_screen() -> None:
    lengths = sorted(
        length for path in CORE for length in function_lengths(path.read_text("utf-8"))
    )
    assert lengths
    assert lengths[int(len(lengths) * 0.95)] <= MOST_FUNCTION_LINES_P95


def too_long(sources: dict[str, str]) -> list[str]:
    return [name for name, text in sources.items() if len(text.splitlines()) > MOST_LINES]


def function_lengths(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


# --- and that each rule sees what it is for ---


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "import pickle as p",
        "from pickle import loads",
        "def later():\n    import marshal",
        "import shelve",
        "from joblib import load",
        "eval('1')",
        "run = exec",
        "compile('1', 'x', 'eval')",
        "import os; os.system('ls')",
        "import os as o; o.popen('ls')",
        "from os import system as s",
        "import yaml; yaml.load(text)",
        "from yaml import unsafe_load",
        "import subprocess; subprocess.run('ls', shell=True)",
        "import subprocess; subprocess.run('ls', shell=wanted)",
        "archive.extractall(folder)",
        "import shutil; shutil.unpack_archive(a, b)",
    ],
)
def test_execution_is_noticed(planted: str) -> None:
    assert read(planted).executes


@pytest.mark.parametrize(
    "planted",
    [
        "open(path, 'w')",
        "open(path, mode='ab')",
        "open(path, 'r+b')",
        "open(path, mode)",
        "import io; io.open(path, 'x')",
        "import gzip; gzip.open(path, 'wb')",
        "import zipfile; zipfile.ZipFile(path, 'a')",
        "import os; os.open(path, os.O_RDONLY)",
        "import os; os.fdopen(fd, 'wb')",
        "import os as o; o.replace(a, b)",
        "from os import rename as move",
        "import os; step = os.unlink",
        "import os; os.mkdir(path)",
        "import os; os.symlink(a, b)",
        "import os; os.link(a, b)",
        "import os; os.rmdir(path)",
        "import os; os.chmod(path, 0o444)",
        "import os; os.utime(path)",
        "import os; os.truncate(path, 0)",
        "import os; os.write(fd, b'')",
        "from os import *",
        "import shutil; shutil.rmtree(path)",
        "from shutil import copyfile",
        "import tempfile; tempfile.mkdtemp()",
        "import tempfile as t; t.NamedTemporaryFile()",
        "path.write_text('x')",
        "(root / name).write_bytes(b'x')",
        "path.mkdir(parents=True)",
        "path.unlink(missing_ok=True)",
        "path.rename(other)",
        "path.replace(other)",
        "path.touch()",
        "path.symlink_to(other)",
        "path.hardlink_to(other)",
        "path.chmod(0o444)",
        "path.open('w')",
        "path.open(mode='x')",
        "remove = path.unlink",
    ],
)
def test_writing_is_noticed(planted: str) -> None:
    assert read(planted).writes


@pytest.mark.parametrize(
    "harmless",
    [
        "open(path)",
        "open(path, 'rb')",
        "open(path, 'r', encoding='utf-8')",
        "path.open('rb')",
        "version.open('weights.bin')",
        "import os; os.stat(path); os.scandir(path); os.read(fd, 1); os.close(fd)",
        "import shutil; shutil.disk_usage(path)",
        "name.replace('a', 'b')",
        "folder.rename('a', 'b')",
        "import dataclasses; dataclasses.replace(entry, path='x')",
        "from dataclasses import replace; replace(entry)",
        "moment.replace(tzinfo=None)",
        "from begat import files; files.rename(a, b)",
        "from begat import files; files.replace(a)",
        "from . import files; files.unlink(a)",
        "from begat.files import rename; rename(a, b)",
        "import subprocess; subprocess.run(['git'], shell=False)",
        "import re; re.compile('x')",
    ],
)
def test_reading_and_calling_files_are_free(harmless: str) -> None:
    reader = read(harmless)
    assert reader.writes == []
    assert reader.executes == []


def test_a_long_file_is_noticed() -> None:
    assert too_long({"a.py": "x\n" * MOST_LINES, "b.py": "x\n" * (MOST_LINES + 1)}) == ["b.py"]


def test_a_long_function_is_noticed() -> None:
    assert list(function_lengths("def f():\n" + "    x\n" * 99)) == [100]
