"The tools that check: what is slow is a remark, what fails is named, what trains is found."
import check
import portable
import pytest


def told(monkeypatch, capsys, **results):
    "What `check.py notebooks` prints and exits with where these are the seconds, or the error, of each notebook."
    def run(path, anew):
        found = results[path.stem]
        return (path.name, None, found) if isinstance(found, str) else (path.name, dict(seconds=found, solutions=1), None)
    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check, "chosen", lambda *_: [check.root/"nbs"/f"{name}.ipynb" for name in results])
    try: code = check.notebooks()
    except SystemExit as e: code = e.code
    return code, capsys.readouterr().out


def test_a_slow_notebook_is_a_remark_and_a_failure_is_a_failure(monkeypatch, capsys):
    code, said = told(monkeypatch, capsys, quick=1., slow=5000.)
    assert code is None and "a remark and no failure: slow.ipynb" in said and "2 passed, 0 failed" in said
    code, said = told(monkeypatch, capsys, quick=1., broken="ZeroDivisionError")
    assert code == "failed: broken.ipynb" and "broken.ipynb failed:\nZeroDivisionError" in said and "remark" not in said


def test_notebooks_that_train_are_found_by_what_they_call():
    every, training = ({p.name[:3] for p in check.chosen((), t)} for t in (False, True))
    assert {"10_", "19b", "20_", "25_", "27_"} <= training < every and not training & {"02_", "09_", "22_", "30_", "40_"}
    assert [p.name[:2] for p in check.chosen(("20", "22"), True)] == ["20"]


def test_each_variant_runs_what_trains_and_one_that_fails_is_named(monkeypatch, capsys):
    ran = []

    def run(name, words):
        ran.append((name, *words[:3]))
        return name != "avx2" or "pytest" not in words
    monkeypatch.setattr(portable, "run", run)
    monkeypatch.setattr("sys.argv", ["portable.py"])
    with pytest.raises(SystemExit) as e: portable.main()
    assert e.value.code == "failed: avx2, tests" and "avx2         tests      FAILED" in capsys.readouterr().out
    assert [name for name, *words in ran if "tools/check.py" in words] == list(portable.VARIANTS)
    ran.clear()
    monkeypatch.setattr("sys.argv", ["portable.py", "--variant", "default", "--only", "notebooks", "35"])
    portable.main()
    assert {name for name, *_ in ran} == {"default"} and not any("pytest" in words for words in ran)
    assert "-k" not in portable.checks("default", None, [], None)["tests"] and portable.checks("default", "x", [], "tests").keys() == {"tests"}
