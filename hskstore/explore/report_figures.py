"""Figures of a report by matplotlib: SVG that takes the page's own colours and fonts, and PNG of the same."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from hskstore.explore.report_parts import Bars, Figure, Line, Plot, plain

INK, PAPER, RULE = "#1c1e21", "#ffffff", "#8a8d91"
PALETTE = ("#0b5cad", "#b3420a", "#1b7a3d", "#8a2be2", "#a8326e", "#6b5d00", "#00727a", "#5c5f66")
"""Each 3 to 1 against white at least; the page has lighter ones for the dark."""

MARKERS = "osD^vPX*"
"""A shape for each colour, so that nothing rests on colour alone."""

WIDTH, HEIGHT, BAR = 4.3, 3.2, 0.34
"""Inches. At 72 points an inch about the width of a phone, so that letters stay as large as they are."""

LONGEST_NAME = 44
XLINK = "{http://www.w3.org/1999/xlink}href"


def draw_svg(figure: Figure, ident: str) -> str:
    """An `<svg>` element to stand in a page, whose ids begin with `ident`: read aloud it is its title and its words."""
    text = io.BytesIO()
    with _settings(ident):
        _drawn(figure.plot).savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    _tidy(root, ident)
    _cleared(root)
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib |= {"viewBox": box, "role": "img", "aria-labelledby": f"{ident}-title {ident}-words"}
    for place, (name, words) in enumerate((("title", figure.title), ("desc", figure.words))):
        said = ElementTree.Element(name, {"id": f"{ident}-{'title' if name == 'title' else 'words'}"})
        said.text = words
        root.insert(place, said)
    return ElementTree.tostring(root, encoding="unicode")


def draw_png(figure: Figure) -> bytes:
    """On white, twice as fine as a page's pixels."""
    data = io.BytesIO()
    with _settings(figure.name):
        _drawn(figure.plot).savefig(data, format="png", dpi=200, metadata={"Software": None})
    return data.getvalue()


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """The same figure is the same file; names are text, whatever signs of mathematics they hold."""
    import matplotlib

    chosen: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "font.size": 10,
        "legend.fontsize": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "path.simplify": True,
    }
    with matplotlib.rc_context(chosen), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font it measures with has not: the page's own has them
        yield


def _drawn(plot: Plot | Bars) -> Any:
    from matplotlib.figure import Figure as Canvas

    if isinstance(plot, Bars):
        return _bars(plot, Canvas)
    canvas = Canvas(figsize=(WIDTH, HEIGHT), layout="constrained")
    axes = canvas.add_subplot()
    for place, line in enumerate(plot.lines):
        _line(axes, line, PALETTE[place % len(PALETTE)], MARKERS[place % len(MARKERS)])
    for place, (name, height) in enumerate(plot.levels):
        axes.axhline(height, color=RULE, linestyle=("--", ":")[place % 2], linewidth=1.2, label=_short(name), zorder=1)
    for x, y, words in plot.marks:
        axes.annotate(_short(words), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=9)
    if plot.log:
        _logarithmic(axes)
    if plot.ticks:
        axes.set_xticks([x for x, _ in plot.ticks], [_short(name) for _, name in plot.ticks])
        axes.minorticks_off()
    axes.margins(x=0.08, y=0.1)
    if not any(height for line in plot.lines for height in line.y):
        axes.set_ylim(0, 1)  # of nothing but zeros matplotlib shows what is below them too
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y)
    if len(plot.lines) + len(plot.levels) > 1:
        canvas.legend(loc="outside upper left", ncols=1 if _longest(plot) > 14 else 2, frameon=False, handlelength=1.6)
        canvas.set_size_inches(WIDTH, HEIGHT + 0.19 * (len(plot.lines) + len(plot.levels)) / (1 if _longest(plot) > 14 else 2))
    return canvas


def _logarithmic(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _line(axes: Any, line: Line, color: str, marker: str) -> None:
    shape: dict[str, Any] = {"color": color, "label": _short(line.label), "markersize": 4.5, "linewidth": 1.4}
    shape |= {"marker": marker} if line.style != "dense" and line.style != "steps" else {}
    shape |= {"linestyle": "none"} if line.style in ("points", "hollow") else {}
    shape |= {"markerfacecolor": "none", "alpha": 0.75} if line.style == "hollow" else {}
    shape |= {"drawstyle": "steps-post"} if line.style == "steps" else {}
    if line.below is None or line.above is None:
        axes.plot(line.x, line.y, **shape)
        return
    spread = [
        [max(0.0, y - low) for y, low in zip(line.y, line.below, strict=True)],
        [max(0.0, high - y) for y, high in zip(line.y, line.above, strict=True)],
    ]
    axes.errorbar(line.x, line.y, yerr=spread, capsize=2.5, elinewidth=0.9, **shape)


def _bars(plot: Bars, canvas_of: Any) -> Any:
    """The name of each bar stands above it, where a phone has room for it."""
    each, bars = len(plot.groups), len(plot.names)
    canvas = canvas_of(figsize=(WIDTH, 0.8 + bars * (0.22 + BAR * each) + 0.2 * (each > 1) * each), layout="constrained")
    axes = canvas.add_subplot()
    step = 1 + 0.7 / each
    for place, (label, lengths) in enumerate(plot.groups):
        at = [step * each * bar + place for bar in range(bars)]
        axes.barh(
            at,
            lengths,
            height=0.85,
            color=PALETTE[place % len(PALETTE)],
            label=_short(label),
            hatch=("", "//")[place % 2],
            edgecolor=PAPER,
            linewidth=0,
        )
    for bar, name in enumerate(plot.names):
        axes.annotate(_short(name, 48), (0, step * each * bar - 0.5), xytext=(2, 1), textcoords="offset points", fontsize=9)
    axes.set_ylim(step * each * (bars - 1) + each - 0.3, -1.1)
    axes.set_yticks([])
    axes.set_xlabel(plot.x)
    if each > 1:
        canvas.legend(loc="outside upper left", frameon=False, handlelength=1.6)
    return canvas


def _longest(plot: Plot) -> int:
    return max(len(_short(name)) for name in (*(line.label for line in plot.lines), *(name for name, _ in plot.levels)))


def _short(text: str, most: int = LONGEST_NAME) -> str:
    """Never empty nor hidden: matplotlib takes a label that begins with _ for none."""
    shown = plain(text, most)
    return f"\u200a{shown}" if shown.startswith("_") or not shown else shown


# --- the page's own colours


def _tidy(root: ElementTree.Element, ident: str) -> None:
    """Names without their space, ids that are this figure's own, colours and fonts of the page."""
    used = {name for element in root.iter() for name in _referred(element)}
    for element in root.iter():
        element.tag = _local(element.tag)
        if XLINK in element.attrib:
            element.set("href", element.attrib.pop(XLINK))
        for name, value in list(element.attrib.items()):
            if name == "id":
                del element.attrib["id"]
                if value in used:
                    element.set("id", f"{ident}-{value}")
            elif name == "href":
                element.set(name, f"#{ident}-{value[1:]}")
            elif name == "style":
                element.set(name, _in_page(value, element.tag, ident))
            else:
                element.set(name, _in_page(value, "", ident))


def _referred(element: ElementTree.Element) -> Sequence[str]:
    values = " ".join(element.attrib.values())
    return [*re.findall(r"url\(#([^)]+)\)", values), element.get(XLINK, "#")[1:]]


def _in_page(style: str, tag: str, ident: str) -> str:
    style = re.sub(r"url\(#", f"url(#{ident}-", style)
    for place, color in enumerate(PALETTE):
        style = style.replace(color, f"var(--c{place})")
    style = style.replace(INK, "currentColor").replace(RULE, "var(--rule)").replace(PAPER, "var(--paper)")
    if tag != "text":
        return style
    found = re.search(r"(\d+(?:\.\d+)?)px", style)
    kept = [part for part in style.split("; ") if part.startswith(("text-anchor", "fill"))]
    return "; ".join([f"font-size: {found[1] if found else 10}px", *kept, *([] if "fill" in style else ["fill: currentColor"])])


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]


def _cleared(root: ElementTree.Element) -> None:
    """Without the space between elements."""
    for element in root.iter():
        if element.text is not None and not element.text.strip():
            element.text = None
        element.tail = None
