"Demo 5, ε schedule: the recorded runs as curves and maps, and the slope along the scale of a network."
import functools
import importlib.util
import json
import math
from argparse import Namespace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch

from liresnet_nb.core import InputError, generator
from liresnet_nb.data import DRAWING
from liresnet_nb.demos.schedule import SCHEDULE, break_even, few_glyphs, load_schedule, plot_break_even, plot_schedule, plot_schedule_map, plot_slopes, scale_slope, schedule_runs
from liresnet_nb.explore import Control, explore, still
from liresnet_nb.losses import LOSSES, cross_entropy, emma, emma_adaptive, trades
from liresnet_nb.train import SHAPES

RAMP = Control("ramp", (0., .5), .5)


def made():
    "Two losses, two seeds, four epochs; numbers that tell which run they are of. Seed 1 of emma, fixed at 2ε, is at chance."
    rows = []
    for loss, high in (("emma", .1), ("trades", .3)):
        for start, end, ramp in ((1., 1., 0.), (2., 2., 0.), (.1, 1., .5), (.1, 2., .5)):
            for seed in (0, 1):
                stuck = loss == "emma" and (start, end) == (2., 2.) and seed
                for epoch in (1, 2, 3, 4):
                    rows.append(dict(loss=loss, epsilon_start=start, epsilon_end=end, epsilon_ramp=ramp, epsilon_shape="linear", seed=seed, epoch=epoch,
                                     train_acc=high+epoch/100+seed/10, train_vra_est=high/2, sub_lipschitz_est=10.**-epoch,
                                     clean_acc=.02 if stuck else high+.4, vra=.02 if stuck else high+end/100+seed/50))
    return pd.DataFrame(rows)


def named(fig, name): return [t for t in fig.data if t.name == name]


def test_a_run_is_found_by_loss_end_and_ramp():
    found = schedule_runs(made(), "emma", 2., .5)
    assert len(found) == 8 and set(found.epsilon_start) == {.1} and set(found.loss) == {"emma"} and set(found.epsilon_end) == {2.}
    with pytest.raises(InputError, match="no recorded run of emma to 5ε over 0.5"): schedule_runs(made(), "emma", 5., .5)
    with pytest.raises(InputError, match="did you mean 'trades'"): schedule_runs(made(), "trade", 1., .5)
    bent = pd.concat([made(), made().query("epsilon_ramp > 0").assign(epsilon_shape="late", vra=0.)])
    assert schedule_runs(bent, "emma", 2., .5, "late").vra.eq(0).all() and schedule_runs(bent, "emma", 2., .5).vra.gt(0).all()
    assert len(schedule_runs(bent, "emma", 2., 0., "late")) == 8                       # without a ramp there is no shape
    with pytest.raises(InputError, match="no recorded run of emma to 2ε over 0.5 of the run, early"): schedule_runs(bent, "emma", 2., .5, "early")


def test_the_curves_are_those_of_the_runs():
    fig = plot_schedule(made(), "trades", 2., .5)
    shape = dict(zip(fig.data[0].x, fig.data[0].y))
    assert shape[0] == pytest.approx(.1) and shape[1] == pytest.approx(1.05) and shape[2] == shape[4] == 2
    assert [list(t.y) for t in named(fig, "training accuracy")] == [pytest.approx([31, 32, 33, 34]), pytest.approx([41, 42, 43, 44])]
    assert all(t.line.dash == "dash" and list(t.y) == pytest.approx([15]*4) for t in named(fig, "VRA estimate"))
    assert list(named(fig, "sub_lipschitz")[0].y) == pytest.approx([.1, .01, .001, .0001])
    proved, = named(fig, "held-out VRA, proved")
    assert proved.y == pytest.approx((33,)) and proved.error_y.array == pytest.approx((1,)) and proved.error_y.arrayminus == pytest.approx((1,))


def test_a_live_run_is_drawn_over_the_recorded_ones():
    live = pd.DataFrame(dict(epoch=[1], train_acc=[.5], train_vra_est=[.25], sub_lipschitz_est=[7.]))
    without, fig = plot_schedule(made(), "emma", 2., .5), plot_schedule(made(), "emma", 2., .5, live)
    assert [list(t.y) for t in named(fig, "trained here")] == [[50], [25], [7]]
    assert len(without.data) == len(fig.data) and not any(t.y for t in named(without, "trained here"))


def test_the_map_shows_the_mean_the_spread_and_who_is_at_chance():
    fig = plot_schedule_map(made())
    assert [t.text for t in fig.layout.annotations] == ["emma", "trades"]
    maps = {t.text: m for t, m in zip(fig.layout.annotations, fig.data)}
    assert list(maps["trades"].x) == ["1 ε", "2 ε"] and list(maps["trades"].y) == ["0 (fixed)", "50%"]
    assert maps["trades"].z[1][1] == pytest.approx(33) and maps["trades"].text[1][1] == "32–34"
    assert maps["emma"].text[0][1] == "2–12 ✕" and maps["emma"].z[0][1] == pytest.approx(7)


def test_a_moved_control_draws_other_runs():
    runs = made()
    page = explore(functools.partial(plot_schedule, runs), loss=Control("loss", ("emma", "trades")), end=Control("end", (1., 2.)), ramp=RAMP)
    def y(name): return tuple(named(page.figure, name)[0].y)
    before, mark = y("training accuracy"), y("held-out VRA, proved")
    page.controls["loss"].value = "trades"
    assert y("training accuracy") != before and page.message.value == ""
    page.controls["end"].value = 2.
    assert y("held-out VRA, proved") != mark and max(page.figure.data[0].y) == 2
    page.controls["ramp"].value = 0.
    assert set(page.figure.data[0].y) == {2.}


def test_the_still_holds_a_frame_a_position():
    runs = made()
    fig = still(functools.partial(plot_schedule, runs, "emma"), end=2., ramp=RAMP)
    assert [f.name for f in fig.frames] == ["0", "0.5"]
    at = {f.name: dict(zip(f.traces, f.data)) for f in fig.frames}
    assert set(at["0"][0].y) == {2.} and min(at["0.5"][0].y) == pytest.approx(.1)


def test_the_slope_along_the_scale_is_the_lead_that_is_missing():
    g = generator("slope")
    f, y, K = torch.randn(40, 7, generator=g), torch.randint(7, (40,), generator=g), torch.rand(7, 7, generator=g)+1
    K = (K+K.T)*(1-torch.eye(7))
    for s in (0., .5, 2.):
        p = (s*(f+.4*K[y])).softmax(1)
        wanted = (p*(.4*K[y]-(f.gather(1, y[:, None])-f))).sum(1).mean().item()
        assert scale_slope(emma, f, y, K, .4, s) == pytest.approx(wanted, rel=1e-4)
    nothing = torch.zeros(40, 7)                                          # margins of 0, at s = 0
    away = K.sum()/7/6
    same = away*(1-torch.eye(7))
    assert scale_slope(emma, nothing, y, same, .4, 0.) == pytest.approx(.4*away.item()*6/7, rel=1e-5)
    assert scale_slope(trades, nothing, y, same, .4, 0.) == pytest.approx(2*.4*away.item()/8, rel=1e-5)
    assert scale_slope(emma_adaptive, nothing, y, same, .4, 1e-4) == pytest.approx(.01*.4*away.item()*6/7, rel=1e-3)
    h = 1e-2
    numeric = (cross_entropy((1+h)*f, y)-cross_entropy((1-h)*f, y)).mean().item()/(2*h)
    assert scale_slope(cross_entropy, f, y, K, .4) == pytest.approx(numeric, rel=1e-2)


def test_the_figure_of_slopes_holds_them():
    g = generator("slopes")
    f, y, K = torch.randn(20, 5, generator=g), torch.randint(5, (20,), generator=g), 1-torch.eye(5)
    fig = plot_slopes(f, y, K, .5)
    assert [t.name for t in fig.data] == ["emma", "emma_adaptive", "trades"]
    for t in fig.data:
        k = list(t.x).index(1.)
        assert t.y[k] == pytest.approx(scale_slope(LOSSES[t.name], f, y, K, .5), rel=1e-3)


def test_at_break_even_a_network_of_nothing_neither_grows_nor_shrinks():
    f, y, K = torch.tensor([[3., 1., 2.], [0., 5., 1.]]), torch.tensor([0, 1]), 2*(1-torch.eye(3))
    turn = break_even(f, y, K)
    assert turn == pytest.approx((0+2+1+5+0+4)/(4*2)) and break_even(7*f, y, 7*K) == pytest.approx(turn)
    assert scale_slope(emma, f, y, K, turn, 0.) == pytest.approx(0, abs=1e-6)
    assert scale_slope(emma, f, y, K, turn+.01, 0.) > 0 > scale_slope(emma, f, y, K, turn-.01, 0.)


def test_one_panel_a_run_with_what_was_asked_and_the_break_even():
    radii = pd.DataFrame(dict(run=["a", "a", "b", "b"], epoch=[1, 2, 1, 2], epsilon_train=[.1, .2, .3, .3], break_even=[.05, .3, .01, .02]))
    fig = plot_break_even(radii)
    assert [t.text for t in fig.layout.annotations] == ["a", "b"]
    assert [list(t.y) for t in named(fig, "break-even")] == [[.05, .3], [.01, .02]] and [list(t.y) for t in named(fig, "asked for")] == [[.1, .2], [.3, .3]]


DRAWN_1 = "372ea0b65f867f85d3a4cc5031675ca6a6c6f29a33bf0f2da7913df2ae1a965a"   # training images of drawing 1, on the processor that recorded


def test_the_recorded_grid_is_whole():
    "That it can be made again nobody can check: drawing 1 came out otherwise on other processors."
    runs, how = load_schedule()
    keys = ["loss", "epsilon_start", "epsilon_end", "epsilon_ramp", "epsilon_shape", "seed"]
    assert set(runs.loss) == {"emma", "emma_adaptive", "trades"} and len(runs.drop_duplicates(keys)) == how["runs"] == 240
    assert (runs.groupby(keys).size() == SCHEDULE["epochs"]).all() and not runs.isna().any().any()
    for loss in set(runs.loss):
        for end in (1., 1.5, 2., 3.):
            for ramp, shape in product((0., .25, .5, 1.), SHAPES):
                assert len(schedule_runs(runs, loss, end, ramp, shape)) == 2*SCHEDULE["epochs"]
    last = runs[runs.epoch == SCHEDULE["epochs"]]
    assert (last.vra <= last.clean_acc).all() and how["shared"]["fingerprint"] == DRAWN_1 and how["drawing"] == 1
    assert few_glyphs().drawing == DRAWING and few_glyphs().train.fingerprint() != DRAWN_1
    assert how["config"]["held_out"] == "valid" and how["config"]["epsilon"] == .3 and math.isfinite(how["cpu_seconds"])


def test_a_recorder_with_nothing_to_do_changes_nothing(tmp_path):
    tool = Path(__file__).parents[1]/"tools"/"record_schedule.py"
    spec = importlib.util.spec_from_file_location("record_schedule", tool)
    recorder = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recorder)
    for name in ("schedule.csv.gz", "schedule.json"): (tmp_path/name).write_bytes((tool.parents[1]/"liresnet_nb"/"recorded"/name).read_bytes())
    before, args, threads = (tmp_path/"schedule.csv.gz").read_bytes(), Namespace(out=tmp_path, losses="emma,trades", seeds=2), torch.get_num_threads()
    how, task = load_schedule()[1], few_glyphs()

    def tells(**fields): (tmp_path/"schedule.json").write_text(json.dumps(how | fields))
    try:
        with pytest.raises(InputError, match="tells of drawing 1 of the glyphs, and 2 is made today"): recorder.main(args)
        tells(drawing=DRAWING, shared=how["shared"] | dict(task=repr(task), fingerprint=task.train.fingerprint()))     # as if recorded today
        recorder.main(args)
        assert (tmp_path/"schedule.csv.gz").read_bytes() == before
        tells(drawing=DRAWING, shared={})
        with pytest.raises(InputError, match="other settings"): recorder.main(args)
    finally: torch.set_num_threads(threads)
