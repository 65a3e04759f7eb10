"""README.md from nbs/index.ipynb: its text and its code, without the cells marked `#| hide`.

A cell marked `#| readme: FILE.svg` stands in README.md as that picture; `--picture` runs the notebook and draws it anew (needs chromium)."""
import json, re, shutil, sys
from pathlib import Path

root = Path(__file__).resolve().parents[1]
INDEX = root/"nbs"/"index.ipynb"

def cells():
    for c in json.loads(INDEX.read_text(encoding="utf-8"))["cells"]:
        text = "".join(c["source"]).strip()
        marks = dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", text, re.M)) if c["cell_type"] == "code" else {}
        if text: yield c["cell_type"], marks, re.sub(r"^#\|.*\n?", "", text, flags=re.M)

def readme():
    parts = []
    for kind, marks, text in cells():
        if "readme" in marks: text = f"![{marks['fig-alt']}](nbs/{marks['readme']})"
        elif "hide" in marks: continue
        elif kind == "code": text = f"```python\n{text}\n```"
        else: text = re.sub(r"\]\((\d\d\w*\.ipynb)", r"](nbs/\1", text).replace("](../", "](")
        parts.append(text)
    return "<!-- made from nbs/index.ipynb by `make readme` -->\n\n"+"\n\n".join(parts)+"\n"

def picture():
    "Run the cells up to the marked one, and let a browser write its figure as SVG."
    from playwright.sync_api import sync_playwright
    from liresnet_nb.core import atomic_path
    names = {}
    for kind, marks, text in cells():
        if kind == "code": exec(text, names)
        if "readme" in marks: break
    with sync_playwright() as p:
        page = p.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"]).new_page()
        page.set_content(names["fig"].to_html(include_plotlyjs=True))
        image = page.evaluate("() => Plotly.toImage(document.querySelector('.js-plotly-plot'), {format: 'svg', width: 760, height: 400})")
    from urllib.parse import unquote
    with atomic_path(INDEX.parent/marks["readme"]) as path: path.write_text(unquote(image.split(",", 1)[1]), encoding="utf-8")

if __name__ == "__main__":
    if "--picture" in sys.argv: picture()
    (root/"README.md").write_text(readme(), encoding="utf-8")
