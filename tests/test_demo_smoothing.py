"Randomized smoothing against known answers, and the figures drawn from it."
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom, binomtest, norm

from liresnet_nb.core import InputError
from liresnet_nb.demos.smoothing import plot_provable_radius, plot_smoothing, plot_worst_halfspace
from liresnet_nb.explore import Control, explore, still
from liresnet_nb.smoothing import binomial_lower, noisy, recount, smoothed_certify, smoothed_radius

POINT = torch.tensor([0.7, 0.5]).view(1, 1, 1, 2)


def plane(at):
    def logits(x): return torch.stack([x.flatten(1)[:, 0]-at, at-x.flatten(1)[:, 0]], 1)
    return logits


def constant(x): return torch.tensor([[0., 1., 0.]]).expand(len(x), -1)


def test_the_bound_is_scipys_and_never_wrong_more_often_than_alpha():
    for k in (0, 1, 7, 19, 20):
        assert abs(binomial_lower(k, 20, 0.05)-binomtest(k, 20, alternative="greater").proportion_ci(0.95).low) < 1e-9
    counts = np.arange(61)
    for p in (0.2, 0.5, 0.77, 0.9, 0.99):
        for alpha in (0.2, 0.01):
            assert binom.pmf(counts, 60, p)[binomial_lower(counts, 60, alpha) > p].sum() <= alpha
    assert binomial_lower([3, 5], [5, 5], 0.5)[1] == pytest.approx(0.5**(1/5))


def test_radius_of_a_share():
    assert smoothed_radius(norm.cdf(2), 0.25) == pytest.approx(0.5)
    assert smoothed_radius(0.5, 1.) == 0 and list(smoothed_radius(np.array([0., 0.3]), 1.)) == [0, 0]


def test_a_constant_classifier_reaches_the_ceiling():
    row = smoothed_certify(constant, POINT, 0.5, n0=10, n=50, alpha=0.01, batch=7).iloc[0]
    assert (row.pred, row.votes, row.passes) == (1, 50, 60)
    assert row.smoothed_radius == pytest.approx(0.5*norm.ppf(0.01**(1/50)))


def test_a_half_space_is_certified_below_its_distance_and_close_to_it():
    radius = [smoothed_certify(plane(0.4), POINT, 0.25, n=n).smoothed_radius[0] for n in (100, 1000, 20_000)]
    assert radius == sorted(radius) and 0.95*0.3 < radius[-1] < 0.3
    other = smoothed_certify(plane(0.4), 1-POINT, 0.25)        # at 0.3, on the other side
    assert other.pred[0] == 1 and 0 < other.smoothed_radius[0] < 0.1


def test_coverage_and_abstention():
    many = smoothed_certify(plane(0.4), POINT.expand(1000, -1, -1, -1), 0.25, n0=20, n=60, alpha=0.1)
    wrong = int((many.smoothed_radius > 0.3).sum())
    exact = binom.pmf(np.arange(61), 60, norm.cdf(1.2))[binomial_lower(np.arange(61), 60, 0.1) > norm.cdf(1.2)].sum()
    assert 1e-3 < binom.cdf(wrong, 1000, exact) < 1-1e-3 and exact <= 0.1
    even = smoothed_certify(plane(0.7), POINT.expand(300, -1, -1, -1), 0.25, n0=20, n=60, alpha=0.05)
    assert set(even.pred) >= {-1} and (even.pred >= 0).mean() < 0.1 and (even.smoothed_radius[even.pred < 0] == 0).all()


def test_seeds_and_batches():
    a, b, c = (smoothed_certify(plane(0.4), POINT, 0.25, n=300, seed=s) for s in (0, 0, 1))
    assert a.votes[0] == b.votes[0] and a.votes[0] != c.votes[0]


def test_fewer_votes_are_a_sample_of_all():
    table = pd.DataFrame(dict(selected=2, votes=[800]*4000, n=1000, passes=1100, seconds=1.))
    some = recount(table, 0.5, 0.01, n=50)
    assert (some.n == 50).all() and (some.passes == 150).all()
    assert some.votes.mean() == pytest.approx(40, abs=0.2) and some.votes.std() == pytest.approx((50*.16*950/999)**.5, rel=0.05)
    assert (recount(table, 0.5).votes == 800).all() and recount(table, 0.5, 0.5).p_lower[0] > recount(table, 0.5, 1e-6).p_lower[0]


@pytest.mark.parametrize("fields, says", [
    (dict(sigma=0), "sigma is 0"), (dict(sigma=float("nan")), "sigma is nan"), (dict(alpha=1), "alpha is 1"),
    (dict(alpha=0.), "alpha is 0"), (dict(n=0), "n is 0"), (dict(n0=2.5), "n0 is 2.5"), (dict(batch=0), "batch is 0")])
def test_bad_input_gets_one_line(fields, says):
    with pytest.raises(InputError, match=says): smoothed_certify(constant, POINT, **{"sigma": 0.25, **fields})


def test_other_bad_input():
    with pytest.raises(InputError, match="votes of"): binomial_lower(6, 5)
    for p in (0, 1, 1.5):
        with pytest.raises(InputError, match="between 0 and 1"): plot_worst_halfspace(p=p)
    with pytest.raises(InputError, match="wanted at most"): recount(smoothed_certify(constant, POINT, 0.5, n=10), 0.5, n=11)
    with pytest.raises(InputError, match="NaN"): smoothed_certify(lambda x: torch.full((len(x), 2), torch.nan), POINT, 0.5)
    with pytest.raises(InputError, match="pixels from"): smoothed_certify(constant, 2*POINT, 0.5)


def test_noise_is_in_training_only_and_new_each_epoch(digits):
    task = noisy(digits, 0.5)
    def noise(e):
        rows = zip(task.train.epoch(500, 0, e), digits.train.epoch(500, 0, e))
        return torch.cat([x-plain for (x, _, _), (plain, _, _) in rows])
    a, b, c = noise(0), noise(0), noise(1)
    assert torch.equal(a, b) and a.std().item() == pytest.approx(0.5, rel=0.02) and abs((a*c).mean().item()) < 0.01
    assert task.test is digits.test and torch.equal(task.train.images(), digits.train.images())


def test_worst_halfspace_is_even_at_the_radius():
    fig = plot_worst_halfspace(p=norm.cdf(1), move=0.25, sigma=0.25)
    assert fig.data[2].name == "moved by 0.25: 50 %" and fig.data[4].x == pytest.approx((0.25, 0.25))
    assert max(fig.data[1].x) == pytest.approx(0.25)                          # the votes end at the edge
    assert fig.data[2].x[np.argmax(fig.data[2].y)] == pytest.approx(0.25, abs=0.02)


def test_provable_radii_and_the_place_that_is_marked():
    page = explore(plot_provable_radius, n=Control("n", (100, 1000), 1000), sigma=Control("σ", (0.25, 0.5)))
    marked = page.figure.data[4]
    assert marked.y[0] == pytest.approx(0.25*norm.ppf(0.001**(1/1000)))
    page.controls["n"].value, page.controls["sigma"].value = 100, 0.5
    assert marked.x[0] == 100 and marked.y[0] == pytest.approx(0.5*norm.ppf(0.001**(1/100)))
    ninety = page.figure.data[3]
    assert ninety.y[0] == pytest.approx(0.5*norm.ppf(binomtest(90, 100, alternative="greater").proportion_ci(0.999).low), abs=1e-3)
    assert len(page.figure.data[1].x) == 11                                   # 99.9 % of fewer than 1,000 is no whole number


def made():
    "Four images: every vote and right; half of the votes; every vote and wrong; nine of ten."
    label = np.array([1, 1, 1, 1])
    proved = pd.DataFrame(dict(label=label, pred=[1, 1, 0, 1], radius=[0.2, 0.6, 9., 0.], passes=1, seconds=0.002))
    votes = pd.DataFrame(dict(selected=[1, 1, 0, 1], votes=[1000, 500, 1000, 900], n=1000, passes=1100, seconds=0.11))
    return proved, {0.25: recount(votes, 0.25).assign(label=label), 0.5: recount(votes, 0.5).assign(label=label)}


def test_certified_accuracy_from_the_tables():
    proved, smoothed = made()
    fig = plot_smoothing(proved, smoothed)
    at = dict(zip(np.round(fig.data[0].x, 3), range(99)))
    exact, quarter, half = (np.array(t.y) for t in fig.data)
    assert [exact[at[e]] for e in (0, 0.3, 0.7)] == [50, 25, 0]
    assert [quarter[at[e]] for e in (0, 0.2, 0.5, 0.7)] == [50, 50, 25, 0]    # 900 votes prove 0.28, all prove 0.62
    assert [half[at[e]] for e in (0.5, 0.7, 1.2, 1.3)] == [50, 25, 25, 0]
    said = fig.layout.annotations[0].text
    assert "1 forward pass, 2 ms" in said and "1,100, 1.1e+02 ms" in said


def test_the_still_moves_the_curves_and_the_cost():
    proved, smoothed = made()
    fig = still(lambda n: plot_smoothing(proved, smoothed, n), n=Control("n", (100, 1000), 1000))
    assert [f.name for f in fig.frames] == ["100", "1,000"] and all(f.traces == (1, 2) for f in fig.frames)
    x, few = np.array(fig.data[0].x), np.array(fig.frames[0].data[0].y)
    assert x[few > 0].max() < 0.25*norm.ppf(0.001**(1/100)) <= x[np.array(fig.frames[1].data[0].y) > 0].max()
    assert "200," in fig.frames[0].layout.annotations[0].text and len(fig.to_json()) < 300_000
