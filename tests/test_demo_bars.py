"Margins drawn: the numbers in the figures, the verdicts, one step of a loss."
import base64
import numpy as np
import pytest
import torch
from functools import partial

from liresnet_nb.bounds import ONE, Bound, pair_bound
from liresnet_nb.core import InputError
from liresnet_nb.demos.bars import one_step, plot_bars, plot_certified_region, plot_step
from liresnet_nb.explore import Control, explore, still
from liresnet_nb.layers import pair_distances
from liresnet_nb.losses import get_loss
from liresnet_nb.margins import certified_radius
from liresnet_nb.rounding import EXACT

PROVED = pair_bound(torch.tensor([[1., 0.], [0., 1.], [-1., 0.]]), [("body", Bound(2., "test"))], (1, 4, 4))
K01, K02 = 2*2**.5, 4.
LOGITS = torch.tensor([[3., 1., 0.],      # radius 2/K01: class 1 arrives first
                       [4., 2., 1.5],     # radius 2.5/4: class 2, and not the runner-up
                       [0., 1., 1.]])     # a tie
LABELS, IMAGES = torch.tensor([0, 1, 2]), torch.linspace(0, 1, 48).reshape(3, 1, 4, 4)
bars, region = partial(plot_bars, IMAGES, LOGITS, LABELS, PROVED, EXACT), partial(plot_certified_region, LOGITS, LABELS, PROVED, EXACT)

ANGLE = torch.tensor([180., 60., -60.]).double().deg2rad()
W, B, X = 12*torch.stack([ANGLE.cos(), ANGLE.sin()], 1), torch.zeros(3).double(), torch.tensor([.385, .495]).double()
step = partial(plot_step, W, B, X, 0)


def test_bars_show_logits_what_may_be_added_and_the_best_of_it():
    picture, logits, rises, top, bot = bars(index=1, epsilon=0.5).data
    assert np.allclose(logits.y+logits.base, LOGITS[1]) and np.allclose(rises.base, LOGITS[1])
    assert np.allclose(rises.y, [0, 0.5*K01, 0.5*K02]) and set(top.y) == {4.}
    assert np.allclose(bot.y, 1.5+0.5*K02) and bot.x[1] == 2 and list(bot.marker.size) == [0, 12, 0]
    assert np.array_equal(np.array(picture.z)[..., 0], (255*IMAGES[1, 0]).round())
    assert logits.marker.color[0] != logits.marker.color[1] == logits.marker.color[2]


def test_the_verdict_is_strict_and_names_who_overtakes():
    title = lambda **how: bars(**how).layout.title.text
    radius = certified_radius(LOGITS, PROVED, EXACT)[1].item()
    assert 2.5/K02-1e-9 < radius <= 2.5/K02
    assert title(index=1, epsilon=radius*(1-1e-9)).endswith("certified as 0; 2 comes closest")
    assert title(index=1, epsilon=radius).endswith("⊥: 2 could overtake 0")
    assert title(index=1, epsilon=0.1).endswith("certified as 0; 1 comes closest")     # the runner-up, while ε is small
    assert title(index=2, epsilon=0.).endswith("⊥: 2 could overtake 1")                # a tie at ε = 0
    assert bars(index=0, classes="xyz").layout.title.text.endswith("certified as x; y comes closest")
    assert "label 1" in bars(index=1).layout.xaxis.title.text


def test_the_region_counts_each_image_once_and_where_it_stands():
    def shown(epsilon):
        fig = region(epsilon=epsilon)
        return fig, [t.name.split(": ")[1] for t in fig.data[1:]]
    fig, counts = shown(0.65)
    assert counts == ["1", "0", "0", "2"] and "VRA 33.3 %" in fig.layout.title.text
    assert np.allclose([fig.data[1].x[0], fig.data[1].y[0]], [K01, 2.]) and fig.data[1].customdata[0] == [0, 0, 1]
    assert fig.data[4].customdata[0] == [1, 0, 2] and np.allclose([fig.data[4].x[0], fig.data[4].y[0]], [K02, 2.5])
    assert fig.data[4].customdata[1] == [2, 1, 2] and fig.data[4].y[1] == 0
    assert shown(0.6)[1] == ["1", "0", "1", "1"] and shown(0.8)[1] == ["0", "1", "0", "2"]
    x, y = fig.data[0].x, fig.data[0].y
    assert y[0] == x[0] == 0 and y[1] == pytest.approx(0.65*x[1]) and min(y[2:]) > y[1]


def test_one_step_goes_against_the_gradient():
    V, c = one_step(W, B, X, 0, "cross_entropy", 0.15, 2.)
    g = ((X-.5)@W.T).softmax(0)-torch.tensor([1., 0., 0.])
    assert torch.allclose(c, -2*g) and torch.allclose(V, W-2*g[:, None]*(X-.5))
    ell = lambda loss, V, c: get_loss(loss)(((X-.5)@V.T+c)[None], torch.tensor([0]), pair_distances(V), .15).item()
    for loss in ("gloro", "trades", "emma"):
        V, c = one_step(W, B, X, 0, loss, 0.15, 1e-6)
        steep = ((V-W)**2).sum()+(c-B).square().sum()
        assert ell(loss, W, B)-ell(loss, V, c) == pytest.approx(steep.item()/1e-6, rel=1e-4)


def area(x, y):
    "Of each polygon of a trace with gaps"
    parts = np.split(np.stack([x, y], 1), np.flatnonzero(np.isnan(x)))
    parts = [p[~np.isnan(p[:, 0])] for p in parts]
    return [abs(np.sum(p[:-1, 0]*p[1:, 1]-p[1:, 0]*p[:-1, 1]))/2 for p in parts if len(p)]


def test_what_is_drawn_as_certified_is_certified():
    V, c = one_step(W, B, X, 0, "gloro", 0.15, 1.5)
    proved, middle = pair_bound(V, [("pixels", ONE)], (1, 1, 2)), (torch.arange(200)+.5)/200
    f = (torch.cartesian_prod(middle, middle).double()-.5)@V.T+c
    pred, sure = f.argmax(1), certified_radius(f, proved, EXACT) > 0.15
    fig = step(size=1.5)
    for trace, counted in ((0, sure), (2, torch.ones_like(sure))):
        share = [((pred == j) & counted).double().mean().item() for j in range(3)]
        assert area(fig.data[trace].x, fig.data[trace].y) == pytest.approx(share, abs=2e-3)
    assert np.allclose(np.hypot(fig.data[3].x-.385, fig.data[3].y-.495), 0.15, atol=1e-6)


def test_emma_certifies_where_gloro_is_left_with_another_threat():
    said = lambda **how: [a.text for a in step(**how).layout.annotations]
    assert [s.split("<br>")[0] for s in said(size=1.)] == ["<b>gloro: ⊥</b>", "<b>emma: certified as 0</b>"]
    before = said(size=0., left="trades")
    assert before[0].replace("trades", "emma") == before[1]
    V, c = one_step(W, B, X, 0, "gloro", 0.15, 1.)
    f, K = (X-.5)@V.T+c, pair_distances(V)
    assert said(size=1.)[0].replace("−", "-").split("<br>")[1:] == [f"over {i}: {f[0]-f[i]-.15*K[0, i]:+.2f}" for i in (1, 2)]
    assert f[0]-f[1]-.15*K[0, 1] < 0 < f[0]-f[2]-.15*K[0, 2]          # 2 was the threat, now 1 is
    fig = step(size=0.)
    assert np.array_equal(fig.data[1].x, fig.data[2].x, equal_nan=True) and len(fig.data) == 12
    assert len(step(epsilon=2.).data) == 12 and not area(step(epsilon=2.).data[0].x, step(epsilon=2.).data[0].y)


def numbers(y):
    "What a trace holds; a frame keeps arrays as base64"
    return np.frombuffer(base64.b64decode(y["bdata"]), y["dtype"]) if isinstance(y, dict) else np.array(y)


RADII = Control("radius", (0.1, 0.65, 0.9))
SIZES = Control("step size", (0., 1.))


@pytest.mark.parametrize("plot, name, control, moving", [(partial(bars, index=0), "epsilon", RADII, 2), (region, "epsilon", RADII, 0), (step, "size", SIZES, 0)])
def test_live_and_still_agree(plot, name, control, moving):
    page, frames = explore(plot, **{name: control}), still(plot, **{name: control}).frames
    first = numbers(page.figure.data[moving].y)
    page.controls[name].value = control.values[1]
    then = numbers(page.figure.data[moving].y)
    assert not np.array_equal(first, then, equal_nan=True) and len(frames) == len(control.values)
    drawn = dict(zip(frames[1].traces, frames[1].data))[moving]
    assert np.array_equal(numbers(drawn.y), then, equal_nan=True)


def test_what_cannot_be_drawn_is_said_in_a_line():
    with pytest.raises(InputError, match="wanted 0 to 2"): bars(index=3)
    with pytest.raises(InputError, match="PairBound"): plot_bars(IMAGES, LOGITS, LABELS, PROVED.matrix, EXACT)
    with pytest.raises(InputError, match="PairBound"): plot_certified_region(LOGITS, LABELS, PROVED.matrix, EXACT)
    for plot in (bars, region, step):
        with pytest.raises(InputError, match="epsilon"): plot(epsilon=-1)
    with pytest.raises(InputError, match="two pixels"): plot_step(torch.eye(3), B, X, 0)
    with pytest.raises(InputError, match="emma"): step(left="ema")
