"llms.txt from the notebooks: a line a page, its title and its subtitle."
import json, re
from pathlib import Path

root = Path(__file__).resolve().parents[1]

def llms():
    title, subtitle, rest = "", "", []
    for p in sorted((root/"nbs").glob("*.ipynb")):
        first = "".join(json.loads(p.read_text(encoding="utf-8"))["cells"][0]["source"])
        name, what = re.fullmatch(r"# (.+)\n\n> (.+)\s*", first).groups()
        if p.stem == "index": title, subtitle = name, what
        else: rest.append(f"- [{name}](nbs/{p.name}): {what}")
    return f"# {title}\n\n> {subtitle}\n\nEach page is a notebook; those that say so in their first code cell export a module.\n\n## Pages\n\n"+"\n".join(rest)+"\n"

if __name__ == "__main__": (root/"llms.txt").write_text(llms(), encoding="utf-8")
