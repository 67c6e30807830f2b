# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_bmrs import reduce_model, search_models
from pyro_bmrs.plotting.html_report import Part, report, stacked
from pyro_bmrs.pruning import Compression, PathStep
from pyro_bmrs.pruning.compression.course.held_out import HeldOut
from tests.processes import PATIENCE

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PHONE = 375
WITHOUT_END = {"meta", "img", "br"}


def compression() -> Compression:
    def step(width: int) -> PathStep:
        kept = {"a rather long name of a site": torch.arange(8) < width}
        held_out = HeldOut(-torch.rand(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64))
        return PathStep(1.0, nn.Linear(width, 1), True, kept, held_out, width + 1, width, None, None)

    return Compression([step(8), step(3)], 0, "by hand")


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    def model() -> None:
        pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    pyro.clear_param_store()
    guide = AutoNormal(model)
    guide()
    names = {"slopes": ["age", "<b>", "a covariate with a long name"]}
    asked = {"slopes": dist.Normal(0.0, 0.1)}
    return {
        "reduction": reduce_model(guide, asked, labels=names).to_html(),
        "space": search_models(guide, asked, labels=names).to_html(),
        "compression": compression().to_html(),
    }


class Reader(HTMLParser):
    """What a page asks for, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["reduction", "space", "compression"])
def test_a_page_stands_by_itself(pages, name):
    reader = Reader()
    reader.feed(pages[name])
    assert not reader.open
    tags = {tag for tag, _ in reader.seen}
    assert {"h1", "table", "img"} <= tags and not tags & {"script", "link", "iframe", "b"}
    assert not [attrs for _, attrs in reader.seen if {"href", "srcset", "style"} & set(attrs)]
    assert "url(" not in pages[name] and "@import" not in pages[name]
    for _, attrs in (seen for seen in reader.seen if seen[0] == "img"):
        kind, drawn = attrs["src"].split(",", 1)
        assert kind == "data:image/svg+xml;base64" and attrs["alt"]
        asked = [value for node in ElementTree.fromstring(base64.b64decode(drawn)).iter() for value in links_of(node)]
        assert all(link.startswith("#") for link in asked)


def links_of(node: ElementTree.Element) -> list[str]:
    return [value for name, value in node.attrib.items() if name.endswith("href")]


def test_the_numbers_are_those_of_the_tables(pages):
    space, reduction = pages["space"], pages["reduction"]
    assert space.count("<tr>") == 1 + 8 + 1 + 3
    assert "slopes[&lt;b&gt;]" in space and "slopes[&lt;b&gt;]" in reduction
    assert "8 models" in space and "closed form, of the guide" in reduction
    assert "4 of 9" not in pages["compression"] and "9 of 9" in pages["compression"]


def test_figures_are_nobodys_to_close(pages):
    assert stacked(1.0, 2.0)[0].get_size_inches()[1] == 3.0
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0396, "0.040"),
        (-208.3766, "-208.38"),
        (1234567.0, "1.2e+06"),
        (1e-30, "1.0e-30"),
        (0.0, "0.00"),
        (float("nan"), "–"),
        (1234, "1,234"),
        (True, "yes"),
        ("a < b", "a &lt; b"),
    ],
)
def test_values_are_read_as_people_write_them(value, words):
    assert f">{words}</td>" in report("", "", Part("", {"": value}))
    assert f">{words}</td>" in report("", "", Part("", pd.DataFrame({"x": [value]})))


def test_of_a_long_table_the_first_rows_are_shown():
    page = report("", "", Part("", pd.DataFrame({"x": range(1001)})))
    assert page.count("<tr>") == 201 and "first 200 of 1,001 rows" in page


def test_a_page_is_written_as_it_is_returned(tmp_path):
    path = tmp_path / "page.html"
    assert report("ΔF", "", path=path) == path.read_text(encoding="utf-8")


def looked_at(pages: Mapping[str, str], folder: Path) -> tuple[dict[str, Any], str]:
    """What a browser finds of pages on a phone, and what it says at its console."""
    frames = "".join(
        f'<iframe id="{name}" width="{PHONE}" height="700" srcdoc="{escape(page)}"></iframe>'
        for name, page in pages.items()
    )
    script = """
    addEventListener("load", () => {
      const found = {};
      for (const frame of document.querySelectorAll("iframe")) {
        const page = frame.contentDocument, images = [...page.images];
        found[frame.id] = {
          images: images.length,
          missing: images.filter(image => !(image.complete && image.naturalWidth)).length,
          width: page.documentElement.scrollWidth,
          letters: parseFloat(getComputedStyle(page.body).fontSize),
        };
      }
      document.body.dataset.found = JSON.stringify(found);
    });
    """
    place = folder / "pages.html"
    place.write_text(f'<!DOCTYPE html><meta charset="utf-8"><script>{script}</script>{frames}', encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command = [BROWSER, *options, f"--user-data-dir={folder / 'browser'}", place.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=PATIENCE)
    written = re.search(r'data-found="([^"]*)"', done.stdout)
    assert written is not None, done.stderr
    said = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(unescape(written[1])), said


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at pages with")
def test_a_browser_shows_all_of_a_page_on_a_phone(pages, tmp_path):
    found, said = looked_at(pages, tmp_path)
    assert not said
    for name in pages:
        assert found[name]["images"] == 1 and not found[name]["missing"] and found[name]["letters"] == 16, name
        assert found[name]["width"] <= PHONE, name


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium to look at pages with")
def test_a_browser_notices_what_is_wrong(tmp_path):
    wrong = '<img src="nowhere.png"><div style="width: 600px">wide</div><script>throw Error("mistake")</script>'
    found, said = looked_at({"wrong": wrong}, tmp_path)
    assert found["wrong"]["missing"] == 1 and found["wrong"]["width"] > PHONE and "mistake" in said
