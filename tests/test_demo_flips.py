"Flip rates: the counting, the figures' numbers, and a live run that starts once, grows and stops."
import json
import threading

import pandas as pd
import pytest
import torch

from liresnet_nb.demos import flips as demos
from liresnet_nb.core import InputError
from liresnet_nb.data import DRAWING, Augment, Task, draw_glyphs
from liresnet_nb.demos.flips import FlipTrainer, flip_instances, flip_rate, flip_table, plot_flip_rate, plot_recorded_threats, plot_rival_descent, plot_threats, recorded_flips, rival_descent
from liresnet_nb.explore import Control, explore, still

CLASSES = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [1, 3, 4, 5]])
RATES = pd.DataFrame(dict(epoch=[1, 2, 3]*3, flip_rate=[None, .5, .25, None, .7, .35, None, .2, .1], threat_flip_rate=[None, .6, .3, None, .8, .4, None, .3, .2],
                          loss=["trades"]*6+["emma"]*3, n_classes=[10]*9, seed=[0]*3+[1]*3+[0]*3))
INSTANCES = pd.DataFrame(dict(instance=[0, 5]*4, epoch=[1, 1, 2, 2, 3, 3, 4, 4], label=[0, 1]*4, threatening=[1, 0, 2, 0, 1, 0, 1, 3], runner_up=[1]*8))
HANGS = 1800     # seconds: nothing that works takes so long
ABOUT = dict(hardware="a CPU, 1 thread(s)", config=dict(epochs=10), runs=[dict(loss="trades", n_classes=n, cpu_seconds=n) for n in (10, 100, 200)])


def test_flips_are_counted_from_epoch_to_epoch():
    assert flip_rate(CLASSES).tolist() == [.25, .5] and flip_rate(CLASSES[:1]).tolist() == []
    with pytest.raises(InputError, match="wanted \\[epochs, images\\]"): flip_rate(CLASSES[0])


def test_tables_of_a_run_agree_with_what_it_tracked(tiny):
    run = demos.flip_run("trades", 10, 3, progress=False)
    table = flip_table(run)
    assert table.flip_rate.isna().tolist() == [True, False, False]
    assert table.flip_rate[2] == (run.runner_up[2] != run.runner_up[1]).double().mean().item()
    assert table.threat_flip_rate[1] == (run.threatening[1] != run.threatening[0]).double().mean().item()
    labels = demos.flip_task(10).train.labels
    one = flip_instances(run, labels, n=6)
    assert len(one) == 18 and sorted(one.instance.unique()) == [0, 5, 10, 15, 20, 25]
    row = one[(one.instance == 15) & (one.epoch == 2)].iloc[0]
    assert (row.label, row.threatening, row.runner_up) == (labels[15], run.threatening[1, 15], run.runner_up[1, 15])
    with pytest.raises(InputError, match="wanted 1 to 30"): flip_instances(run, labels, n=31)
    run.runner_up = None
    with pytest.raises(InputError, match="track=True"): flip_table(run)


def test_curves_are_means_over_seeds_and_live_runs_stand_beside_them():
    fig = plot_flip_rate(RATES, live=RATES.iloc[6:])
    assert [t.name for t in fig.data] == ["EMMA, 10 classes", "TRADES, 10 classes", "live: EMMA, 10 classes"]
    assert fig.data[1].x == (2, 3) and fig.data[1].y == (60, 30) and list(fig.data[1].customdata[0]) == [50, 70]
    assert fig.data[2].y == (20, 10) and fig.data[0].line.dash != fig.data[1].line.dash
    assert len(plot_flip_rate(RATES).data) == 3 and plot_flip_rate(RATES, live=RATES.iloc[6:7]).data[2].y == ()
    with pytest.raises(InputError, match="unknown counted"): plot_flip_rate(RATES, "flips")


def test_a_moved_control_counts_the_other_class():
    page = explore(lambda counted: plot_flip_rate(RATES, counted), counted=Control("counted", tuple(demos.FLIP_COLUMNS)))
    page.controls["counted"].value = "threatening class"
    assert page.figure.data[1].y == (70, 35) and "threatening class" in page.figure.layout.yaxis.title.text


def test_the_heat_map_ranks_rivals_and_marks_each_change():
    fig = plot_threats(INSTANCES, ("a", "<", "c", "d"))
    cells, marks = fig.data[0], fig.data[1]
    assert [list(r) for r in cells.z] == [[0, 0, 0, 1], [0, 1, 0, 0]] and [list(r) for r in cells.text] == [["a", "a", "a", "d"], ["&lt;", "c", "&lt;", "&lt;"]]
    assert list(zip(marks.x, marks.y, marks.text)) == [(1, 0, "a"), (4, 0, "d"), (1, 1, "&lt;"), (2, 1, "c"), (3, 1, "&lt;")]
    assert fig.layout.yaxis.ticktext == ("&lt; · 5", "a · 0") and cells.customdata[1][0] == "a · 0"
    assert plot_threats(INSTANCES, ("a", "b", "c", "d"), "runner-up").data[0].text[0][3] == "b"
    assert len(plot_threats(INSTANCES, "abcd", rows=1).data[0].z) == 1


def test_frames_of_the_heat_map_hold_one_run_each():
    pick = lambda n: plot_threats(INSTANCES[INSTANCES.instance.isin([0, 5][:n])], "abcd")
    fig = still(pick, n=Control("images", (1, 2)))
    assert [len(f.data[0].z) for f in fig.frames] == [1, 2] and fig.frames[0].layout.yaxis.ticktext == ("a · 0",)


def test_trades_hits_one_rival_and_emma_all():
    trades, emma = (rival_descent(loss, 2., rivals=3, steps=1) for loss in ("trades", "emma"))
    assert trades.shape == (2, 4) and (emma[1, 1:] < emma[0, 1:]).all()
    assert trades[1, 1] < trades[0, 1] and (trades[1, 2:] >= trades[0, 2:]).all()       # the others are lifted
    fig = plot_rival_descent(2.)
    assert fig.layout.annotations[1].text == "EMMA: 0 changes" and not fig.layout.annotations[0].text.endswith(" 0 changes")
    assert fig.data[4].y[1] == pytest.approx(rival_descent("emma", 2.)[1, 1].item(), abs=1e-3)
    with pytest.raises(InputError, match="at least 2"): rival_descent("emma", 1., rivals=1)


def test_the_recorded_runs_are_whole():
    rates, instances, about = recorded_flips()
    assert {(r["loss"], r["n_classes"]) for r in about["runs"]} == {(loss, n) for loss in ("trades", "emma") for n in (10, 100, 200)}
    assert len(rates) == len(about["runs"])*about["config"]["epochs"] and rates.flip_rate.dropna().between(0, 1).all()
    assert len(instances) == 6*60*about["config"]["epochs"] and (instances.label < instances.n_classes).all()
    assert {"command", "config", "seeds", "commit", "hardware", "versions", "wall_seconds"} <= set(about) and json.dumps(about)
    assert about["drawing"] == 1 and demos.flip_task(10).drawing == DRAWING       # recorded on glyphs that cannot be made again


@pytest.fixture
def tiny(monkeypatch):
    "The same training on thirty images"
    task = Task("equal glyphs", draw_glyphs(10, 3), draw_glyphs(10, 1), tuple("0123456789"), .5, Augment(1))
    monkeypatch.setattr(demos, "flip_task", lambda n: task)
    monkeypatch.setattr(demos, "FLIP_SETTINGS", dict(demos.FLIP_SETTINGS, model="L1W8"))
    monkeypatch.setattr(demos, "flip_instances", lambda run, labels: flip_instances(run, labels, 6))


@pytest.fixture
def trainer(tiny):
    instances = pd.concat([INSTANCES.assign(loss="trades", n_classes=n) for n in (10, 100, 200)])
    return FlipTrainer((RATES, instances, ABOUT))


def test_a_click_trains_and_the_curve_grows(trainer, monkeypatch):
    trainer.controls["epochs"].value = 10
    seen, redraw = [], demos.redraw
    monkeypatch.setattr(demos, "redraw", lambda figure, new: (redraw(figure, new), seen.append(len(trainer.curves.data[-1].x))))
    trainer.button.click()
    trainer.thread.join(HANGS)
    assert not trainer.training() and trainer.message.value.startswith("done after 10 of 10 epochs")
    assert seen[::2] == list(range(10)) and trainer.curves.data[-1].name == "live: TRADES, 10 classes"
    assert trainer.curves.data[-1].y == tuple((100*flip_table(trainer.run).flip_rate[1:]).round(2))
    assert len(trainer.threats.data[0].x) == 10 and "live" in trainer.threats.layout.xaxis.title.text
    assert trainer.stopper.disabled and not trainer.button.disabled


def test_stop_stops_and_a_second_click_starts_nothing(trainer, monkeypatch):
    reached, go_on, grow = threading.Event(), threading.Event(), trainer._grow
    def paused(run):
        reached.set(); go_on.wait(HANGS)
        grow(run)
    monkeypatch.setattr(trainer, "_grow", paused)
    trainer.button.click()
    assert reached.wait(HANGS) and trainer.button.disabled
    first = trainer.thread
    trainer.button.click()
    assert trainer.thread is first and "a run is going on" in trainer.message.value
    trainer.stopper.click()
    go_on.set(); first.join(HANGS)
    assert trainer.message.value.startswith("stopped after 1 of 20 epochs") and trainer.run.interrupted


def test_an_error_is_one_line_and_the_next_run_may_start(trainer, monkeypatch):
    def fail(*_, **__): raise InputError("lr is <0: wanted more\nand more")
    monkeypatch.setattr(demos, "flip_run", fail)
    trainer.button.click(); trainer.thread.join(HANGS)
    assert trainer.message.value == "lr is &lt;0: wanted more" and not trainer.button.disabled


def test_the_expected_time_is_the_recorded_one(trainer):
    trainer.controls["n_classes"].value, trainer.controls["epochs"].value = 100, 40
    assert trainer.expected() == 400 and trainer.message.value.startswith("about 400 s on one thread of a CPU")
    trainer.controls["loss"].value = "gloro"
    assert trainer.threats.layout.xaxis.title.text == "epoch (recorded: TRADES, 100 classes)"


def test_threats_of_what_was_never_recorded_are_refused():
    with pytest.raises(InputError, match="trades"): plot_recorded_threats("gloro", 10)
    with pytest.raises(InputError, match="no images to draw"): plot_recorded_threats("emma", 11)
    assert plot_recorded_threats("emma", 10).layout.xaxis.title.text == "epoch (recorded: EMMA, 10 classes)"
