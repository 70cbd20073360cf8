"""One page that tells of sweeps, runs and stores, whole in one file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from hskstore.errors import OptionError, StoreError
from hskstore.explore.report_figures import draw_png
from hskstore.explore.report_page import render
from hskstore.explore.report_parts import Section
from hskstore.explore.report_run import run_section
from hskstore.explore.report_store import store_section, unsealed_section
from hskstore.explore.report_sweep import sweep_section
from hskstore.explore.runs import FACTS
from hskstore.explore.show import is_sealed
from hskstore.models.folder import RESULT
from hskstore.stage_two.checkpoint import written
from hskstore.store import Store, open_store
from hskstore.store.urls import URL


@dataclass(frozen=True)
class Reported:
    """The page, how large it is, what each argument was, and the figures as PNG if they were asked for."""

    page: str
    bytes: int
    sections: list[str]
    figures: list[str]


def report(
    places: Sequence[str | Path],
    *,
    out: str | Path,
    png: str | Path | None = None,
    command: str = "",
) -> Reported:
    """Write the page `out` of any number of `places`, each a run (a student's folder), a sweep or a store, and their figures to
    the folder `png`. What a sweep or a run says of its rows, and a sweep of bytes and of time, is told from its store where that
    is one of them, or, of a sweep, still lies where its command says.

    Raises OptionError where a place is none of these, where the page would be too large, or what draws it is not installed, and
    StoreError; the file is then not touched.
    """
    _check_installed()
    roots = list(dict.fromkeys(map(str, places)))
    kinds = {root: _kind_of(root) for root in roots}
    page = Path(out)
    if page.is_dir():
        raise OptionError(f"--out {page} is a folder: name a file, such as {page / 'report.html'}")
    sealed = {root: open_store(root) for root in roots if kinds[root] == "store" and is_sealed(root)}
    sections = [_section(root, kinds[root], sealed) for root in roots]
    text = render(sections, command)
    drawn = {} if png is None else _pictures(sections, Path(png))
    for path, data in {page: text.encode(), **drawn}.items():
        _write(path, data)
    return Reported(str(page), len(text.encode()), [f"{kinds[root]} {root}" for root in roots], list(map(str, drawn)))


def _check_installed() -> None:
    missing = [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]
    if missing:
        raise OptionError(f"a report needs {' and '.join(missing)}: pip install 'hskstore[report]'")


def _kind_of(root: str) -> str:
    """Raises OptionError for a place that is nothing of ours."""
    if not URL.fullmatch(root):
        for name, kind in ((FACTS, "sweep"), (RESULT, "run")):
            if (Path(root) / name).is_file():
                return kind
    try:
        is_sealed(root)
    except StoreError as error:
        there = "" if URL.fullmatch(root) or Path(root).exists() else ", and not there"
        raise OptionError(
            f"{root} is no run, sweep or store{there}: name a folder that hsk distill, hsk sweep or hsk extract has made"
            + (f" ({error})" if URL.fullmatch(root) else "")
        ) from None
    return "store"


def _section(root: str, kind: str, sealed: Mapping[str, Store]) -> Section:
    """`sealed` are the stores by the places that were named."""
    if kind == "store":
        return store_section(sealed[root]) if root in sealed else unsealed_section(root)
    stores = {store.digest: store for store in sealed.values()}
    return sweep_section(root, stores) if kind == "sweep" else run_section(root, stores)


def _pictures(sections: Sequence[Section], folder: Path) -> dict[Path, bytes]:
    return {
        folder / f"{number}-{section.kind}-{figure.name}.png": draw_png(figure)
        for number, section in enumerate(sections, 1)
        for part in section.parts
        for figure in part.figures
    }


def _write(path: Path, data: bytes) -> None:
    """A file that is there whole or not at all. Raises HskError where the disk refuses."""
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            fresh.write_bytes(data)
            fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
