"""How Sphinx builds this site: `sphinx-build -W -E --keep-going -b html docs site`; warnings end the build.

Nothing is imported of bellman_tf: the API reference and the table of layers are read from the sources.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "docs" / "extensions"), str(ROOT)]

project = "bellman_tf"
author = "bellman_tf"
html_title = "bellman_tf"
extensions = [
    "myst_parser",  # pages are Markdown
    "sphinx.ext.napoleon",  # Google sections of docstrings
    "autoapi.extension",  # reads signatures and docstrings without importing TensorFlow
    "docstrings",
    "layers_table",
    "mathml",
    "repository",
    "lessons",
]
exclude_patterns = ["figures", "extensions"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"
suppress_warnings = ["autoapi.python_import_resolution"]  # of names assigned in pairs, which astroid does not follow

autoapi_dirs = [str(ROOT / "bellman_tf")]
autoapi_generate_api_docs = False  # the pages of docs/api name what is public
autoapi_add_toctree_entry = False
autoapi_options = ["members"]
autoapi_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_display_short_literal_types = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
