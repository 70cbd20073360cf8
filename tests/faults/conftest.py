"""Campaigns of faults: a few of each in every test run; with `--faults FILE` all of them, and a table of what came of it."""

import os
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pytest
import zarr

HEADER = """# What faults do to a store, and odd inputs to a command

`make faults`, which is `python -m pytest tests/faults --faults {path}`; {day}, {cpus} CPUs ({machine}), Python {python},
zarr {zarr}. One line per fault: how often it was tried, what came of it, and the test that tries a few of them in every run.

| fault | tried | what came of it | seconds | test |
|---|---|---|---|---|
"""


@dataclass
class Campaign:
    """How often to try, and what came of it."""

    full: bool
    lines: list[str] = field(default_factory=list)

    def tries(self, few: int, all_of_them: int) -> int:
        return all_of_them if self.full else few

    def record(self, fault: str, tried: int, outcome: str, began: float) -> None:
        """A line of the table; `began` is a `time.monotonic()`."""
        test = os.environ["PYTEST_CURRENT_TEST"].partition(" ")[0]
        self.lines.append(f"| {fault} | {tried} | {outcome} | {time.monotonic() - began:.0f} | `{test}` |\n")


@pytest.fixture(scope="session")
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    path = request.config.getoption("--faults")
    found = Campaign(full=path is not None)
    yield found
    if path is not None:
        header = HEADER.format(
            path=path,
            day=date.today(),
            cpus=os.cpu_count(),
            machine=platform.machine(),
            python=platform.python_version(),
            zarr=zarr.__version__,
        )
        Path(path).write_text(header + "".join(found.lines))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Campaigns take long, also with a few faults of each kind."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.long)
