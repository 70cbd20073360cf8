"""Imports run one way, and the heavy ones only where they are needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hskstore"
ANYONE = {"errors", "config", "layers", "watch"}
MAY_IMPORT = {
    "store": {"store"},
    "losses": {"losses"},
    "tasks": set(),
    "batch": set(),
    "tokenizers": set(),
    "sources": {"tasks"},
    "data": {"tasks", "sources"},
    "rows": {"data"},
    "select": set(),
    "classifiers": set(),
    "teacher": {"tokenizers", "classifiers"},
    "methods": {"methods", "losses", "batch", "tasks"},
    "loader": {"store", "batch", "rows"},
    "export": {"tokenizers"},
    "students": {"students", "export", "classifiers", "tokenizers"},
    "checkpoint": set(),
    "trainer": {"batch", "checkpoint", "loader", "methods", "classifiers"},
    "evaluate": {"batch", "classifiers", "data", "loader", "rows", "store", "tasks", "tokenizers", "trainer"},
    "distill": {
        "checkpoint",
        "classifiers",
        "evaluate",
        "export",
        "loader",
        "methods",
        "store",
        "tasks",
        "tokenizers",
        "trainer",
    },
    "engines": {"engines"},
}


def imported(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hskstore."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_the_arrows_run_one_way(name: str) -> None:
    modules = list((PACKAGE / name).glob("*.py")) if (PACKAGE / name).is_dir() else [PACKAGE / f"{name}.py"]
    for module in modules:
        assert imported(module) <= MAY_IMPORT[name] | ANYONE, module


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("hskstore.store", ["torch", "transformers", "datasets"]),
        ("hskstore.cli", ["torch", "transformers", "datasets", "zarr", "numpy"]),
        ("hskstore.show", ["torch", "transformers"]),
        ("hskstore.data", ["torch", "transformers", "datasets"]),
    ],
)
def test_heavy_libraries_are_not_imported_by(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_losses_import_torch_alone() -> None:
    for module in (PACKAGE / "losses").glob("*.py"):
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert roots <= {"torch", "jaxtyping", "hskstore"}, module
