"""README and docs/ tell the truth: commands, options, files, links and methods are those that there are, and the examples run."""

import contextlib
import io
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hskstore.config import Keep, Strategy
from hskstore.explore.methods import MethodDescription, describe_methods
from hskstore.methods import Ckd, DistilBert, Mud, Selection
from hskstore.options import options_of
from hskstore.stage_one.extract import extract
from hskstore.store import open_store
from tests.conftest import hsk, make_bert, save_folder, write_tsv

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
EXAMPLES = {
    f"{page.name}-{number}": code
    for page in PAGES
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE))
}


def commands() -> list[str]:
    import typer.main

    from hskstore.cli import app

    group = typer.main.get_command(app)
    found: list[str] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        nested = getattr(command, "commands", None)
        found += [f"{name} {inner}" for inner in nested] if nested else [name]
    return found


def calls(text: str) -> list[list[str]]:
    """The words of every `hsk` command in a page's blocks and in its sentences, options of a shell around it apart."""
    blocks = [block.split("\n", 1)[1] for block in FENCED.findall(text) if not block.startswith("```python")]
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", FENCED.sub("", text))
    found = [re.search(r"(?:^|.*[ ;])hsk (\w.*)", line) for line in lines]
    return [re.split(r" # | && |;", match[1])[0].split() for match in found if match]


def headings(page: Path) -> set[str]:
    """What a link to a section of the page is called."""
    lines = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}


def test_commands_are_found_in_blocks_and_in_sentences() -> None:
    block = "hsk plan A --rate 2  # how long\nfor try in 1 2; do hsk extract A --out B && break; done"
    found = calls(f"Say `hsk show STORE`.\n\n```\n{block}\n```\n")
    assert found == [["plan", "A", "--rate", "2"], ["extract", "A", "--out", "B"], ["show", "STORE"]]


def test_every_command_stands_in_the_readme() -> None:
    for command in commands():
        assert f"`{command}`" in README, command


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What every command says of itself."""
    found: dict[str, str] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        for command in commands():
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                assert hsk(*command.split(), "--help") == 0
            found[command] = said.getvalue()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_option_that_is_named_exists(page: Path, helps: dict[str, str]) -> None:
    text = page.read_text()
    for words in calls(text):
        command = " ".join(words[:2] if words[0] in ("student", "spans") else words[:1])
        if command == "COMMAND":
            continue
        assert command in helps, words
        for option in options(words):
            assert has_option(helps[command], option), (words, option)
    for option in options(re.findall(r"`(--[\w-]+)", FENCED.sub("", text))):
        assert any(has_option(said, option) for said in helps.values()), option


def options(words: list[str]) -> list[str]:
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def has_option(said: str, option: str) -> bool:
    return re.search(rf"(?<![\w-]){option}(?![\w-])", said) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        if link.startswith("https://"):
            continue
        file, _, section = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.is_file(), (page.name, link)
        if section and target.name != "api.md":  # whose sections are made of docstrings: the site's own test knows them
            assert section in headings(target), (page.name, link)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`(?:python )?((?:benchmarks|docs|hskstore|pipelines|tests)/[\w./-]*)", page.read_text()):
        assert (ROOT / name).exists(), (page.name, name)


def test_every_page_is_named_in_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in README, page.name


@pytest.mark.parametrize("method", describe_methods(), ids=lambda method: method.name)
def test_every_method_has_a_section_of_its_own(method: MethodDescription) -> None:
    """With its source, what it wants of a store, its phases with their terms, and its options with their defaults."""
    page = (ROOT / "docs/methods.md").read_text()
    found = re.search(rf"^## {method.name}\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    assert found, method.name
    section = found[1]
    assert f"| source | {method.source} |" in section
    reads = dict.fromkeys(name for phase in method.phases for name in phase.reads)
    if any("prediction" in phase.weights for phase in method.phases):
        reads["logits"] = None
    if any(phase.reads_labels for phase in method.phases):
        reads["labels"] = None
    assert f"| wants of the store | {', '.join(f'`{name}`' for name in reads)} |" in section
    for phase in method.phases:
        terms = " + ".join(f"{weight:g} x `{term}`" for term, weight in phase.weights.items())
        assert f"| phase `{phase.name}`, {phase.schedule} rate | {terms} |" in section
    chosen = options_of(Selection).values() if method.name == "ksm" else ()  # how weights are chosen is the run's
    rows = [f"| `{own.flag}` | {own.expected} |{told(own.default)} | {own.help} |" for own in (*method.options, *chosen)]
    assert re.findall(r"^\| `--.*$", section, flags=re.MULTILINE) == rows
    assert "**Measured.**" in section


def told(default: object) -> str:
    if default is None:
        return ""
    return f" `{str(default).lower() if isinstance(default, bool) else default}`"


def test_the_tree_has_a_line_for_every_file_and_for_nothing_else() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```\nhskstore/\n")[1].split("```")[0]
    found: set[str] = set()
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if name.endswith("/") else folder if line.startswith("    ") else ""
        found.add(name if name.endswith("/") else folder + name)
    files = {path.relative_to(ROOT / "hskstore").as_posix() for path in (ROOT / "hskstore").rglob("*.py")}
    inside = {file for file in files if not file.endswith(("/__init__.py", "__main__.py"))}
    assert found == inside | {f"{path.partition('/')[0]}/" for path in files if "/" in path}


def test_help_answers_in_half_a_second() -> None:
    def seconds() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hskstore", "--help"], capture_output=True, check=True)
        return time.perf_counter() - began

    assert min(seconds() for _ in range(5)) < 0.5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the examples name, in small, below one folder."""
    place = tmp_path_factory.mktemp("world")
    save_folder(make_bert(), place / "teachers/sst2")
    save_folder(make_bert(layers=3, seed=1), place / "students/l3")
    (place / "glue/sst2").mkdir(parents=True)
    write_tsv(place / "glue/sst2/train.tsv", 64, seed=1)
    write_tsv(place / "glue/sst2/dev.tsv", 32, seed=2)
    teacher, data, stores = str(place / "teachers/sst2"), str(place / "glue/sst2"), place / "stores/sst2"
    extract(teacher, data, out=stores, keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(3)], task="sst2")
    extract(teacher, data, out=stores, methods=[Mud(), Ckd()], strategies=[Strategy(3)], task="sst2")
    extract(teacher, data, out=stores, methods=[DistilBert()], strategies=[Strategy(3, values="rq4")], task="sst2")
    extract(teacher, data, out=stores, rich=True, strategies=[Strategy(3)], task="sst2")
    return place


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_runs(name: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    names: dict[str, Any] = {"MyModule": lambda: make_bert(layers=3, seed=2)}
    exec(EXAMPLES[name], names)
    if "import zarr" in EXAMPLES[name] or "np, zarr" in EXAMPLES[name]:
        check_row(names)


def check_row(names: dict[str, Any]) -> None:
    """An example that decodes a row with zarr and numpy alone has found what the store's own reader finds."""
    vector = names["vector"]
    assert isinstance(vector, np.ndarray)
    if "hidden" in names:
        row = open_store("stores/sst2/d1-l9-w0.1").row("train", 3)
        np.testing.assert_array_equal(vector[row["hidden/mask"][0, 0]], row["hidden/values"][0, 0])
        assert np.count_nonzero(vector) == 3
    else:
        np.testing.assert_array_equal(vector, open_store("stores/sst2/distilbert").row("train", 3)["states/values"][0, 1])
        assert np.count_nonzero(vector) > 16
