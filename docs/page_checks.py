# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""
What every page of the site keeps to, looked at when it is built: a fault is a warning, and so an error.

Notebooks that can be downloaded are freed of what the code wrote to standard error, as pages are: progress bars, and
what libraries have to say of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.logging import getLogger

logger = getLogger(__name__)
LOADED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
# These name a page, and load nothing.
NAMED = {"canonical", "next", "prev", "index", "search", "help", "author", "copyright"}


class Page(HTMLParser):
    """What it shows, what it loads, where it leads, and where one can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[dict[str, str]] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.places = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.places.add(found.get("id", ""))
        if tag == "img":
            self.pictures.append(found)
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if LOADED.get(tag, tag) in found and not NAMED & set(found.get("rel", "").split()):
            self.loaded.append(found[LOADED[tag]])


def faults(path: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """What is wrong with a page, of all that there are."""
    page = pages[path]
    for picture in page.pictures:
        words = picture.get("alt", "")
        if not words or Path(words).suffix in {".png", ".svg", ".jpg"}:
            yield f"a picture without words for those who cannot see it (alt): {picture.get('src', '')[:80]}"
    for address in page.loaded:
        if urlsplit(address).netloc:
            yield f"loads what is elsewhere, so that it cannot be read offline: {address}"
    for link in page.links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.exists():
            yield f"a link leads nowhere: {link}"
        elif target in pages and unquote(parts.fragment) not in pages[target].places:
            yield f"a link leads to a place that the page does not have: {link}"


def leave_out_standard_error(app: Sphinx, env: BuildEnvironment) -> None:
    """Of the notebooks as they were run, which the pages link to."""
    for path in Path(app.outdir).parent.joinpath("jupyter_execute").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if "outputs" in cell:
                cell["outputs"] = [output for output in cell["outputs"] if output.get("name") != "stderr"]
        path.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def look_at_pages(app: Sphinx, failure: Exception | None) -> None:
    """Warns of each fault; what the pages show of the code itself is Sphinx's alone."""
    if failure is not None or app.builder.format != "html":
        return
    written = sorted(Path(app.outdir).resolve().rglob("*.html"))
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in written
        if not {"_static", "_modules"} & set(path.parts)
    }
    for path in pages:
        for fault in sorted(set(faults(path, pages))):
            logger.warning("%s: %s", path.relative_to(Path(app.outdir).resolve()).as_posix(), fault)


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("env-updated", leave_out_standard_error)
    app.connect("build-finished", look_at_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
