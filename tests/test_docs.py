"What the site is made from: every public function says what goes in, every notebook has a title, the files beside the code agree."
import importlib
import inspect
import json
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from liresnet_nb import docs
from liresnet_nb.core import InputError, choose
from liresnet_nb.docs import methods, parameters, refusals, table

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
MODULES = sorted(".".join(p.relative_to(ROOT/"liresnet_nb").with_suffix("").parts) for p in (ROOT/"liresnet_nb").rglob("[!_]*.py"))


def public(module):
    "The functions and classes that a module exports"
    names = importlib.import_module(f"liresnet_nb.{module}")
    return {n: getattr(names, n) for n in names.__all__ if inspect.isroutine(getattr(names, n)) or inspect.isclass(getattr(names, n))}


def undocumented(obj):
    "What is missing from the table of a function or a class"
    if not (obj.__doc__ or "").strip() or (is_dataclass(obj) and obj.__doc__.startswith(f"{obj.__name__}(")): yield "docstring"
    for name, (kind, _, meaning) in parameters(obj).items():
        ours = getattr(kind, "__module__", "").startswith("liresnet_nb.")      # a type with a table of its own
        if name != "return" and not ours and not meaning: yield name
    if inspect.isclass(obj): yield from (f"{n}({p})" for n, f in methods(obj).items() for p in undocumented(f))


@pytest.mark.parametrize("module", MODULES)
def test_every_parameter_of_a_public_function_has_its_meaning(module):
    missing = {name: list(undocumented(obj)) for name, obj in public(module).items()}
    assert not {n: m for n, m in missing.items() if m}


def test_a_run_is_kept_until_something_it_depends_on_changes(tmp_path, monkeypatch):
    lib, nbs = tmp_path/"lib", tmp_path/"nbs"
    (lib/"recorded"/"table8-laptop"/"cell").mkdir(parents=True)
    nbs.mkdir()
    cfg = SimpleNamespace(lib_path=lib, nbs_path=nbs, requirements="torch>=2")
    plain, reads = nbs/"a.ipynb", nbs/"b.ipynb"
    files = [lib/"core.py", lib/"recorded"/"flips.csv", nbs/"x.json", lib/"recorded"/"table8-laptop"/"cell"/"result.json"]
    for p in (plain, *files): p.write_text("1")
    reads.write_text('recorded("table8-laptop")')
    for k, p in enumerate(files):
        before = [docs._inputs(n, cfg) for n in (plain, reads)]
        assert before == [docs._inputs(n, cfg) for n in (plain, reads)]
        p.write_text("2")
        changed = [docs._inputs(n, cfg) != b for n, b in zip((plain, reads), before)]
        assert changed == [k < 3, True], p            # an experiment counts for the notebooks that name it
    before = docs._inputs(plain, cfg)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")      # other kernels: another run
    assert docs._inputs(plain, cfg) != before


def test_a_run_that_took_long_is_kept_as_well(tmp_path, monkeypatch):
    cfg, ran = SimpleNamespace(lib_path=tmp_path/"lib", nbs_path=tmp_path, config_path=tmp_path, requirements="torch>=2"), []
    (tmp_path/"a.ipynb").write_text("1")
    monkeypatch.setattr(docs, "get_config", lambda: cfg)
    monkeypatch.setattr(docs, "run_notebook", lambda path: ran.append(path) or dict(outputs={}, seconds=1e5, solutions=0))
    assert docs.executed(tmp_path/"a.ipynb") == docs.executed(tmp_path/"a.ipynb") and len(ran) == 1


def test_a_parameter_without_a_word_is_found():
    def f(a, b,   # known
          ): "Docs"
    def g(a,      # known
          ): pass
    class C:
        "Docs"
        def named(self, a): "Docs"
        def unnamed(self, a): pass
        @property
        def value(self): "Docs"
    assert list(undocumented(f)) == ["a"] and list(undocumented(g)) == ["docstring"] and list(undocumented(C)) == ["named(a)"]


class Refuses:
    "A class that says no."
    def __init__(self,
        n,     # a number
    ):
        if n < 0: raise InputError(f"{n} is below 0: wanted "
                                   "0 or more")
    def pick(self,
        name,  # a | or b
    ):
        "Pick one."
        return choose(name, "ab", "letter")


def test_a_table_says_what_is_refused_and_what_methods_do():
    assert refusals(Refuses.__init__) == ["… is below 0: wanted 0 or more"] and refusals(Refuses.pick) == ["unknown letter …: choose one of …"]
    text = table(Refuses, "Refuses")
    first, second = text.split("#### Refuses.pick")
    assert "| raises | `InputError` |  | … is below 0: wanted 0 or more |" in first and "letter" not in first
    assert "Pick one." in second and "| `name` |  |  | a \\| or b |" in second and "unknown letter" in second


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_first_cell_is_the_title(path):
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
    assert first["cell_type"] == "markdown" and re.fullmatch(r"# .+\n\n> .+\s*", "".join(first["source"])), "nbdev drops whatever else is in it"


def test_page_names_are_unique():
    names = [re.sub(r"^\d+[a-z]?_", "", p.stem) for p in NOTEBOOKS]
    assert len(set(names)) == len(names)


def test_yaml_files_are_read():
    for name in ("_quarto.yml", "nbs/_quarto.yml", "CITATION.cff", ".github/workflows/site.yml"):
        assert yaml.safe_load((ROOT/name).read_text(encoding="utf-8"))
    version = re.search(r"^version = (.+)$", (ROOT/"settings.ini").read_text(), re.M)[1]
    assert str(yaml.safe_load((ROOT/"CITATION.cff").read_text())["version"]) == version
    assert f"## {version}" in (ROOT/"CHANGELOG.md").read_text()


def test_development_requirements_are_pinned():
    ini = (ROOT/"settings.ini").read_text()
    wanted = re.search(r"^dev_requirements = (.+)$", ini, re.M)[1].split()
    pinned = {line.split("==")[0] for line in (ROOT/"constraints.txt").read_text().splitlines()}
    assert not {re.split("[<>=]", w)[0] for w in wanted}-pinned


def test_a_page_says_how_to_run_it():
    sys.path.insert(0, str(ROOT/"docs"))
    from build import linked, run_line
    local = run_line("16_explore.ipynb", "https://example.invalid/liresnet_nb")
    assert "make lab" in local and "notebooks/16_explore.ipynb" in local and "Binder" not in local
    public = run_line("16_explore.ipynb", "https://github.com/someone/liresnet_nb")
    assert "mybinder.org/v2/gh/someone/liresnet_nb/main?urlpath=lab/tree/nbs/16_explore.ipynb" in public
    assert "colab.research.google.com/github/someone/liresnet_nb/blob/colab/16_explore.ipynb" in public
    assert linked("[a](24_x.ipynb#here), [b](../docs/LOG.md)") == "[a](x.ipynb#here), [b](log.md)"
