# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

"""Formulae as MathML, which browsers render by themselves: pages need no script, and nothing from elsewhere."""

from __future__ import annotations

import re
import shutil
from html import escape
from importlib.resources import as_file, files
from pathlib import Path

from docutils import nodes
from docutils.nodes import Element
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator
from ziamath.tex import tex2mml

logger = getLogger(__name__)

FONT = "STIXTwoMath-Regular.ttf"
# What the conversion leaves otherwise than TeX sets it.
AS_TEX = (
    (r"<mo>(\w{2,})</mo>", r"<mi>\1</mi>"),  # operators of a name of their own
    (r"<mo>([A-Z])</mo>", r'<mi mathvariant="normal">\1</mi>'),
    (r"<mi>([Α-Ω])</mi>", r'<mi mathvariant="normal">\1</mi>'),  # Greek capitals stand upright
    (r"<mo( [^>]*)?>(?:&#x0007C;|\|)</mo>", r'<mo\1 lspace="0" rspace="0">|</mo>'),  # bars are fences, not operators
    # A thin space between a function and what it is of, unless that is in brackets.
    (r"<mi>(log|exp|erf|sinh)</mi>(?!<mo)", r'<mi>\1</mi><mo lspace="0" rspace="0.17em">&#x2061;</mo>'),
)


def mathml(tex: str, inline: bool) -> str:
    """The element of a formula, with its TeX for those who cannot see it."""
    found = tex2mml(tex, inline=inline)
    if "\\" in found:
        logger.warning("a command of this formula is not known: %s", tex)
    found = re.sub(r"&#x(0039[1-9A-F]|003A[0-9]);", lambda match: chr(int(match[1], 16)), found)
    for written, as_tex in AS_TEX:
        found = re.sub(written, as_tex, found)
    return found.replace("<math ", f'<math alttext="{escape(" ".join(tex.split()))}" ', 1)


def visit_math(self: HTML5Translator, node: Element) -> None:
    """A formula in a line."""
    self.body.append(mathml(node.astext(), inline=True))
    raise nodes.SkipNode


def visit_displaymath(self: HTML5Translator, node: Element) -> None:
    """A formula by itself, with its number."""
    self.body.append(self.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        self.body.append(f'<span class="eqno">({get_node_equation_number(self, node)})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append(mathml(node.astext(), inline=False))
    self.body.append("</div>\n")
    raise nodes.SkipNode


def copy_font(app: Sphinx, failure: Exception | None) -> None:
    """Beside the pages, so that readers need none of their own."""
    if failure is None and app.builder.format == "html":
        with as_file(files("ziamath.fonts") / FONT) as font:
            shutil.copyfile(font, Path(app.outdir, "_static", FONT))


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    app.connect("build-finished", copy_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
