"""The site of README and docs/: built without a warning, with every public name, and without anything from the network."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.browser import Browser

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = sorted(
    ".".join(init.parent.relative_to(ROOT).parts)
    for init in (ROOT / "hskstore").rglob("__init__.py")
    if "__all__ = [" in init.read_text()
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make docs` builds. A warning, such as a link to a page or section that is not there, is an error."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return place


class Loaded(HTMLParser):
    """What a page has a browser fetch: styles, scripts, fonts, pictures, frames; not what it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        if tag == "link" and named.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.found.append(named.get("href") or "")
        self.found += [value or "" for name, value in attrs if name in ("src", "srcset", "poster", "data")]


def test_nothing_of_the_site_comes_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert site / "index.html" in pages and site / "docs/api.html" in pages
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found, page
        assert not [url for url in loaded.found if re.match(r"(\w+:)?//", url)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(\w+:)?//", style.read_text()), style


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_on_the_page_of_the_api(package: str, site: Path) -> None:
    """Under the package that has it, or, where a module of that package has the same name, under that."""
    there = set(re.findall(r'id="([\w.]+)"', (site / "docs/api.html").read_text()))
    for name in importlib.import_module(package).__all__:
        assert there & {f"{package}.{name}", f"{package}.{name}.{name}"}, name


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_member_says_what_it_is(package: str) -> None:
    """The page of the API leaves out those without a docstring."""
    public = importlib.import_module(package)
    for owner in filter(inspect.isclass, (getattr(public, name) for name in public.__all__)):
        for name, member in vars(owner).items():
            function = getattr(member, "fget", getattr(member, "__func__", member))
            if inspect.isfunction(function) and not name.startswith("_"):
                assert function.__doc__, f"{owner.__name__}.{name}"


@pytest.mark.long
@pytest.mark.browser
def test_pages_ask_for_nothing_and_do_not_scroll_sideways(site: Path) -> None:
    with Browser() as browser:
        for page in ("index", "docs/methods", "docs/format", "docs/api"):
            for width, dark in ((360, False), (1200, True)):
                browser.open(site / f"{page}.html", width=width, dark=dark)
                assert browser.run("document.documentElement.scrollWidth") <= width, page
                shown = browser.run("document.body.getAttribute('data-md-color-scheme')")
                assert shown == ("slate" if dark else "default"), (page, dark)
        assert not [url for url in browser.requests if not url.startswith(("file:", "data:"))]
        assert not browser.complaints
