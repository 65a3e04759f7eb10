"The package as a whole: imports go one way, notebooks stay clean, nothing heavy is pulled in."
import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from liresnet_nb.core import InputError, add_flags, atomic_path, check_epsilon, check_images, check_whole, choose, from_dict
from liresnet_nb.core import number, run_command, threads

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
ORDER = [m[1] for p in NOTEBOOKS for m in [re.search(r"#\|\s*default_exp ([\w.]+)", p.read_text(encoding="utf-8"))] if m]


def test_every_module_imports_earlier_ones_only():
    assert ORDER[0] == "core"
    for k, name in enumerate(ORDER):
        tree = ast.parse((ROOT/"liresnet_nb"/f"{name.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom): continue
            inside = node.level or (node.module or "").startswith("liresnet_nb.")
            used = (node.module or "").removeprefix("liresnet_nb.")
            assert not inside or used in ORDER[:k] or used == name, f"{name} imports {used}, which comes later or is no notebook's"


def test_every_exported_module_has_its_notebook():
    files = (p.relative_to(ROOT/"liresnet_nb").with_suffix("") for p in (ROOT/"liresnet_nb").rglob("*.py"))
    modules = {".".join(p.parts) for p in files if p.name not in ("__init__", "_modidx")}
    assert modules == set(ORDER)


def test_losses_and_margins_never_see_a_model():
    for name in ("losses", "margins"):
        assert "liresnet_nb.model" not in (ROOT/"liresnet_nb"/f"{name}.py").read_text(encoding="utf-8")


def test_the_library_needs_no_development_tool():
    modules = ", ".join(f"liresnet_nb.{name}" for name in ORDER if name != "docs")      # that one is a development tool
    code = f"import sys, {modules}; bad = {{'nbdev', 'execnb', 'jupyterlab', 'pytest', 'hypothesis', 'sphinx', 'nbclient'}} & set(sys.modules); sys.exit(str(bad) if bad else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_chapters(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [c for c in cells if c["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code), "outputs belong to the docs, not to git"
    assert len({c["id"] for c in cells}) == len(cells)
    text = "".join("".join(c["source"])+"\n" for c in cells if c["cell_type"] == "markdown")
    assert text.startswith("# ") and "\n> " in text
    if path.stem != "index":
        assert "**Question.**" in text and "## Exercise" in text
    for c in code:
        source = "".join(c["source"])
        lines = [line for line in source.splitlines() if line and not line.startswith(("#", " "))]
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert not imports or len(imports) == len(lines), f"imports share a cell with code: {source[:80]}"


def test_numbers_as_people_write_them():
    assert [number(t) for t in ("36/255", "0.3", "1e-3", 2, " 1/4 ")] == [36/255, .3, 1e-3, 2., .25]
    for bad in ("", "a/b", "1/0", None, "0x10"):
        with pytest.raises(InputError, match="cannot read"): number(bad)
    assert check_epsilon(0, zero=True) == 0
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="epsilon is"): check_epsilon(bad)


def test_atomic_files_are_whole_or_absent(tmp_path):
    target = tmp_path/"x"
    with pytest.raises(RuntimeError), atomic_path(target) as p:
        p.write_text("half")
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with atomic_path(target) as p: p.write_text("whole")
    assert target.read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_unknown_names_and_keys_suggest_the_nearest():
    import dataclasses

    @dataclasses.dataclass(frozen=True)
    class Config: epsilon: float = 1.
    with pytest.raises(InputError, match="did you mean 'epsilon'"): from_dict(Config, dict(epsilom=1))
    with pytest.raises(InputError, match="choose one of a, b"): choose("zzz", "ab", "thing")


def test_flags_and_one_line_errors(capsys):
    import argparse

    from liresnet_nb.train import TrainConfig
    parser = argparse.ArgumentParser("x")
    add_flags(parser, TrainConfig)
    assert vars(parser.parse_args([])) == {} and vars(parser.parse_args(["--epsilon", "1/4", "--no-flip", "--epochs", "3"])) == dict(epsilon=.25, flip=False, epochs=3)

    def fail(args): raise InputError("what was given; what is wanted")
    assert run_command(fail, parser, []) == 2 and capsys.readouterr().err == "x: what was given; what is wanted\n"


def status(body):
    "Exit status and errors of a process whose command does `body`; of its output, one line is read."
    code = f"import argparse, sys, time\nfrom liresnet_nb.core import InputError, run_command\ndef go(args): {body}\nsys.exit(run_command(go, argparse.ArgumentParser('x'), []))"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}        # so that something is left to write at exit
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        p.stdout.readline()
        p.stdout.close()
        err = p.stderr.read()
    return p.returncode, err


@pytest.mark.parametrize("body, code, words", [
    ("print('ok')", 0, ""), ("return 1", 1, ""), ("raise SystemExit(3)", 3, ""), ("raise InputError('no')", 2, "x: no\n"),
    ("raise BrokenPipeError(32, 'a worker is gone')", 2, "x: .*a worker is gone\n"), ("1/0", 2, "Traceback.*ZeroDivisionError.*"),
    ("raise KeyboardInterrupt", -2, "Traceback.*KeyboardInterrupt\n"), ("[print(k) for k in range(10**6)]", 141, ""),
    ("print('first', flush=True), time.sleep(0.5), print('at exit')", 141, "")],
    ids=["fine", "no", "exit", "refused", "another pipe", "crash", "ctrl-c", "head", "head at exit"])
def test_the_exit_status_says_what_happened(body, code, words):
    found, err = status(body)
    assert found == code and re.fullmatch(words, err, re.DOTALL)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    with threads(before+1): assert torch.get_num_threads() == before+1
    with pytest.raises(KeyboardInterrupt), threads(before+2): raise KeyboardInterrupt
    with threads(None): assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before
    for bad in (0, 1.5, True):
        with pytest.raises(InputError, match="threads is"), threads(bad): pass


def test_true_is_no_number_of_images():
    check_whole(batch=1)
    with pytest.raises(InputError, match="batch is True: wanted a whole number"): check_whole(batch=True)


@pytest.mark.parametrize("change, words", [(lambda x: x.to("meta"), "device 'meta'"), (lambda x: x.to_sparse(), "sparse_coo: wanted a dense"), (lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged), "wanted a dense")], ids=["meta", "sparse", "nested"])
def test_images_without_numbers_are_one_line(change, words):
    with pytest.raises(InputError, match=words) as e: check_images(change(torch.rand(2, 1, 4, 4)))
    assert "\n" not in str(e.value)


def test_nothing_committed_names_a_machine():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode: pytest.skip("not a git checkout")
    for name in listed.stdout.split("\n"):
        p = ROOT/name
        if p.suffix in (".py", ".ipynb", ".md", ".txt", ".ini", ".yml", ".json", ".csv") and p != Path(__file__) and p.is_file():
            assert not re.search(r"/work/|/root/|/home/", p.read_text(encoding="utf-8")), name
