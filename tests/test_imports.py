"""Imports run one way, and the heavy ones only where they are needed."""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hskstore"

# A room is a folder of the package, or a file beside them. Everyone may use the ground.
GROUND = {"config", "errors", "interrupts", "layers", "memory", "options", "readable", "version", "watch"}
MAY_IMPORT: dict[str, set[str]] = {
    "text": set(),
    "store": set(),
    "engines": set(),
    "losses": set(),
    "models": {"text"},
    "features": {"text", "store", "models"},
    "methods": {"losses", "text", "store", "models", "features"},
    "stage_one": {"text", "store", "models", "features", "engines"},
    "stage_two": {"text", "store", "models", "features", "methods", "losses"},
    "students": {"text", "models", "methods", "stage_two"},
    "explore": {"text", "store", "models", "features", "methods", "engines", "stage_one", "stage_two", "students"},
    "cli": {"text", "store", "models", "features", "methods", "stage_one", "stage_two", "students", "explore"},
    "pruned_bert": {"models"},
    "__init__": {"store", "features", "stage_one", "stage_two", "explore"},
    "__main__": {"cli"},
}
MOST_LINES = 400


def arrows(package: Path) -> dict[str, set[str]]:
    """Which modules of its own package each module imports, at its top or in a function; all by the path of their files in it.

    What is imported for types alone, below `if TYPE_CHECKING:`, is no arrow. Where `import_module` is used, a string that names a
    module is one.
    """
    files = {
        ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in package.rglob("*.py")
    }
    inside = {name: path.relative_to(package).as_posix() for name, path in files.items()}
    return {inside[name]: {inside[each] for each in imported(path, files.keys())} for name, path in files.items()}


def imported(file: Path, modules: Collection[str]) -> set[str]:
    """Those of the modules that a file imports."""
    text = file.read_text()
    found: set[str] = set()
    for node in run_time_nodes(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}, line {node.lineno}: an import says where from, beginning at the package"
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {inner[name] if inner[name] in modules else str(node.module) for name in inner}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import_module" in text:
            found.add(node.value)
    return found & set(modules)


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it but what only a type checker reads."""
    yield node
    for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    for child in ast.iter_child_nodes(node):
        if not (for_types and isinstance(node, ast.If) and child in node.body):
            yield from run_time_nodes(child)


def room(file: str) -> str:
    return file.partition("/")[0].removesuffix(".py")


ARROWS = arrows(PACKAGE)


def test_every_module_has_its_place() -> None:
    assert {room(file) for file in ARROWS} == MAY_IMPORT.keys() | GROUND


@pytest.mark.parametrize("name", sorted(MAY_IMPORT.keys() | GROUND))
def test_the_arrows_run_one_way(name: str) -> None:
    for file, others in ARROWS.items():
        if room(file) == name:
            assert {room(other) for other in others} <= MAY_IMPORT.get(name, set()) | GROUND | {name}, file


def test_no_file_hides_two() -> None:
    for folder in (PACKAGE, PACKAGE.parent / "pipelines"):
        for file in folder.rglob("*.py"):
            assert len(file.read_text().splitlines()) <= MOST_LINES, file


def test_no_module_imports_itself_by_way_of_others() -> None:
    TopologicalSorter(ARROWS).prepare()


def house(folder: Path, **files: str) -> Path:
    """A package of these modules."""
    package = folder / "house"
    for name, text in {"__init__": "", **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / f"{name}.py").write_text(text)
    return package


@pytest.mark.parametrize(
    "text",
    [
        "from house.cellar import wine",
        "import house.cellar",
        "def drink():\n    from house import cellar",
        "class Guest:\n    def drink(self):\n        import house.cellar as below",
        "if TYPE_CHECKING:\n    pass\nelse:\n    from house import cellar",
        "from importlib import import_module\nHOMES = {'wine': 'house.cellar'}",
    ],
)
def test_an_import_is_an_arrow_wherever_it_stands(text: str, tmp_path: Path) -> None:
    assert arrows(house(tmp_path, attic=text, cellar=""))["attic.py"] == {"cellar.py"}


def test_what_is_imported_for_types_alone_is_no_arrow(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.cellar import wine"
    assert arrows(house(tmp_path, attic=text, cellar=""))["attic.py"] == set()


def test_a_folders_module_is_told_from_the_folder(tmp_path: Path) -> None:
    parts = {
        "store/__init__": "from house.store.shelf import jar",
        "store/shelf": "",
        "attic": "from house.store import jar, shelf",
    }
    found = arrows(house(tmp_path, **parts))
    assert found["store/__init__.py"] == {"store/shelf.py"}
    assert found["attic.py"] == {"store/__init__.py", "store/shelf.py"}


def test_a_circle_through_a_function_is_a_circle(tmp_path: Path) -> None:
    parts = {"attic": "from house.cellar import wine", "cellar": "def climb():\n    from house.attic import roof"}
    with pytest.raises(CycleError):
        TopologicalSorter(arrows(house(tmp_path, **parts))).prepare()


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("hskstore", ["torch", "transformers", "datasets", "zarr", "numpy"]),
        ("hskstore.store", ["torch", "transformers", "datasets"]),
        ("hskstore.cli", ["torch", "transformers", "datasets", "zarr", "numpy"]),
        ("hskstore.explore.show", ["torch", "transformers"]),
        ("hskstore.text.dataset", ["torch", "transformers", "datasets"]),
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


def test_what_a_user_imports_stands_at_the_top() -> None:
    import hskstore
    from hskstore import distill, evaluate, extract, finetune, open_store

    assert all(map(callable, (distill, evaluate, extract, finetune, open_store)))
    assert set(hskstore.__all__) <= set(dir(hskstore))
    for name in hskstore.__all__:
        assert getattr(hskstore, name).__name__ == name
    with pytest.raises(AttributeError, match="distil"):
        hskstore.distil  # noqa: B018


def test_losses_import_torch_alone() -> None:
    for module in (PACKAGE / "losses").glob("*.py"):
        roots = {
            (node.module or "").split(".")[0] if isinstance(node, ast.ImportFrom) else node.names[0].name.split(".")[0]
            for node in ast.walk(ast.parse(module.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        }
        assert roots <= {"torch", "jaxtyping", "hskstore", "typing", "dataclasses", "collections"}, module
