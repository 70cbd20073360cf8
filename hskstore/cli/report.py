"""hsk report: one page that tells of sweeps, runs and stores."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hskstore.cli.options import JsonOpt, quiet_libraries
from hskstore.readable import size


def report(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|SWEEP|STORE...", help="A student's folder, that of a sweep or search, or a store: any number."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page, one file.")],
    png: Annotated[Path | None, typer.Option(metavar="DIR", help="Every figure as a PNG file as well, in this folder.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Write one page that tells of RUNs, SWEEPs and STOREs: figures, tables, rows, provenance. It needs neither network nor
    script. What a sweep or run learnt from tells more beside it."""
    from hskstore.cli import console

    quiet_libraries()
    from hskstore.explore.report import report as run

    result = run(places, out=out, png=png, command=shlex.join(["hsk", *sys.argv[1:]]))
    if as_json:
        console.print_json(result)
        return
    sections = len(result.sections)
    console.out.print(f"{result.page}: {size(result.bytes)}, {sections} section{'s' if sections > 1 else ''}")
    if png is not None:
        console.out.print(f"{png}: {len(result.figures)} figures")
