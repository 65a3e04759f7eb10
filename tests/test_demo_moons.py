"Two moons, two answers: what the figures show, held against small cases whose answer is known."
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from liresnet_nb.core import InputError
from liresnet_nb.demos.moons import Nudged, Plane, Walk, attack_walk, border_points, dense_net, moons_task, nudge, plot_balls, plot_nudged, plot_trade_off, survey
from liresnet_nb.explore import Control, explore, still
from liresnet_nb.layers import Centre, Dense, Flatten, NormalizedHead
from liresnet_nb.model import GloroNet


@pytest.fixture(scope="module")
def half():
    "A network that says class 1 where the first pixel is above 0.5: its radius is the distance to that line."
    dense, head = Dense(2, 2), NormalizedHead(2, 2)
    with torch.no_grad():
        dense.weight.copy_(torch.eye(2)); dense.bias.zero_()
        head.weight.copy_(torch.tensor([[-1., 0.], [1., 0.]])); head.bias.zero_()
    return GloroNet([Centre(), Flatten(), dense], head, (2, 1, 1))


@pytest.fixture(scope="module")
def plane(half): return survey(half, moons_task(), "half")


def circle(trace): return np.array([trace.x, trace.y]).T[:-1]


def named(fig, name): return [t for t in fig.data if t.name == name]


def test_the_task_is_the_same_every_time_and_fits_the_net():
    a, b = moons_task(), moons_task()
    assert a.train.fingerprint() == b.train.fingerprint() and a.image_shape == (2, 1, 1) and len(a.test) == 200
    assert dense_net(width=8, depth=2)(a.test.images()).shape == (200, 2)
    assert torch.equal(dense_net(seed=1).body[2].weight, dense_net(seed=1).body[2].weight)


def test_the_moons_are_half_circles_with_noise():
    "Exact without noise; with it, spread by a tenth. (Hashes of the points: test_data.py)"
    exact, noisy = (torch.cat([part.images().flatten(1).double(), part.labels[:, None]], 1) for part in (moons_task(0.).train, moons_task().train))
    x, y = ((exact[:, :2]-0.5)*3.4+torch.tensor([0.5, 0.25])).T
    upper = exact[:, 2] == 0
    x, y = torch.where(upper, x, 1-x), torch.where(upper, y, 0.5-y)                # the lower moon is the upper one, turned round
    assert upper.sum() == 250 and ((x**2+y**2).sqrt()-1).abs().max() < 2e-4 and y.min() > -1e-4
    angles = torch.atan2(y.clamp(min=0), x)[upper].sort().values
    assert torch.allclose(angles.diff(), torch.full((249,), torch.pi/249).double(), atol=2e-4)
    assert torch.equal(noisy[:, 2], exact[:, 2]) and 3.4*(noisy-exact)[:, :2].std(0) == pytest.approx([0.1, 0.1], abs=0.015)
    assert noisy[:10, 2].unique().tolist() == [0, 1]                              # mixed: the first few are of both


def test_a_survey_of_the_half_plane(plane):
    x = plane.xs.expand(len(plane.ys), -1)
    away = (x-0.5).abs() > 1e-9                                            # a tie has radius 0 and either answer
    assert torch.equal((plane.pred == 1)[away], (x > 0.5)[away])
    assert torch.allclose(plane.radius, (x-0.5).abs(), atol=1e-6)
    assert (plane.border[:, 0]-0.5).abs().max() < 1e-6 and len(plane.border) == 2*201
    here = torch.tensor([[0.2, 0.5], [0.9, 0.5]], dtype=torch.float64)
    there, distance = plane.nearest(here, torch.tensor([0, 1]))
    assert (there[:, 0] > 0.5).tolist() == [True, False]                   # each on the other side of the line
    assert torch.allclose(distance, torch.tensor([0.3, 0.4]).double(), atol=1e-6) and torch.allclose(there[:, 1], here[:, 1])


def test_a_constant_network_has_no_border(half):
    net = dense_net(width=2, depth=1)
    with torch.no_grad(): net.body[2].weight.zero_(); net.head.bias[1] = 1.
    assert not len(border_points(net))
    flat = survey(net, moons_task())
    fig = plot_balls(flat, Walk(torch.zeros(1, 2), False), 0.5, 0.5, 0.1)
    assert flat.radius.isinf().all() and "other answer at inf" in fig.layout.title.text


def test_proved_radii_never_pass_the_nearest_other_answer():
    plane = survey(dense_net(width=8, depth=2), moons_task())
    points = torch.cartesian_prod(plane.ys, plane.xs).flip(1)
    assert (plane.radius.flatten() <= plane.nearest(points, plane.pred.flatten())[1]).all()


def test_the_attack_stops_at_the_ball(half):
    held, won = (attack_walk(half, 0.3, 0.5, e, steps=10) for e in (0.15, 0.25))
    assert not held.broken and won.broken and won.points[-1, 0] > 0.5
    assert held.points[0].tolist() == pytest.approx([0.3, 0.5])
    assert (held.points-held.points[0]).norm(dim=1).max() <= 0.15 and held.points[:, 0].max() > 0.44
    assert not half(won.points[:-1].view(-1, 2, 1, 1)).argmax(1).any()     # the walk ends where it first succeeds


@pytest.mark.parametrize("epsilon, verdict", [(0.1, "proved: no attack"), (0.25, "broken: the attack")])
def test_balls_have_their_true_size_and_the_title_says_the_verdict(plane, half, epsilon, verdict):
    fig = plot_balls(plane, attack_walk(half, 0.3, 0.5, epsilon), 0.3, 0.5, epsilon)
    for name, radius in (("proved ball", 0.2), ("attack's reach ε", epsilon)):
        assert np.allclose(np.hypot(*(circle(named(fig, name)[0])-[0.3, 0.5]).T), radius, atol=1e-5)
    star = named(fig, "other answer")[0]
    assert star.x[0] == pytest.approx(0.5, abs=1e-5) and star.y[0] == pytest.approx(0.5, abs=1e-5)
    assert verdict in fig.layout.title.text and "radius 0.200 proved, other answer at 0.200" in fig.layout.title.text
    t = plane.table
    right = t.pred == t.label
    assert f"VRA {(right & (t.radius > epsilon)).mean():.1%}" in fig.layout.title.text
    count = lambda name: sum(len(trace.x)-1 for trace in named(fig, name))
    assert count("certified at ε") == (right & (t.radius > epsilon)).sum()
    assert count("not certified") == (right & (t.radius <= epsilon)).sum() and count("wrong") == (~right).sum()
    rings = np.concatenate([np.array([b.x, b.y]).T.reshape(-1, 26, 2)[:, :25] for b in named(fig, "balls")])
    size = np.hypot(*(rings-rings[:, :-1].mean(1, keepdims=True)).transpose(2, 0, 1)).max(1)
    assert np.allclose(sorted(size), sorted(t.radius[t.radius > 0]), atol=1e-3)


def test_between_proof_and_truth_nobody_knows(plane):
    loose = Plane(**{**vars(plane), "radius": plane.radius/2})
    fig = plot_balls(loose, Walk(torch.tensor([[0.3, 0.5]]), False), 0.3, 0.5, 0.15)
    assert "no proof, and this attack found nothing" in fig.layout.title.text


def test_a_click_and_a_slider_move_the_figure(plane, half):
    def plot(x, y, epsilon): return plot_balls(plane, attack_walk(half, x, y, epsilon), x, y, epsilon)
    page = explore(plot, clicks=("x", "y"), x=Control("x", plane.xs.tolist(), plane.xs[10].item()),
                   y=Control("y", plane.ys.tolist(), plane.ys[10].item()), epsilon=Control("ε", (0.05, 0.35)))
    picked = named(page.figure, "picked")[0]
    before = len(named(page.figure, "certified at ε")[0].x)
    assert picked.x[0] == pytest.approx(0.2)
    page._click(("x", "y"), SimpleNamespace(xs=[0.81], ys=[0.5], point_inds=[0]))
    assert picked.x[0] == pytest.approx(0.8) and picked.y[0] == pytest.approx(0.5, abs=0.011)
    assert np.allclose(np.hypot(*(circle(named(page.figure, "proved ball")[0])-[0.8, picked.y[0]]).T), 0.3, atol=1e-5)
    page.controls["epsilon"].value = 0.35
    assert len(named(page.figure, "certified at ε")[0].x) < before and "broken" in page.figure.layout.title.text
    moving = still(plot, x=0.2, y=0.5, epsilon=Control("ε", (0.05, 0.35)))
    assert [f.name for f in moving.frames] == ["0.05", "0.35"] and "heatmap" not in [d.type for d in moving.frames[0].data]


def test_a_stick_hangs_from_clean_accuracy_to_vra():
    t = pd.DataFrame(dict(label=[0, 0, 1, 1], pred=[0, 0, 1, 0], radius=[.1, .3, .2, .9]))
    drawn = lambda epsilon: [(list(s.x), list(s.y)) for s in plot_trade_off(dict(a=t, b=t[:3]), epsilon).data[1:]]
    assert drawn(0.) == [([75., 75.], [75., 75.]), ([100., 100.], [100., 100.])]
    assert drawn(.2) == [([75., 75.], [25., 75.]), ([100., 100.], [33.33, 100.])]
    assert len(still(lambda epsilon: plot_trade_off(dict(a=t), epsilon), epsilon=Control("ε", (0., .2))).frames) == 2
    with pytest.raises(InputError, match="wanted at most 6"): plot_trade_off({k: t for k in "abcdefg"}, .1)


def test_noise_has_its_length_and_the_attack_stays_inside():
    class Mean(nn.Module):
        "Class 1 where the mean pixel is above one half."
        def __init__(self): super().__init__(); self.gain = nn.Parameter(torch.tensor(1.))
        def forward(self, x): lead = self.gain*(x.flatten(1).mean(1)-.5); return torch.stack([-lead, lead], 1)
    images = torch.tensor([.4, .45, .7]).view(3, 1, 1, 1).expand(3, 1, 4, 4).contiguous()   # borders at 0.4, 0.2 and 0.8
    found = nudge(Mean(), images, torch.tensor([0, 0, 1]), (0.1, 0.3, 0.5), steps=10)
    length = lambda how: (found.moved[how]-images).flatten(2).norm(dim=2)
    assert torch.allclose(length("noise"), torch.tensor([.1, .3, .5])[:, None].expand(3, 3), atol=1e-5)
    assert (length("attack") <= torch.tensor([.1, .3, .5])[:, None]+1e-5).all()
    assert found.answers["attack"].tolist() == [[0, 0, 1], [0, 1, 1], [1, 1, 1]] and found.acc("attack") == pytest.approx([1, 2/3, 1/3])


@pytest.fixture
def nudged():
    images, moved = torch.zeros(2, 1, 2, 2), torch.stack([torch.full((2, 1, 2, 2), v) for v in (.25, 1.5)])
    return Nudged(images, torch.tensor([1, 0]), torch.tensor([1, 1]), (.1, .2), dict(noise=moved, attack=-moved),
                  dict(noise=torch.tensor([[1, 1], [1, 0]]), attack=torch.tensor([[1, 1], [0, 1]])))


def test_nudged_images_carry_their_answers(nudged):
    fig = plot_nudged(nudged, 0, .2)
    says = [a.text for a in fig.layout.annotations]
    assert says == ["as it is:<br>says 1", "noise:<br>says 1", "attack:<br>says 0, wrong"]
    assert [int(np.max(t.z)) for t in fig.data[:3]] == [0, 255, 0]                           # clipped, not wrapped around
    assert list(fig.data[3].y) == [50, 100] and list(fig.data[4].y) == [50, 0] and list(fig.data[4].marker.size) == [6, 16]
    assert "says b" in plot_nudged(nudged, 0, .1, classes="ab").layout.annotations[0].text
    with pytest.raises(InputError, match="wanted one of"): plot_nudged(nudged, 0, .15)


def test_a_moved_length_redraws_images_and_marks(nudged):
    page = explore(lambda epsilon: plot_nudged(nudged, 0, epsilon), epsilon=Control("ε", (.1, .2)))
    assert page.figure.layout.annotations[2].text == "attack:<br>says 1"
    page.controls["epsilon"].value = .2
    assert page.figure.layout.annotations[2].text == "attack:<br>says 0, wrong" and list(page.figure.data[4].marker.size) == [6, 16]
