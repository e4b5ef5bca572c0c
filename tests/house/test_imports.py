"""Nothing imports the agent; spool and sdk need only Python; modules stay one idea each."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = ("spool", "sdk", "agent", "systemd")
MAY_IMPORT = {"spool": {"spool"}, "sdk": {"sdk", "spool"}, "agent": {"agent", "sdk", "spool", "systemd"}, "systemd": {"systemd"}}
# What functions of the SDK may import when the user's process has it already, or asked for such an object.
LAZY = {"sdk": {"numpy", "pandas", "torch", "plotly", "matplotlib", "psutil", "keyring"}, "spool": set()}
LINES = 600


def modules(root: Path) -> Iterator[tuple[str, Path, ast.Module]]:
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            yield room, path, ast.parse(path.read_text(), str(path))


def imports(tree: ast.Module, path: Path, root: Path) -> Iterator[tuple[str, bool]]:
    """Yield (absolute module name, whether it is imported as soon as the module is)."""
    package = ["simspool", *path.relative_to(root).parent.parts]
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for n in ast.walk(f)}
    typing_only = {
        id(n) for b in ast.walk(tree) if isinstance(b, ast.If) and "TYPE_CHECKING" in ast.unparse(b.test) for n in ast.walk(b)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{stem}.{a.name}" for a in node.names] if stem in {"simspool", ""} else [stem]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def test_imports_go_one_way(root: Path) -> None:
    wrong = [
        f"{path.relative_to(root)} imports {name}"
        for room, path, tree in modules(root)
        for name, _ in imports(tree, path, root)
        if name.startswith("simspool.") and name.split(".")[1] not in MAY_IMPORT[room]
    ]
    assert wrong == []


def test_spool_and_sdk_need_only_python(root: Path) -> None:
    wrong = []
    for room, path, tree in modules(root):
        if room in LAZY:
            for name, at_once in imports(tree, path, root):
                top = name.split(".")[0]
                if top != "simspool" and top not in sys.stdlib_module_names and (at_once or top not in LAZY[room]):
                    wrong.append(f"{path.relative_to(root)} imports {name}")
    assert wrong == []


@pytest.mark.parametrize("module", ["simspool.spool", "simspool.sdk"])
def test_importing_loads_no_third_party_module(module: str) -> None:
    program = (
        f"import sys; before = set(sys.modules); import {module}\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'simspool'}\n"
        "assert not new, new\n"
        "assert 'asyncio' not in sys.modules and 'http' not in sys.modules, 'too much is loaded'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_simspool_is_a_namespace() -> None:
    """No `simspool/__init__.py`: other distributions may add rooms."""
    import simspool

    assert getattr(simspool, "__file__", None) is None


@pytest.mark.parametrize("name", ["simspool.spool", "simspool.sdk"])
def test_public_names_exist_and_are_documented(name: str) -> None:
    module = importlib.import_module(name)
    public = [n for n in vars(module) if not n.startswith("_") and getattr(vars(module)[n], "__module__", "").startswith("simspool")]
    assert len(module.__all__) == len(set(module.__all__))
    for exported in module.__all__:
        assert hasattr(module, exported), exported
        if callable(getattr(module, exported)):
            assert getattr(module, exported).__doc__, f"{name}.{exported} has no docstring"
    assert set(public) <= set(module.__all__), f"{name} has public names that __all__ does not list"


def test_modules_are_one_idea(root: Path) -> None:
    too_long = {str(p.relative_to(root)): n for _, p, _ in modules(root) if (n := len(p.read_text().splitlines())) > LINES}
    assert too_long == {}
    vague = [str(p.relative_to(root)) for _, p, _ in modules(root) if p.stem in {"utils", "util", "helpers", "misc", "common"}]
    assert vague == []
    undocumented = [str(p.relative_to(root)) for _, p, tree in modules(root) if ast.get_docstring(tree) is None]
    assert undocumented == []


# Renaming, syncing and deleting have one home, spool/atomic.py. The exceptions are listed, with what they do it to.
_CALLS = ("rename", "replace", "fsync", "fdatasync", "unlink", "remove", "rmdir", "removedirs", "rmtree", "move")
_DANGEROUS = re.compile(rf"\b(?:os|shutil)\.({'|'.join(_CALLS)})\(|\.(unlink|rmdir)\(")
EXCEPTIONS: dict[str, set[str]] = {
    "spool/atomic.py": {"rename", "fsync", "unlink"},
    "spool/segment.py": {"rename", "fsync"},  # a segment's descriptor, in the order of W4 and W5
    "spool/stream.py": {"fsync", "fdatasync"},  # the durability levels
    "spool/blobs.py": {"rename", "fsync", "unlink"},  # W6
    "sdk/downloads.py": {"replace", "unlink"},  # files in a folder of the user's, no promise of durability
    "agent/bundles/volumes.py": {"fsync"},  # a bundle's files, before it gets its name
    "agent/bundles/writing.py": {"rmdir"},  # the folder of a bundle that was not finished
    "agent/catalog/store.py": {"replace"},  # a damaged index, set aside
    "agent/drain/ranges.py": {"fdatasync"},  # W8: a range before its intent
    "agent/ingest/wake.py": {"unlink"},  # its own socket
    "agent/journal/journal.py": {"rmtree"},  # journal segments that a checkpoint made obsolete
    "agent/relay/folder.py": {"rmdir"},  # a bundle's folder, after its receipt, and those that were given up
    "agent/retention.py": {"rmtree"},  # a pruned run, after its receipts and its journaled prune
    "agent/service/manager.py": {"rmdir"},  # folders of its own in /etc, once they are empty
    "agent/targets/directory_tree.py": {"rename", "fsync", "unlink"},  # a folder of the user's, where links are not followed
    "agent/server/blobstore.py": {"replace", "fsync", "unlink"},  # the server's own blobs
    "agent/server/parts.py": {"fdatasync"},  # each part before it is listed, and the list before the answer
    "agent/server/identity.py": {"replace", "fsync"},  # the server's own token and secret
}


def test_one_place_renames_syncs_and_deletes(root: Path) -> None:
    found: dict[str, set[str]] = {}
    for _, path, _ in modules(root):
        for match in _DANGEROUS.finditer(path.read_text()):
            found.setdefault(str(path.relative_to(root)), set()).add(match[1] or match[2])
    assert {p: calls - EXCEPTIONS.get(p, set()) for p, calls in found.items() if calls - EXCEPTIONS.get(p, set())} == {}


def test_nothing_executes_what_it_reads(root: Path) -> None:
    """No eval, exec, yaml.load, but of one text in the source; pickle only where the user asked for it by name."""
    wrong = []
    for _, path, tree in modules(root):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                is_ours = ast.unparse(node) == "exec('raise KeyboardInterrupt')"
                if called in {"eval", "exec", "yaml.load", "marshal.loads", "os.system"} and not is_ours:
                    wrong.append(f"{path.relative_to(root)}:{node.lineno} calls {called}")
                if called.startswith("pickle.") and path.name != "artifacts.py":
                    wrong.append(f"{path.relative_to(root)}:{node.lineno} calls {called}")
    assert wrong == []


def test_no_two_modules_of_tests_have_one_name(root: Path) -> None:
    """They are imported by their names alone, from one process."""
    found = (path.name for path in (root / "tests").rglob("*.py"))
    names = Counter(name for name in found if not name.startswith("test_") and name not in {"conftest.py", "__init__.py"})
    assert [name for name, count in names.items() if count > 1] == []
