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
    "spool": set(),
    "sources": {"spool", "tasks"},
    "data": {"sources", "spool", "tasks"},
    "rows": {"data", "spool"},
    "select": set(),
    "pruned_bert": set(),
    "pruning": {"pruned_bert"},
    "classifiers": {"export", "pruned_bert"},
    "teacher": {"tokenizers", "classifiers"},
    "methods": {"methods", "losses", "batch", "tasks"},
    "memory": set(),
    "retokenise": {"data", "memory", "rows", "store"},
    "loader": {"batch", "memory", "retokenise", "rows", "store"},
    "feed": {"batch", "loader", "memory", "store"},
    "learner": {"batch", "classifiers", "pruning"},
    "dropout": set(),
    "processes": set(),
    "journal": {"checkpoint"},
    "export": {"tokenizers"},
    "students": {
        "batch",
        "classifiers",
        "data",
        "export",
        "feed",
        "loader",
        "methods",
        "planning",
        "pruned_bert",
        "pruning",
        "rows",
        "students",
        "teacher",
        "tokenizers",
    },
    "checkpoint": set(),
    "onnx": {"classifiers", "export", "tokenizers"},
    "trainer": {"checkpoint", "classifiers", "dropout", "feed", "journal", "learner", "methods", "processes"},
    "evaluate": {
        "batch",
        "classifiers",
        "data",
        "export",
        "journal",
        "learner",
        "loader",
        "onnx",
        "rows",
        "store",
        "tasks",
        "tokenizers",
    },
    "anatomy": {"classifiers", "evaluate", "loader", "store"},
    "distill": {
        "checkpoint",
        "classifiers",
        "evaluate",
        "export",
        "feed",
        "learner",
        "loader",
        "methods",
        "processes",
        "pruned_bert",
        "pruning",
        "store",
        "tasks",
        "tokenizers",
        "trainer",
    },
    "engines": {"engines"},
    "planning": {"classifiers", "data", "rows", "store", "tasks", "teacher", "tokenizers"},
    "jobs": {"store"},
    "teacher_pass": {"rows", "select", "store", "teacher"},
    "worker": {"classifiers", "jobs", "memory", "rows", "store", "teacher", "teacher_pass"},
    "replay": {"classifiers", "rows", "store", "teacher", "teacher_pass"},
    "extract": {"classifiers", "engines", "jobs", "planning", "rows", "sizes", "store", "worker"},
    "calibration": {"rows", "store", "teacher", "teacher_pass", "worker"},
    "sizes": {"rows", "store"},
    "forecast": {"calibration", "classifiers", "jobs", "planning", "sizes", "store", "worker"},
    "finetune": {
        "checkpoint",
        "classifiers",
        "data",
        "evaluate",
        "export",
        "feed",
        "learner",
        "loader",
        "methods",
        "processes",
        "rows",
        "tokenizers",
        "trainer",
    },
    "show": {"store", "tokenizers"},
    "demo": {"distill", "evaluate", "export", "extract", "finetune", "methods", "show"},
    "console": set(),
    "progress": {"console"},
    "cli": {"cli"},
}


def imported(module: Path) -> set[str]:
    """The hskstore modules that a file imports at its top; what a function imports when it runs is not an arrow."""
    found: set[str] = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "hskstore":
            found |= {alias.name for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hskstore."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hskstore.")}
    return found


def test_every_module_has_its_place() -> None:
    modules = {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if not path.name.startswith("__")}
    assert modules == MAY_IMPORT.keys() | ANYONE


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


def test_help_imports_nothing_heavy() -> None:
    """The command itself, not only its module: what main does before a command counts too."""
    code = (
        "import sys; sys.argv = ['hsk', '--help']; import hskstore.cli\n"
        "try: hskstore.cli.main()\n"
        "except SystemExit: pass\n"
        "print([name for name in ('numpy', 'zarr', 'torch', 'transformers', 'datasets') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


def test_losses_import_torch_alone() -> None:
    for module in (PACKAGE / "losses").glob("*.py"):
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert roots <= {"torch", "jaxtyping", "hskstore", "typing"}, module
