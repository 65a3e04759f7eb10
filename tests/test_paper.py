"The paper's tables: what was copied, whether it fits together, the law for the number of classes, the figures."
from importlib.resources import files

import numpy as np
import pytest
import torch

from liresnet_nb.core import InputError, generator
from liresnet_nb.data import TASKS
from liresnet_nb.losses import LOSSES
from liresnet_nb.paper import disagreements, fitted_exponent, paper_table, plot_paper

COLUMNS = "table dataset method architecture loss L W classes seed clean pgd vra source".split()
ROWS = {1: 17, 2: 18, 3: 18, 4: 18, 5: 18, 6: 18, 7: 14, 8: 6}
RUN = ["dataset", "architecture", "loss", "L", "W"]
CELLS = [   # table, what finds the row, what stands there
    (1, dict(dataset="cifar10", L=6, W=128), dict(clean=76.5, pgd=70.6, vra=63.7)),
    (1, dict(dataset="cifar10", L=18, W=256), dict(clean=78.1, pgd=72.0, vra=65.1)),
    (1, dict(dataset="cifar100", L=6, W=128), dict(clean=49.6, pgd=43.4, vra=35.4)),
    (1, dict(dataset="cifar100", L=18, W=256), dict(clean=51.2, pgd=44.7, vra=36.3)),
    (1, dict(dataset="tiny-imagenet", L=6, W=128), dict(clean=37.8, pgd=33.8, vra=27.0)),
    (1, dict(dataset="tiny-imagenet", L=18, W=256), dict(clean=40.7, pgd=36.3, vra=29.2)),
    (1, dict(dataset="imagenet"), dict(L=18, W=588, clean=23.0, pgd=18.8, vra=14.2)),
    (1, dict(dataset="cifar10", method="BCOP"), dict(architecture="6C2F", clean=75.1, pgd=67.3, vra=58.3)),
    (1, dict(dataset="cifar10", method="Cayley"), dict(clean=75.3, pgd=67.7, vra=59.2)),
    (1, dict(dataset="cifar10", method="Local-Lip Net"), dict(clean=77.4, pgd=70.4, vra=60.7)),
    (1, dict(dataset="cifar10", method="SOC (HH+CR)"), dict(clean=76.4, vra=63.0)),
    (1, dict(dataset="cifar10", method="Gloro Net"), dict(architecture="6C2F", clean=77.0, pgd=69.2, vra=60.0)),
    (4, dict(dataset="cifar100", architecture="liresnet", loss="emma"), dict(clean=49.6, vra=35.4)),
    (4, dict(dataset="tiny-imagenet", architecture="liresnet", loss="emma"), dict(clean=39.1, vra=27.0)),
    (5, dict(dataset="cifar100", architecture="liresnet", L=6), dict(clean=49.4, vra=35.4)),
    (6, dict(dataset="cifar100", L=6), dict(clean=49.4, vra=35.4)),
    (6, dict(dataset="cifar100", L=36), dict(clean=55.6, vra=36.3)),
    (6, dict(dataset="tiny-imagenet", L=6), dict(clean=39.1, vra=27.1)),
]


def find(table, key):
    for name, value in key.items(): table = table[table[name] == value]
    assert len(table) == 1
    return table.iloc[0]


def test_the_file_has_its_columns_and_rows():
    everything = paper_table()
    assert list(everything.columns) == COLUMNS and everything.table.value_counts().to_dict() == ROWS
    assert all(paper_table(n).equals(everything[everything.table == n].reset_index(drop=True)) for n in ROWS)
    assert set(everything.dataset) <= set(TASKS) and set(everything.loss.dropna()) <= set(LOSSES)
    assert all(s.split(";")[0] == f"arXiv:2301.12549v1 Table {n}" for n, s in zip(everything.table, everything.source))
    assert not everything.duplicated(["table", *RUN, "method", "classes", "seed"]).any()
    usual = everything.dataset.map({"cifar10": 10, "cifar100": 100, "tiny-imagenet": 200, "imagenet": 1000})
    assert ((everything.classes == usual) | (everything.table == 7)).all()


def test_the_file_is_plain_text_beside_the_other_records():
    raw = (files("liresnet_nb")/"recorded"/"paper.csv").read_bytes()
    assert raw.startswith(",".join(COLUMNS).encode()) and raw.endswith(b"\n") and b"\r" not in raw


@pytest.mark.parametrize("table, key, stands", CELLS)
def test_cells_are_those_of_the_paper(table, key, stands):
    row = find(paper_table(table), key)
    assert {name: row[name] for name in stands} == stands


def test_a_certified_image_survives_and_a_surviving_one_is_right():
    t = paper_table()
    for low, high, rows in (("vra", "pgd", 13), ("pgd", "clean", 13), ("vra", "clean", 81)):
        both = t.dropna(subset=[low, high])
        assert len(both) == rows and (both[low] <= both[high]).all()
    assert ((t[["clean", "pgd", "vra"]].isna()) | (t[["clean", "pgd", "vra"]] > 10)).all().all()


@pytest.mark.parametrize("short, long", [(2, 4), (3, 5)])
def test_the_longer_version_of_a_table_has_the_same_vra(short, long):
    a, b = (paper_table(n).set_index(RUN).vra.sort_index() for n in (short, long))
    assert a.equals(b)


def test_the_disagreements_are_the_known_ones():
    t = paper_table()
    found = {(r.dataset, int(r.L), int(r.W), r.measure): {k: r[k] for k in range(1, 9) if k in r and r[k] == r[k]} for _, r in disagreements(t).iterrows()}
    assert found == {("cifar100", 6, 128, "clean"): {1: 49.6, 4: 49.6, 5: 49.4, 6: 49.4},
                     ("tiny-imagenet", 6, 128, "clean"): {1: 37.8, 4: 39.1, 6: 39.1},
                     ("tiny-imagenet", 6, 128, "vra"): {1: 27.0, 2: 27.0, 4: 27.0, 6: 27.1}}
    t.loc[(t.table == 8) & (t.dataset == "cifar10") & (t.W == 256), "vra"] = 66.
    assert len(disagreements(t)) == 4


def test_doubtful_cells_say_so():
    t = paper_table()
    assert find(paper_table(6), dict(dataset="cifar100", L=36)).source.endswith("clean is probably 50.6")
    assert "27.4" in find(paper_table(1), dict(dataset="tiny-imagenet", L=18)).source
    for r in disagreements(t).itertuples():
        same = t[(t.dataset == r.dataset) & (t.L == r.L) & (t.W == r.W) & (t.loss == r.loss) & (t.architecture == r.architecture) & t[r.measure].notna()]
        assert len(same) > 1 and same.source.str.contains("elsewhere").any()
    lost = t[t.clean.isna() & t.vra.isna()]
    assert (lost.source.str.endswith("did not converge") | lost.source.str.endswith("not run")).all()
    assert lost.table.value_counts().to_dict() == {3: 2, 5: 2, 7: 2} and set(lost[lost.table != 7].architecture) == {"convnet"}


@pytest.mark.parametrize("number", [0, 9, -1, 2.5, "2", True, [1]])
def test_there_are_eight_tables(number):
    with pytest.raises(InputError, match="wanted a number from 1 to 8"): paper_table(number)
    with pytest.raises(InputError, match="wanted a number from 1 to 8"): plot_paper(number)
    assert len(paper_table(np.int64(8))) == 6


def test_the_exponent_of_an_exact_law_is_found():
    N = [100, 200, 300, 500, 1000]
    for k, c in ((.4, 80.), (0.07, .9), (-.5, 3.)):
        fit = fitted_exponent(N, [c*n**-k for n in N])
        assert fit == pytest.approx((k, k, k, c), abs=1e-9)
    percent, share = (fitted_exponent(N, [s*a for a in (50, 40, 35, 29, 23)]) for s in (1, .01))
    assert percent[:3] == pytest.approx(share[:3]) and percent.scale == pytest.approx(100*share.scale)
    assert percent.low < percent.k < percent.high


def test_the_interval_covers_the_truth_as_often_as_it_says():
    N, k = np.array([100, 200, 300, 400, 500, 700, 1000]), .4
    noise = torch.randn(200, len(N), generator=generator("test of the exponent")).numpy()
    fits = [fitted_exponent(N, 80*N**-k*np.exp(.03*e)) for e in noise]
    assert .9 <= np.mean([f.low <= k <= f.high for f in fits]) <= .99
    few = [fitted_exponent(N[:3], 80*N[:3]**-k*np.exp(.03*e[:3])) for e in noise]      # one degree of freedom: normal quantiles would not do
    assert .9 <= np.mean([f.low <= k <= f.high for f in few]) <= .99


@pytest.mark.parametrize("classes, accuracy", [([1, 2], [3, 2]), ([1, 2, 3], [3, 2]), ([2, 2, 2], [3, 2, 1]), ([1, 2, 3], [3, 2, 0]), ([1, 2, 3], [3, 2, float("nan")]),
                                               ([0, 2, 3], [3, 2, 1]), (["a", "b", "c"], [3, 2, 1]), ([[1, 2, 3]], [[3, 2, 1]])])
def test_what_has_no_exponent_is_refused(classes, accuracy):
    with pytest.raises(InputError, match="wanted"): fitted_exponent(classes, accuracy)


@pytest.mark.parametrize("number", ROWS)
def test_every_figure_has_its_points_and_its_axes(number):
    fig, t = plot_paper(number), paper_table(number)
    layout = fig.to_plotly_json()["layout"]
    titles = {kind: {v["title"]["text"] for k, v in layout.items() if k.startswith(kind+"axis") and v.get("title", {}).get("text")} for kind in "xy"}
    assert titles["x"] and titles["y"] and any("(%)" in text for text in titles["x"] | titles["y"])
    if number == 7: return
    drawn = sorted(round(float(v), 1) for trace in fig.data if "converge" not in trace.name for v in (trace.x if trace.orientation == "h" else trace.y) if v == v)
    printed = sorted(t[["clean", "pgd", "vra"]].stack().dropna())
    assert drawn == printed
    looks = {(trace.marker.color, trace.marker.symbol if isinstance(trace.marker.symbol, str) else None, trace.line.dash, trace.name) for trace in fig.data if trace.type == "scatter"}
    assert len({look[-1] for look in looks}) == len(looks), "one name, one look"


@pytest.mark.parametrize("number, measures", [(3, 1), (5, 2)])
def test_what_did_not_converge_keeps_its_place(number, measures):
    lost = [trace for trace in plot_paper(number).data if trace.name == "ConvNet: did not converge"]
    assert len(lost) == 2*measures and all(list(trace.x) == [18] and trace.marker.symbol == "x" for trace in lost)
    assert sum(trace.showlegend for trace in lost) == 1


def test_axes_of_a_row_are_equally_long_and_the_doubtful_cell_is_open():
    fig = plot_paper(6)
    ranges = [axis.range for axis in fig.select_yaxes()]
    spans = [high-low for low, high in ranges]
    assert spans[:3] == pytest.approx(spans[:1]*3) and spans[3:] == pytest.approx(spans[3:4]*3)
    opened = [(trace.x[k], trace.y[k]) for trace in fig.data for k, symbol in enumerate(trace.marker.symbol) if symbol.endswith("open")]
    assert opened == [(36, 55.6)]


def test_the_law_stands_in_the_figure_of_classes():
    fig, runs = plot_paper(7), paper_table(7).dropna(subset=["vra"])
    for m, name in (("clean", "clean accuracy"), ("vra", "VRA")):
        fit = fitted_exponent(runs.classes, runs[m])
        law = f"{fit.scale:.0f}·N<sup>−{fit.k:.2f}</sup> (k: 95 % {fit.low:.2f} to {fit.high:.2f})"
        curves = [trace for trace in fig.data if trace.name == law]
        assert len(curves) == 2 and all(np.allclose(c.y, fit.scale*np.array(c.x)**-fit.k) for c in curves)
        points = next(trace for trace in fig.data if trace.name == name)
        first, at = runs[runs.classes == 100][m], list(points.x).index(100)
        assert points.y[at] == pytest.approx(first.mean()) and points.y[at]+points.error_y.array[at] == pytest.approx(first.max())
        assert points.y[at]-points.error_y.arrayminus[at] == pytest.approx(first.min()) and points.error_y.array[-1] == 0
    stars = next(trace for trace in fig.data if trace.name.startswith("best VRA"))
    assert dict(zip(stars.x, stars.y)) == {100: 36.3, 200: 29.2}
