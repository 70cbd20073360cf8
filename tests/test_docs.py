"""The README tells the truth: every command stands there, and its example of a row decodes what the store holds."""

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hskstore.config import Keep, Strategy
from hskstore.methods import DistilBert
from hskstore.stage_one.extract import extract
from hskstore.store import open_store

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def commands() -> list[str]:
    import typer.main

    from hskstore.cli import app

    group = typer.main.get_command(app)
    found: list[str] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        nested = getattr(command, "commands", None)
        found += [f"{name} {inner}" for inner in nested] if nested else [name]
    return found


def test_every_command_stands_in_the_readme() -> None:
    for command in commands():
        assert f"`{command}`" in README, command


def test_every_option_in_the_readmes_commands_exists() -> None:
    blocks = re.findall(r"```\n(.*?)```", README, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("hsk ")]
    assert lines
    texts: dict[tuple[str, ...], str] = {}
    for line in lines:
        words = line.split("#")[0].split()[1:]
        command = words[:2] if words[0] in ("student", "spans") else words[:1]
        if tuple(command) not in texts:
            texts[tuple(command)] = subprocess.run(
                [sys.executable, "-m", "hskstore", *command, "--help"],
                capture_output=True,
                text=True,
                check=True,
                env={"COLUMNS": "200", "PATH": ""},
            ).stdout
        text = texts[tuple(command)]
        for option in (word for word in words if word.startswith("--")):
            assert option in text, (line, option)


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


def test_the_readmes_ten_lines_decode_a_row_with_zarr_and_numpy_alone(
    teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    extract(teacher_folder, data_folder, out=tmp_path, keeps=[Keep(1, 9, 0.1)], strategies=[Strategy(2)], task="sst2")
    example = re.search(r"```python\n(import numpy.*?)```", README, flags=re.DOTALL)
    assert example
    names: dict[str, object] = {}
    exec(example[1].replace("stores/sst2/d1-l9-w0.1", str(tmp_path / "d1-l9-w0.1")), names)
    row = open_store(tmp_path / "d1-l9-w0.1").row("train", 3)
    vector = names["vector"]
    assert isinstance(vector, np.ndarray)
    np.testing.assert_array_equal(vector[row["hidden/mask"][0, 0]], row["hidden/values"][0, 0])
    assert np.count_nonzero(vector) == 3


def test_the_readmes_five_lines_decode_codes_with_zarr_and_numpy_alone(
    teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    strategies = [Strategy(2, values="rq4")]
    extract(teacher_folder, data_folder, out=tmp_path, methods=[DistilBert()], strategies=strategies, task="sst2")
    example = re.findall(r"```python\n(import numpy.*?)```", README, flags=re.DOTALL)[1]
    names: dict[str, object] = {}
    exec(example.replace("stores/sst2/distilbert", str(tmp_path / "distilbert")), names)
    vector = names["vector"]
    assert isinstance(vector, np.ndarray)
    np.testing.assert_array_equal(vector, open_store(tmp_path / "distilbert").row("train", 3)["states/values"][0, 1])
    assert np.count_nonzero(vector) > 16
