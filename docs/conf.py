"Sphinx settings; title, author and version come from `_quarto.yml` and `settings.ini`."
from configparser import ConfigParser
from pathlib import Path

import yaml

root = Path(__file__).resolve().parents[1]
ini = ConfigParser(delimiters=["="])
ini.read(root/"settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
site = yaml.safe_load((root/"_quarto.yml").read_text(encoding="utf-8"))["website"]

project = html_title = site["title"]
author, release, copyright = cfg["author"], cfg["version"], cfg["copyright"]
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]   # the tables of functions begin at level 3

html_theme = "furo"
html_static_path = [str(root/"_build"/"site"/"static")]
html_extra_path = [str(root/"_build"/"site"/"extra")]
html_favicon = str(root/"docs"/"static"/"icon.svg")
html_css_files = ["style.css"]
html_js_files = [("templates.js", dict(defer="defer")), ("figures.js", dict(defer="defer"))]
html_show_sourcelink = html_copy_source = False
html_permalinks_icon = "#"
mathjax_path = "mathjax/tex-chtml.js"
copybutton_prompt_text = ""
