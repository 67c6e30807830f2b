# Copyright Contributors to the pyro_bmrs project.
# SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pyro_bmrs

sys.path.insert(0, str(Path(__file__).parent))

project = "pyro_bmrs"
author = "Contributors to the pyro_bmrs project"
copyright = author
version = release = pyro_bmrs.__version__

extensions = [
    "mathml",
    "page_checks",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "_templates"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = "pyro_bmrs"
html_static_path = ["_static"]
html_css_files = ["tables.css", "formulae.css"]
html_math_renderer = "mathml"

# A page for each public name is made by the build, from the tables of reference/api.md.
autosummary_generate = True
autosummary_filename_map = {"pyro_bmrs.Refit": "pyro_bmrs.Refit-class"}  # some file systems take it for refit
# Overrides of torch say nothing that torch does not say.
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_default_options = {"members": True, "show-inheritance": True}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The pages with code are run when the site is built, so that what they show is what the code says.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_output_stderr = "remove"
nb_merge_streams = True


def is_reachable(other: str) -> bool:
    try:
        with urlopen(f"{OTHERS[other]}objects.inv", timeout=5):
            return True
    except OSError:
        return False


# Names of others are links where their sites can be asked: Sphinx warns of each that cannot, and a warning is an error.
OTHERS = {
    "arviz": "https://python.arviz.org/en/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "pandas": "https://pandas.pydata.org/docs/",
    "pyro": "https://docs.pyro.ai/en/stable/",
    "python": "https://docs.python.org/3/",
    "torch": "https://pytorch.org/docs/stable/",
}
with ThreadPoolExecutor(len(OTHERS)) as pool:
    answers = dict(zip(OTHERS, pool.map(is_reachable, OTHERS)))
intersphinx_mapping = {other: (OTHERS[other], None) for other, answer in answers.items() if answer}
