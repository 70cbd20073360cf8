"""A report as one page: sections into HTML that needs no script and nothing from anywhere else."""

from collections.abc import Sequence
from typing import Any

from hskstore.errors import OptionError
from hskstore.explore.report_figures import PALETTE, draw_svg
from hskstore.explore.report_parts import Figure, Section, plain
from hskstore.version import __version__

MOST_BYTES = 2 * 10**6

DARK = ("#7db4f0", "#f0985f", "#6cc48a", "#c79bf2", "#ee8fbb", "#cfc06a", "#5fc9d0", "#b3b7bd")
"""PALETTE for the dark: each 7 to 1 against black at least."""

KINDS = {"sweep": "Sweep", "run": "Run", "store": "Store"}
PLURALS = {"sweep": "sweeps", "run": "runs", "store": "stores"}


def render(sections: Sequence[Section], command: str) -> str:
    """The page. Raises OptionError where it would be larger than MOST_BYTES."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("hskstore.explore"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def svg(figure: Figure, ident: str) -> Any:
        return Markup(draw_svg(figure, ident))

    page: str = environment.get_template("report.html").render(
        sections=sections,
        kinds=KINDS,
        title=_title(sections),
        svg=svg,
        plain=plain,
        palette=tuple(zip(PALETTE, DARK, strict=True)),
        version=__version__,
        command=plain(command, 2000),
    )
    large = len(page.encode())
    if large > MOST_BYTES:
        raise OptionError(
            f"the page of {len(sections)} arguments would have {large / 1e6:.1f} MB, more than the {MOST_BYTES / 1e6:.0f} MB that"
            " any browser shows at once: name fewer, and make a page of each"
        )
    return page


def _title(sections: Sequence[Section]) -> str:
    """Of one section its place, of several how many there are."""
    if len(sections) == 1:
        return f"{KINDS[sections[0].kind]} {plain(sections[0].place, 120)}"
    counts = {kind: sum(each.kind == kind for each in sections) for kind in KINDS}
    return "A report of " + ", ".join(
        f"{count} {PLURALS[kind] if count > 1 else kind}" for kind, count in counts.items() if count
    )
