"Residual branches: bounds and best pairs of made branches with known answers, and the figures that draw them."
import math

import pandas as pd
import pytest
import torch

from liresnet_nb.demos import looseness as demos
from liresnet_nb.core import InputError
from liresnet_nb.demos.looseness import best_pair, block_table, branch_kernel, branch_rows, branch_table, depth_table, plot_blocks, plot_depth, plot_looseness
from liresnet_nb.explore import Control, explore, still
from liresnet_nb.lipschitz import operator_matrix

SHAPE = 2, 3, 3


def copies(factor):
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[range(2), range(2), 1, 1] = factor
    return kernel


@pytest.fixture(scope="module")
def table(): return branch_table(kinds=("Gaussian", "skew"), channels=(2, 4), scales=(0., 1., 2.), edge=3)


@pytest.mark.parametrize("factor, folded, angle", [(1, 3., 0.), (-1, 1., 180.)])
def test_a_linear_branch_along_or_against_the_identity(factor, folded, angle):
    row, = branch_rows([copies(factor)], SHAPE, (2.,))
    assert row["triangle"] == pytest.approx(3, rel=1e-5) and row["folded"] == pytest.approx(folded, rel=1e-5)
    assert row["found"] == pytest.approx(folded) and row["angle"] == pytest.approx(angle, abs=1e-4) and row["branch"] == pytest.approx(2)


@pytest.mark.parametrize("factor", [1, -1])
def test_a_conventional_branch_points_forwards_either_way(factor):
    "MinMax exchanges two channels if that is worse: the triangle inequality is exact"
    row, = branch_rows([copies(1), copies(factor)], SHAPE, (2.,))
    assert math.isnan(row["folded"]) and row["found"] == pytest.approx(3) and row["found"] <= row["triangle"] <= 3.0001
    assert row["angle"] == pytest.approx(0, abs=1e-3)


def test_a_skew_branch_stands_at_a_right_angle(table):
    linear = table[(table.kind == "skew") & (table.block == "linear") & (table.scale == 2)]
    assert len(linear) == 2
    for row in linear.itertuples():
        assert row.found == pytest.approx(5**.5) and row.folded == pytest.approx(5**.5, rel=1e-5) and row.angle == pytest.approx(90, abs=1e-6)


def test_what_is_found_lies_below_what_is_proved(table):
    assert (table.found <= table.folded.fillna(table.triangle)*(1+1e-12)).all() and (table.found >= 1-1e-12).all()
    assert len(table) == 2*2*2*3 and table.folded.isna().sum() == 12


def test_the_search_finds_the_worst_of_all_orders():
    "all sixteen orders of a small block, by brute force"
    kernels = [branch_kernel("Gaussian", (2, 2, 2), n) for n in "ab"]
    inner, outer = (operator_matrix(k, (2, 2, 2), 1, 1) for k in kernels)
    def norm(swap): return torch.linalg.matrix_norm(torch.eye(8)+outer@torch.stack([demos._ordered(c, swap) for c in inner.T], 1), 2).item()
    best = max(map(norm, torch.cartesian_prod(*[torch.tensor([False, True])]*4)))
    row, = branch_rows(kernels, (2, 2, 2))
    assert row["found"] == pytest.approx(best, rel=1e-3) and row["found"] <= best*(1+1e-9)


def test_best_pair_finds_the_norm_of_a_linear_map():
    A = torch.diag(torch.tensor([1., 3., 2.], dtype=torch.float64))
    assert best_pair(lambda x: x@A, torch.zeros(2, 3, dtype=torch.float64)) == pytest.approx(3, rel=1e-5)
    assert best_pair(lambda x: (x@A).abs(), torch.ones(1, 3, dtype=torch.float64)) == pytest.approx(3, rel=1e-5)


def test_depth_multiplies_the_bounds():
    table = depth_table((1., 2.), (1, 4), (2, 3, 3))
    assert list(table.triangle) == [2., 1.5**4, 3., 16.] and (table.linear <= table.folded).all() and (table.conventional <= table.triangle).all()
    fig = plot_depth(table, 1.)
    assert list(fig.data[0].y) == [2., 5.062] and list(fig.data[0].x) == [1, 4] and fig.data[0].customdata[1] == round(1/1.5**4, 5)
    assert fig.data[0].name.endswith("= 5.06") and plot_depth(table, 1., 1).data[0].name.endswith("= 2")
    with pytest.raises(InputError, match="scale 3 is not in the table"): plot_depth(table, 3.)
    with pytest.raises(InputError, match="depth 2 is not in the table"): plot_depth(table, 1., 2)


def test_the_figure_reads_the_table_at_the_scale(table):
    page = explore(lambda **at: plot_looseness(table, **at), kind=Control("branch", ("Gaussian", "skew")), channels=Control("channels", (2, 4)), scale=Control("scale", (0., 1., 2.), 1.))
    bound, _, folded, found = page.figure.data[:4]
    assert list(bound.y) == pytest.approx([1, 2, 3], abs=1e-3) and bound.name.endswith(" 2.00")
    page.controls["scale"].value = 2.
    assert bound.name.endswith(" 3.00")
    before = list(folded.y)
    page.controls["kind"].value = "skew"
    assert list(folded.y) == pytest.approx([1, 2**.5, 5**.5], abs=2e-4) != before and list(found.y) == pytest.approx(list(folded.y), abs=2e-4)
    triangle = page.figure.data[4]
    assert triangle.name.endswith("90°") and (triangle.x[2], triangle.y[2]) == pytest.approx((1, 2), abs=1e-4)
    with pytest.raises(InputError, match="it has this kind with \\[2, 4\\] channels"): plot_looseness(table, "skew", 3, 1.)


def test_stills_have_a_frame_a_position(table):
    fig = still(plot_looseness, table=table, kind=Control("branch", ("Gaussian", "skew")), channels=2)
    assert [f.name for f in fig.frames] == ["Gaussian", "skew"] and any((t.name or "").endswith("linear: angle 90°") for t in fig.frames[1].data)


def test_bars_multiply_bounds_and_nothing_else():
    table = block_table(dict(linear=[[copies(1)], [copies(-.5)]], usual=[[copies(1), copies(-1)]]), SHAPE)
    triangle, folded, found = plot_blocks(table, "linear").data
    assert list(triangle.y) == pytest.approx([2, 1.5, 3], abs=1e-3) and list(folded.y) == pytest.approx([2, .5, 1], abs=1e-3)
    assert list(found.y[:2]) == pytest.approx([2, .5], abs=1e-3) and math.isnan(found.y[2]) and found.text[2] == ""
    assert all(math.isnan(y) for y in plot_blocks(table, "usual").data[1].y)
    with pytest.raises(InputError, match="network"): plot_blocks(pd.concat([table]), "other")
