"""Sphinx: `make docs` builds docs/_build/html. Warnings are errors, and no network is needed.

With `PIXSIM_DOCS_ONLINE` set, names of other libraries link to their documentation, as far as it
can be reached.
"""

from __future__ import annotations

import os
import shutil
import sys
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "_build"
sys.path.insert(0, str(HERE / "_ext"))
sys.path.insert(0, str(HERE.parent))

# earlier downloads of this checkout do not count: pages that are executed keep what they make in
# a folder of their own, and show no path of this machine
os.environ["PIXSIM_DATA"] = str(BUILD / "data")
if _folder := os.environ.get("PIXSIM_DATASETS"):
    os.environ["PIXSIM_DATASETS"] = str(Path(_folder).resolve())
# the kernels of notebooks import the pixsim of this checkout
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"

import pipeline  # noqa: E402

project, author, copyright = "pixsim", "The pixsim developers", "The pixsim developers"
version = release = pipeline.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
    "generated_pages",
    "checked_links",
]
exclude_patterns = ["_build", "reference/_generated", "**/.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "literal"

# ---------------------------------------------------------------- what is written, and executed
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True

ARTICLE = "tutorial/pixel-similarity.ipynb"
shutil.copyfile(HERE.parent / "workflows" / "pixel_similarity.ipynb", HERE / ARTICLE)
_at_hand = {entry.name for entry, where in pipeline.list_datasets() if where != "to be downloaded"}
os.environ["PIXSIM_DATA"] = "data"
# without its data sets the notebook is shown with the outputs that it holds, which a test compares
nb_execution_excludepatterns = [] if {"mnist", "fashion-mnist"} <= _at_hand else [ARTICLE]

# --------------------------------------------------------------------------- what is generated
autosummary_generate = True
autosummary_imported_members = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_ivar = True
strip_signature_backslash = True  # or `classes_` loses its underscore
napoleon_use_rtype = False
napoleon_custom_sections = ["Returns", "Yields"]  # are sentences; types are in the signature

# ------------------------------------------------------------------------ links to other projects
_OTHERS = {
    "python": "https://docs.python.org/3/",
    "numpy": "https://numpy.org/doc/stable/",
    "xarray": "https://docs.xarray.dev/en/stable/",
    "dask": "https://docs.dask.org/en/stable/",
    "zarr": "https://zarr.readthedocs.io/en/stable/",
    "sklearn": "https://scikit-learn.org/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}


def _inventories() -> dict[str, tuple[str, str]]:
    """Return the inventories of other projects that can be had, so that none is missed."""
    if not os.environ.get("PIXSIM_DOCS_ONLINE"):
        return {}
    folder, found = BUILD / "inventories", {}
    folder.mkdir(parents=True, exist_ok=True)
    for name, address in _OTHERS.items():
        file = folder / f"{name}.inv"
        try:
            if not file.exists():
                with urllib.request.urlopen(f"{address}objects.inv", timeout=5) as answer:  # noqa: S310
                    file.write_bytes(answer.read())
            found[name] = (address, str(file))
        except OSError:
            continue
    return found


intersphinx_mapping = _inventories()

# --------------------------------------------------------------------------------- how it looks
html_theme = "furo"
html_title = f"pixsim {release}"
html_static_path = ["_static"]
html_css_files = ["pixsim.css"]
html_show_sphinx = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5c8a", "color-brand-content": "#0b5c8a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f0", "color-brand-content": "#7cc4f0"},
}
pygments_style, pygments_dark_style = "default", "monokai"
copybutton_exclude = ".linenos, .gp, .go"
