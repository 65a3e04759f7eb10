"README.md from nbs/index.ipynb: its text and its code, without the cells marked `#| hide`."
import json, re
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def readme():
    cells = json.loads((root/"nbs"/"index.ipynb").read_text(encoding="utf-8"))["cells"]
    parts = []
    for c in cells:
        text = "".join(c["source"]).strip()
        if not text or re.match(r"#\|\s*hide", text): continue
        if c["cell_type"] == "code": text = "```python\n"+re.sub(r"^#\|.*\n", "", text, flags=re.M)+"\n```"
        else: text = re.sub(r"\]\((\d\d_\w+\.ipynb)", r"](nbs/\1", text).replace("](../", "](")
        parts.append(text)
    return "<!-- made from nbs/index.ipynb by `make readme` -->\n\n"+"\n\n".join(parts)+"\n"

if __name__ == "__main__": (root/"README.md").write_text(readme(), encoding="utf-8")
