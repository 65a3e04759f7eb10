"Experiments: names that stay, cells that are run once, kills that change nothing, folders with one owner."
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from conftest import weights

import liresnet_nb.experiments as ex
from liresnet_nb.core import InputError
from liresnet_nb.data import DRAWING, load_task, tell_drawing
from liresnet_nb.evaluate import wilson
from liresnet_nb.model import build_model
from liresnet_nb.train import Diverged, TrainConfig, load_run

FIXED = dict(task="glyphs", n_classes=3, model="L1W8", epochs=3, epsilon=0.25, batch=64, lr=6e-3, save_seconds=0.)
TINY = ex.Grid("tiny", "does it run?", dict(loss=("emma", "trades")), FIXED, seeds=(0,))
QUIET = dict(progress=False, device="cpu")
KEPT = ("seconds", "commit", "hardware")      # may differ between two runs of a cell


def told(folder):
    return {p.parent.name: {k: v for k, v in json.loads(p.read_text()).items() if k not in KEPT} for p in folder.glob("*/result.json")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "The tiny grid, run without interruption, with its weights."
    out = tmp_path_factory.mktemp("grids")
    return out/"tiny-laptop", ex.reproduce(TINY, out, keep_weights=True, **QUIET)


def test_folder_names_are_stable_and_differ():
    assert [c.folder for c in TINY.rows()] == ["loss=emma-seed=0", "loss=trades-seed=0"]
    mixed = ex.Grid("g", "?", dict(how={"a b/c": dict(lr=1e-3)}, epsilon=(0.25, 36/255)), seeds=(0, 7))
    assert [c.folder for c in mixed.rows()] == ["how=a_b_c-epsilon=0.25-seed=0", "how=a_b_c-epsilon=0.141176-seed=0",
                                                "how=a_b_c-epsilon=0.25-seed=7", "how=a_b_c-epsilon=0.141176-seed=7"]
    assert mixed.cells()[3] == dict(lr=1e-3, epsilon=36/255, seed=7)
    with pytest.raises(InputError, match="the cell loss=emma-seed=0 twice"): dataclasses.replace(TINY, vary=dict(loss=("emma", "emma")))
    for bad in (dict(seeds=()), dict(vary=dict(loss=())), dict(vary=dict(loss="emma")), dict(seeds=(0.5,))):
        with pytest.raises(InputError, match="wanted"): dataclasses.replace(TINY, **bad)


@pytest.mark.parametrize("key", ex.GRIDS, ids="-".join)
def test_declared_grids_are_made_of_config_fields(key):
    known = {f.name for f in dataclasses.fields(TrainConfig)} | {"backbone", "activation", "head"}
    found = ex.GRIDS[key]
    assert (found.name, found.scale) == key and found.cells() and "\n" not in found.question
    judged = "valid" if found.name in ("settings", "power", "convnet") else "test"             # settings are never chosen on the test set
    assert all(set(cell) <= known and cell["held_out"] == judged for cell in found.cells())


def test_the_papers_setting_is_the_papers():
    sizes = {name: len(ex.grid(name, "paper").cells()) for name, scale in ex.GRIDS if scale == "paper"}
    assert sizes == dict(table1=9*5, table2=18*5, table3=18*5, table6=18*5, table7=14*3, table8=6*5, figure3=3*3, cifar10=3)
    for (name, scale), found in ex.GRIDS.items():
        for f in found.cells() if scale == "paper" else ():
            large = f["task"] == "imagenet"
            assert (f["epochs"], f["batch"], f["lr"], f["epsilon_end"]) == ((400, 1024) if large else (800, 256))+(1e-3, 1.5), name
            plain = {k: v for k, v in f.items() if k not in ("backbone", "head")}
            assert plain["model"][0] != "L" or ex.Cell("", {}, plain).config().epsilon == (1. if large else 36/255)


def test_grids_are_found_and_narrowed():
    assert ex.grid("table5") == ex.grid("table3") and ex.grid("figure1", "paper").name == "table6"
    few = ex.grid("table2", classes=[10], seeds=[4], loss="emma")
    whole = {c.folder: c.fields for c in dataclasses.replace(ex.grid("table2"), seeds=(4,)).rows()}
    assert len(few.rows()) == 2 and all(whole[c.folder] == c.fields for c in few.rows())
    assert ex.grid("table8", classes=[50]).fixed["n_classes"] == 50
    assert {f["task"] for f in ex.grid("table1", "paper", data="tiny-imagenet").cells()} == {"tiny-imagenet"}
    digits = ex.grid("table6", data="digits")
    assert "n_classes" not in {k for f in digits.cells() for k in f} and digits.rows()[0].config().epsilon == 0.3
    for bad, why in ((dict(name="tabel2"), "did you mean 'table2'"), (dict(scale="huge"), "laptop, paper"), (dict(data="cifra10"), "cifar10"),
                     (dict(scale="paper", data="digits"), "choose one of cifar10, cifar100"), (dict(scale="paper", classes=[10]), "all their classes"),
                     (dict(data="digits", classes=[5]), "all their classes"), (dict(epoch=3), "did you mean 'epochs'"), (dict(seeds=[]), "at least one")):
        with pytest.raises(InputError, match=why): ex.grid(**dict(name="table2") | bad)


def test_multiply_adds_by_hand():
    net = build_model("L1W8", (1, 16, 16), 3, dense=32)
    stem, block, neck = 8*8*8*1*25, 8*8*8*8*9, 2*2*16*8*16
    assert sum(ex.multiply_adds(net).values()) == stem+block+neck+32*2*2*16+3*32
    assert not any(op._forward_hooks for op in net.modules())


@pytest.mark.parametrize("fields", [dict(task="digits"), dict(task="glyphs", n_classes=20), dict(task="glyphs", n_classes=4, held_out="valid")], ids=str)
def test_sizes_are_known_without_the_images(fields):
    config = TrainConfig(**fields)
    task = load_task(fields["task"], **{k: v for k, v in fields.items() if k != "task"})
    assert ex.task_size(config) == (task.image_shape, task.n_classes, len(task.train), len(task.test))


def test_a_plan_counts_and_names_problems(tmp_path, monkeypatch):
    monkeypatch.setenv("LIRESNET_DATA", str(tmp_path))
    cost = ex.plan(dataclasses.replace(TINY, vary=dict(model=("L1W8", "L1W7", "L1W16"), task=("glyphs", "tiny-imagenet"))), "cpu")
    cost = cost.set_index("cell")
    one = cost.loc["model=L1W8-task=glyphs-seed=0"]
    net = build_model("L1W8", (1, 16, 16), 3)
    assert one.parameters == sum(p.numel() for p in net.parameters()) and one.images == 300 and one.problem == ""
    assert one.pflop == pytest.approx(6e-15*sum(ex.multiply_adds(net).values())*300*3)
    assert 0 < one.hours < 0.01 and cost.loc["model=L1W16-task=glyphs-seed=0"].macs > one.macs
    assert "even number" in cost.loc["model=L1W7-task=glyphs-seed=0"].problem and pd.isna(cost.loc["model=L1W7-task=glyphs-seed=0"].hours)
    assert "tiny-imagenet is not in" in cost.loc["model=L1W8-task=tiny-imagenet-seed=0"].problem
    assert not list(tmp_path.iterdir())


def test_results_say_where_they_come_from(done):
    folder, table = done
    said = json.loads((folder/"loss=emma-seed=0"/"result.json").read_text())
    rows = pd.read_csv(folder/"loss=emma-seed=0"/"examples.csv.gz")
    assert table.loss.tolist() == ["emma", "trades"] and table.failed.isna().all() and (table.n == 75).all()
    assert said["vra"] == ((rows.pred == rows.label) & (rows.radius > 0.25)).mean() <= said["clean_acc"] == (rows.pred == rows.label).mean()
    assert said["config"]["loss"] == "emma" and said["held_out"] == "test" and said["seconds"]["wall"] > 0 and said["versions"]["torch"] == torch.__version__
    assert len(pd.read_csv(folder/"loss=emma-seed=0"/"history.csv")) == said["epochs"] == 3
    assert "--n-classes 3" in said["command"] and str(Path.cwd()) not in json.dumps(said)
    pd.testing.assert_frame_equal(ex.results(folder), table)
    pd.testing.assert_frame_equal(ex.results(folder.parent), table)


def test_finished_cells_are_not_run_again_and_weights_go(done, tmp_path):
    first = ex.reproduce(TINY, tmp_path, **QUIET)
    times, epochs = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}, []
    again = ex.reproduce(TINY, tmp_path, **QUIET, on_epoch=lambda *a: epochs.append(a))
    assert len(times) == 2 and not epochs and all(p.stat().st_mtime_ns == t for p, t in times.items())
    pd.testing.assert_frame_equal(first, again)
    assert told(tmp_path/"tiny-laptop") == told(done[0])
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("clock.json"))
    assert len(list(done[0].rglob("checkpoint.safetensors"))) == 2


CUT = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_experiments import TINY, QUIET, ex
    def cut(folder, done):
        if folder.startswith("loss=trades") and done == 2: os.kill(os.getpid(), signal.SIGKILL)
    ex.reproduce(TINY, {out!r}, keep_weights=True, on_epoch=cut, **QUIET)
"""


def test_killed_in_the_middle_of_a_cell_is_not_another_run(done, tmp_path):
    code = textwrap.dedent(CUT.format(tests=str(Path(__file__).parent), out=str(tmp_path)))
    killed = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder, epochs = tmp_path/"tiny-laptop", []
    assert list(told(folder)) == ["loss=emma-seed=0"] and (folder/"loss=trades-seed=0"/"run"/"checkpoint.safetensors").exists()
    ex.reproduce(TINY, tmp_path, keep_weights=True, on_epoch=lambda *a: epochs.append(a), **QUIET)
    assert epochs == [("loss=trades-seed=0", 3)]                       # the first two epochs were kept
    assert told(folder) == told(done[0])
    one, other = (load_run(f/"loss=trades-seed=0"/"run").model for f in (folder, done[0]))
    assert torch.equal(weights(one), weights(other))
    rows = [(f/"loss=trades-seed=0"/"examples.csv.gz").read_bytes() for f in (folder, done[0])]
    assert rows[0] == rows[1]


def test_ctrl_c_stops_and_says_how_to_go_on(tmp_path, capsys):
    def cut(folder, done):
        if folder.startswith("loss=trades"): raise KeyboardInterrupt
    table = ex.reproduce(TINY, tmp_path, device="cpu", on_epoch=cut)
    assert len(table) == 1 and "1 of 2 cells are finished" in (said := capsys.readouterr()).out and "goes on" in said.out
    assert len(ex.reproduce(TINY, tmp_path, **QUIET)) == 2


def test_what_fails_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    grid, real, calls = dataclasses.replace(TINY, vary=dict(loss=("gloro", "emma", "trades", "nonsense"))), ex.fit, []

    def fit(task, config, **how):
        calls.append(config.loss)
        if config.loss == "emma": raise Diverged("the loss became nan\nand more")
        if config.loss == "gloro": raise MemoryError("no room")
        return real(task, config=config, **how)
    monkeypatch.setattr(ex, "fit", fit)
    table = ex.reproduce(grid, tmp_path, **QUIET).set_index("loss")
    assert table.failed[["gloro", "emma"]].tolist() == ["MemoryError: no room", "the loss became nan"]
    assert "unknown loss" in table.failed["nonsense"] and pd.isna(table.failed["trades"]) and table.vra["trades"] > 0
    assert calls == ["gloro", "emma", "trades"]
    ex.reproduce(grid, tmp_path, **QUIET)
    assert calls == ["gloro", "emma", "trades"]
    ex.reproduce(grid, tmp_path, retry_failed=True, **QUIET)
    assert calls == ["gloro", "emma", "trades", "gloro", "emma"]
    monkeypatch.setattr(ex, "fit", real)
    assert ex.reproduce(grid, tmp_path, retry_failed=True, **QUIET).failed.notna().sum() == 1
    whole = ex.summary(ex.results(tmp_path))
    assert whole.set_index("loss").failed.to_dict() == dict(gloro=0, emma=0, trades=0, nonsense=1)


def test_a_folder_of_another_experiment_is_refused(done):
    folder = done[0]
    for other, why in ((dict(version=2), "version is 1 there and 2 here"), (dict(fixed=FIXED | dict(lr=1e-3)), "lr is 0.006 there and 0.001 here"),
                       (dict(fixed={k: v for k, v in FIXED.items() if k != "lr"}), "lr is 0.006 there and None here"),
                       (dict(attack=dict(images=5, steps=2)), "attack is None there")):
        with pytest.raises(InputError, match=why): ex.reproduce(dataclasses.replace(TINY, **other), folder.parent, **QUIET)
    joint = dataclasses.replace(TINY, vary=dict(loss={"emma": dict(loss="gloro")}))      # the same name, another training
    with pytest.raises(InputError, match="loss is 'emma' there and 'gloro' here"): ex.reproduce(joint, folder.parent, **QUIET)
    assert len(ex.reproduce(dataclasses.replace(TINY, fixed=FIXED | dict(save_seconds=9., device="cpu")), folder.parent, keep_weights=True, **QUIET)) == 2


def drawn_earlier(folder):
    "Make a finished grid one of the time before drawings had versions"
    for path in (folder/"grid.json", *folder.glob("*/result.json")):
        said = json.loads(path.read_text())
        said.pop("drawing")
        said.get("config", {}).pop("drawing", None)
        path.write_text(json.dumps(said))


def test_the_drawing_is_recorded_and_a_folder_keeps_to_one(done, tmp_path, capsys):
    assert all(json.loads((done[0]/f).read_text())["drawing"] == DRAWING for f in ("grid.json", "loss=emma-seed=0/result.json"))
    folder, tell = shutil.copytree(done[0], tmp_path/"tiny-laptop"), tell_drawing
    drawn_earlier(folder)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    more = dataclasses.replace(TINY, seeds=(0, 1))
    for grid in (TINY, more):
        with pytest.raises(InputError, match=r"tiny-laptop holds results on drawing 1 of the glyphs, and 2 is made today: choose another folder; .* readable") as e: ex.reproduce(grid, tmp_path, **QUIET)
        assert "\n" not in str(e.value)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"} == before
    tell.cache_clear(); capsys.readouterr()
    pd.testing.assert_frame_equal(ex.results(folder), done[1])
    assert "Recorded on drawing 1 of the glyphs" in capsys.readouterr().out
    (folder/"grid.json").unlink()
    with pytest.raises(InputError, match="holds another run .drawing is 1 there and 2 here"): ex.reproduce(TINY, tmp_path, **QUIET)


def test_nothing_is_taken_over_from_another_drawing(done, tmp_path, monkeypatch):
    drawn_earlier(shutil.copytree(done[0], tmp_path/"old-laptop"))
    trained = []
    monkeypatch.setattr(ex, "fit", lambda *a, _fit=ex.fit, **k: trained.append(k["config"].loss) or _fit(*a, **k))
    ex.reproduce(TINY, tmp_path, **QUIET)
    assert trained == ["emma", "trades"]


def test_what_is_not_made_has_no_drawing(tmp_path):
    fixed = {k: v for k, v in FIXED.items() if k not in ("task", "n_classes")} | dict(epochs=1)
    digits = dataclasses.replace(TINY, vary=dict(task=("digits",)), fixed=fixed)
    ex.reproduce(digits, tmp_path, **QUIET)
    folder, drawing = tmp_path/"tiny-laptop", lambda path: json.loads(path.read_text())["drawing"]
    assert drawing(folder/"grid.json") is None and drawing(folder/"task=digits-seed=0"/"result.json") is None
    drawn_earlier(folder)                                                  # without made images there is nothing to mix
    assert len(ex.reproduce(digits, tmp_path, **QUIET)) == 1
    shutil.rmtree(folder)
    ex.reproduce(digits, tmp_path, **QUIET)
    ex.reproduce(dataclasses.replace(digits, vary=dict(task=("digits", "glyphs"))), tmp_path, **QUIET)
    assert drawing(folder/"grid.json") == DRAWING == drawing(folder/"task=glyphs-seed=0"/"result.json")


def test_recorded_grids_say_their_drawing():
    "What shipped before drawings had versions is of drawing 1, whatever is drawn today"
    said = {p.parent.name: json.loads(p.read_text(encoding="utf-8")) for p in ex.recorded("table2-laptop").parent.glob("*/grid.json")}
    assert len(said) == 11 and {k: g.get("drawing") for k, g in said.items()} == {k: 1 if g["fixed"]["task"] == "glyphs" else None for k, g in said.items()}


def test_a_damaged_result_is_named(tmp_path):
    home = tmp_path/"tiny-laptop"/"loss=emma-seed=0"
    home.mkdir(parents=True)
    (home/"result.json").write_text("{")
    with pytest.raises(InputError, match="result.json is damaged: delete it"): ex.reproduce(TINY, tmp_path, **QUIET)
    with pytest.raises(InputError, match="holds no experiment"): ex.results(tmp_path/"nothing")


HOLD = "import sys, time; from liresnet_nb.experiments import held\nwith held(sys.argv[1]): print('held', flush=True); time.sleep(60)"


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path):
    folder = tmp_path/"tiny-laptop"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {first.pid}"): ex.reproduce(TINY, tmp_path, **QUIET)
        assert [p.name for p in folder.iterdir()] == [".lock"]
    finally: first.kill(); first.wait()
    with ex.held(folder): pass


def test_the_lock_without_fcntl(tmp_path, monkeypatch):
    monkeypatch.setattr(ex, "fcntl", None)
    with ex.held(tmp_path):
        with pytest.raises(InputError, match=f"in use by process {os.getpid()}.*delete"), ex.held(tmp_path): pass
    with ex.held(tmp_path): pass
    assert not (tmp_path/".lock").exists()


def test_missing_data_are_listed_and_the_rest_is_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LIRESNET_DATA", str(tmp_path/"data"))
    fixed = {k: v for k, v in FIXED.items() if k not in ("task", "n_classes")}
    grid = dataclasses.replace(TINY, vary=dict(task=("tiny-imagenet", "digits")), fixed=fixed | dict(epochs=1))
    table = ex.reproduce(grid, tmp_path, device="cpu").set_index("task")
    assert "not run: tiny-imagenet not found" in table.failed["tiny-imagenet"] and pd.isna(table.failed["digits"]) and table.clean["digits"] > 0
    out = capsys.readouterr().out
    assert "1 of 2 cells can be run; not these:" in out and "task=tiny-imagenet-seed=0" in out
    assert list(told(tmp_path/"tiny-laptop")) == ["task=digits-seed=0"]          # not recorded: the data may come later


def test_workers_find_what_one_process_finds(done, tmp_path):
    def cut(folder, done): raise KeyboardInterrupt
    assert len(ex.reproduce(TINY, tmp_path, workers=2, on_epoch=cut, **QUIET)) < 2
    table = ex.reproduce(TINY, tmp_path, workers=2, keep_weights=True, **QUIET)
    assert table.failed.isna().all() and told(tmp_path/"tiny-laptop") == told(done[0])


def test_what_another_experiment_trained_is_taken_over(tmp_path, monkeypatch):
    tracked = dataclasses.replace(TINY, name="flips", vary=dict(loss=("emma",)), fixed=FIXED | dict(track=True))
    ex.reproduce(tracked, tmp_path, **QUIET)
    trained = []
    monkeypatch.setattr(ex, "fit", lambda *a, _fit=ex.fit, **k: trained.append(k["config"].loss) or _fit(*a, **k))
    table = ex.reproduce(TINY, tmp_path, **QUIET)
    assert trained == ["trades"] and table.failed.isna().all()
    home, there = tmp_path/"tiny-laptop"/"loss=emma-seed=0", tmp_path/"flips-laptop"/"loss=emma-seed=0"
    said, was = (json.loads((h/"result.json").read_text()) for h in (home, there))
    assert said.pop("taken_from") == "flips-laptop/loss=emma-seed=0" and said["grid"] == "tiny" and not said["config"]["track"]
    assert all(said[k] == was[k] for k in was if k not in ("grid", "config"))
    assert (home/"examples.csv.gz").read_bytes() == (there/"examples.csv.gz").read_bytes()
    ex.reproduce(TINY, tmp_path, **QUIET)                              # taken over once, finished since
    other = dataclasses.replace(TINY, name="other", vary=dict(loss=("emma",)))
    for grid in (dataclasses.replace(other, name="seeds", seeds=(1,)), dataclasses.replace(other, attack=dict(images=5, steps=2))):
        trained.clear()
        ex.reproduce(grid, tmp_path, **QUIET)
        assert trained == ["emma"]                                     # another seed, or attacked: another result
    trained.clear()
    back = dataclasses.replace(tracked, name="back", vary=dict(loss=("trades",)))
    ex.reproduce(back, tmp_path, **QUIET)
    assert trained == ["trades"]                                       # that one kept no flips


def test_recorded_radii_are_rounded_down():
    rows = pd.DataFrame(dict(index=[0, 1, 2], label=0, pred=0, margin=1/3, radius=[2/3, 0., 1e-9/3], radius_est=2/3))
    short = ex._short(rows)
    assert short.radius.tolist() == [.666666, 0., 3.33333e-10] and (short.margin == .333333).all() and (short.radius_est == .666667).all()


def test_attacks_and_flips_where_they_are_asked_for(tmp_path):
    grid = dataclasses.replace(TINY, vary=dict(loss=("emma",)), fixed=FIXED | dict(track=True), attack=dict(images=20, steps=5))
    one = ex.reproduce(grid, tmp_path, **QUIET).iloc[0]
    home = tmp_path/"tiny-laptop"/"loss=emma-seed=0"
    rows, history = pd.read_csv(home/"examples.csv.gz"), pd.read_csv(home/"history.csv")
    asked = rows[rows.robust.notna()]
    assert len(asked) == 20 and one.pgd == asked.robust.astype(bool).mean()
    assert not (asked.pred != asked.label)[asked.robust.astype(bool)].any()
    assert history.flip_rate.isna().tolist() == [True, False, False] and history.threat_flip_rate[1:].between(0, 1).all()


def test_a_summary_pools_the_seeds():
    rows = [dict(grid="g", loss="emma", seed=s, clean=c, vra=v, pgd=None, n=n, failed=f)
            for s, c, v, n, f in ((0, .9, .5, 100, None), (1, .8, .7, 100, None), (2, None, None, None, "no"))]
    one = ex.summary(pd.DataFrame(rows)).iloc[0]
    assert (one.loss, one.runs, one.failed) == ("emma", 2, 1) and (one.vra, one.vra_min, one.vra_max) == (pytest.approx(.6), .5, .7)
    assert (one.low, one.high) == pytest.approx(wilson(.6, 200))
    assert len(ex.summary(pd.DataFrame(rows), by="seed")) == 3
    with pytest.raises(InputError, match="unknown column"): ex.summary(pd.DataFrame(rows), by="width")


def test_one_class_and_a_file_in_the_way_are_refused(tmp_path):
    with pytest.raises(InputError, match="classes has 1: wanted numbers of at least 2"): ex.grid("table2", classes=[10, 1])
    (tmp_path/"tiny-laptop").mkdir()
    (tmp_path/"tiny-laptop"/"loss=trades-seed=0").write_text("mine")
    with pytest.raises(InputError, match="is a file: wanted a folder"): ex.reproduce(TINY, tmp_path, **QUIET)
    assert (tmp_path/"tiny-laptop"/"loss=trades-seed=0").read_text() == "mine"


def test_the_bar_knows_the_work_of_images_in_a_folder(tmp_path):
    for k, name in enumerate(("train/a", "train/b", "test/a", "test/b")):
        (tmp_path/name).mkdir(parents=True)
        for i in range(3): Image.new("RGB", (8, 8), (40*k, 60*i, 0)).save(tmp_path/name/f"{i}.png")
    fixed = dict(task="folder", model="L1W8", epochs=5, batch=4)
    bar = ex._Bar(dataclasses.replace(TINY, fixed=fixed).rows(), 0, False, None, tmp_path)
    assert [epochs for epochs, _ in bar.work.values()] == [5, 5] and bar.bar.total > 1e6


def test_what_ships_is_found_by_name():
    assert len(ex.results(ex.recorded("table8-laptop"))) == 12
    with pytest.raises(InputError, match="did you mean 'table8-laptop'"): ex.recorded("table8-laptp")


def test_ahead_is_in_every_seed_and_beyond_the_interval():
    def table(*pairs): return pd.DataFrame([dict(grid="g", loss=loss, n_classes=n, seed=s, vra=v, clean=.9, failed=None)
        for n, seeds in pairs for s, both in enumerate(seeds) for loss, v in zip(("emma", "trades"), both)])
    found = table((10, [(.5, .4), (.52, .41), (.49, .40)]), (100, [(.5, .4), (.4, .41), (.6, .4)]), (200, [(.5, .49), (.8, .4), (.6, .5)]), (50, [(.5, .4)]))
    rows = ex.gains(found, "loss", "emma", "trades", by=("n_classes",)).set_index("n_classes")
    assert rows.ahead.to_dict() == {10: True, 100: False, 200: False, 50: False} and rows.seeds.tolist() == [3, 3, 3, 1]
    gain = np.array([10., 11., 9.])
    half = 4.302653*gain.std(ddof=1)/3**.5
    assert rows.loc[10, ["gain", "low", "high"]].tolist() == pytest.approx([10, 10-half, 10+half])
    assert rows.loc[200].low < 0 and rows.loc[50].low == -np.inf
    lost = found.assign(failed=["out of memory" if (n, s, loss) == (10, 2, "emma") else None for n, s, loss in zip(found.n_classes, found.seed, found.loss)])
    assert ex.gains(lost[lost.n_classes == 10], "loss", "emma", "trades").seeds.tolist() == [2]
    assert not ex.gains(found, "loss", "trades", "emma", by=("n_classes",)).ahead.any()
    with pytest.raises(InputError, match="loss is never 'gloro': wanted one of"): ex.gains(found, "loss", "gloro", "emma")


def test_the_command(tmp_path, capsys):
    out = str(tmp_path/"runs")
    few = ["--classes", "3", "--seeds", "0", "--device", "cpu", "--out", out]
    assert ex.main(["table8", *few, "--dry-run"]) == 0 and not (tmp_path/"runs").exists()
    said = capsys.readouterr().out
    assert "Width raises" in said and "model=L2W64-seed=0" in said and "4 cells (0 finished" in said and "hours of training on cpu" in said
    assert ex.main(["tabel8"]) == 2 and "did you mean 'table8'" in capsys.readouterr().err
    assert ex.main(["table8", "--scale", "huge"]) == 2 and "choose one of laptop, paper" in capsys.readouterr().err
    assert ex.main([]) == 2 and "NAME" in capsys.readouterr().err
    with pytest.raises(SystemExit): ex.main(["--help"])
    assert all(g.question in capsys.readouterr().out.replace("\n", " ") for g in [ex.GRIDS["table2", "laptop"]])


def test_the_command_narrows_what_varies_and_pins_fields(capsys):
    def plan(*words): return ex.main(["table2", "--device", "cpu", "--dry-run", "--classes", "10", "--seeds", "0", "--set", *words])
    assert plan("loss=emma,trades", "backbone=liresnet", "model=L1W8", "epochs=3", "lr=1e-3") == 0
    said = capsys.readouterr().out
    assert "2 cells (0 finished" in said and "loss=trades-backbone=liresnet-seed=0" in said
    assert ex._fields(["lr=1e-3", "epochs=5,6", "track=true", "dtype=bfloat16"]) == dict(lr=1e-3, epochs=[5, 6], track=True, dtype="bfloat16")
    for words, message in ((["epochs"], "wanted NAME=VALUE"), (["=3"], "wanted NAME=VALUE"), (["loss="], "wanted NAME=VALUE"), (["classes=3"], "an option of its own"), (["seed=3"], "an option of its own"),
                           (["epoch=3"], "did you mean 'epochs'"), (["backbone=convent"], "did you mean 'convnet'"), (["epochs=many"], "epochs is 'many'")):
        status, told = plan(*words), capsys.readouterr()
        assert message in told.err+told.out and status == (0 if words == ["epochs=many"] else 2), (words, told)


def test_the_command_runs_and_tells_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(ex.GRIDS, ("tiny", "laptop"), TINY)
    assert ex.main(["tiny", "--out", str(tmp_path), "--device", "cpu"]) == 0
    assert "0.25" not in (said := capsys.readouterr().out) and "emma" in said and "tiny-laptop" in said
    bad = dataclasses.replace(TINY, vary=dict(loss=("emma", "nonsense")))
    monkeypatch.setitem(ex.GRIDS, ("tiny", "laptop"), bad)
    assert ex.main(["tiny", "--out", str(tmp_path), "--device", "cpu"]) == 1
    assert "failed: unknown loss 'nonsense'" in capsys.readouterr().out


def test_a_figure_of_results_is_their_mean_and_range_and_hides_no_failure():
    table = pd.DataFrame(dict(grid="g", model=["a", "a", "b", "b"], loss="emma", seed=[0, 1, 0, 1], clean=[.5, .5, .75, None], vra=[.1, .3, .4, None],
                              pgd=None, n=100, epsilon=.5, parameters=1, seconds=1., failed=[None, None, None, "diverged"]))
    line, lost = ex.plot_results(table, "model", by=["loss"]).data
    assert (list(line.x), list(line.y)) == (["a", "b"], [20., 40.]) and line.name == "emma" and list(line.customdata) == [2, 1]
    assert list(line.error_y.array) == list(line.error_y.arrayminus) == [10., 0.]
    assert list(lost.x) == ["b"] and list(lost.text) == ["diverged"]
    nets = table.assign(backbone=["liresnet", "liresnet", "slow", "slow"])         # a name of one's own beside a known one
    assert [(d.name, d.line.dash) for d in ex.plot_results(nets, "model", by=["backbone"]).data[:2]] == [("LiResNet", "solid"), ("slow", "dash")]
    assert ex.plot_results(table, "model", measure="clean").layout.yaxis.title.text == "clean accuracy (% of test images)"
    for bad in (dict(x="width"), dict(x="model", by=["block"]), dict(x="model", measure="loss")):
        with pytest.raises(InputError, match="choose one of"): ex.plot_results(table, **bad)


def test_every_architecture_can_be_a_cell_and_a_plan():
    asked = ex.grid("table3", seeds=[0], model=["L1W8"])
    assert [c.config().backbone for c in asked.rows()] == ["convnet", "resnet", "liresnet"]
    cost = ex.plan(asked, "cpu")
    assert (cost.problem == "").all() and cost.parameters.nunique() == 3 and cost.macs[1] > cost.macs[0] == cost.macs[2]
    rows = ex.plan(ex.grid("table1", classes=[10], seeds=[0], method=["gloro-6C2F"]), "cpu")
    assert rows.problem.tolist() == [""] and rows.macs[0] > 8e6


@pytest.mark.parametrize("text", ["{}", "[]", '{"failed": "x"}', '{"grid": "tiny", "cell": {}, "config": null}'])
def test_json_that_is_no_result_is_named(done, tmp_path, text):

    shutil.copytree(done[0], tmp_path/done[0].name)
    path = tmp_path/done[0].name/TINY.rows()[0].folder/"result.json"
    path.write_text(text)
    for look in (lambda: ex.reproduce(TINY, tmp_path, **QUIET), lambda: ex.results(tmp_path)):
        with pytest.raises(InputError, match="result.json is (damaged|no result)"): look()


def test_a_damaged_cell_fails_and_is_made_anew_when_asked(done, tmp_path):
    one = dataclasses.replace(TINY, vary=dict(loss=("emma",)))
    cell = tmp_path/"tiny-laptop"/one.rows()[0].folder
    (cell/"run").mkdir(parents=True)
    (cell/"run"/"config.json").write_text("{")
    (cell/"clock.json").write_text("{")
    assert "damaged" in ex.reproduce(one, tmp_path, **QUIET).failed[0]
    again = ex.reproduce(one, tmp_path, retry_failed=True, **QUIET)
    assert again.failed.isna().all() and again.vra[0] == done[1].vra[0]
