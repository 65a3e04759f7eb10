"Margins, radii and losses against brute force and torch's own functions."
import itertools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from liresnet_nb.bounds import Bound, pair_bound
from liresnet_nb.core import InputError
from liresnet_nb.losses import LOSSES, emma, emma_adaptive, get_loss, gloro, trades
from liresnet_nb.rounding import EXACT
from liresnet_nb.margins import bot_logit, certified_radius, margins, runner_up, threatening_class, vra, vra_estimate


@st.composite
def batches(draw, max_classes=8):
    m, B, seed = draw(st.integers(2, max_classes)), draw(st.integers(1, 12)), draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    logits = 10**draw(st.floats(-3, 2))*torch.randn(B, m, generator=g)
    if draw(st.booleans()): logits = logits.round()                     # ties
    pair = torch.rand(m, m, generator=g)*10**draw(st.floats(-2, 2))
    pair = (pair+pair.T)*(1-torch.eye(m))
    if draw(st.booleans()): pair[0] = pair[:, 0] = 0
    return logits, torch.randint(m, (B,), generator=g), pair, g


@pytest.mark.property
@given(batches(), st.floats(0, 3))
def test_bot_logit_and_threat_by_brute_force(case, epsilon):
    logits, _, pair, _ = case
    bot, threat, second = bot_logit(logits, pair, epsilon), threatening_class(logits, pair, epsilon), runner_up(logits)
    for b, f in enumerate(logits):
        j = int(f.argmax())
        rivals = {i: f[i]+epsilon*pair[j, i] for i in range(len(f)) if i != j}
        assert bot[b] == max(rivals.values()) and rivals[int(threat[b])] == bot[b]
        assert f[second[b]] == f.topk(2).values[1] and threat[b] != j


@pytest.mark.property
@given(batches())
def test_radius_is_the_smallest_quotient_and_implies_the_inequality(case):
    logits, labels, pair, g = case
    m = logits.shape[1]
    rows = torch.randn(m, 5, generator=g)
    proved = pair_bound(rows, [("x", Bound(3., "test"))], (1, 1, 5))
    radius, f = certified_radius(logits, proved, EXACT), logits.double()
    for b in range(len(f)):
        j = int(f[b].argmax())
        quotients = [(f[b, j]-f[b, i])/proved.matrix[j, i] for i in range(m) if i != j]
        assert math.isclose(radius[b], min(quotients), rel_tol=1e-12) and radius[b] <= min(quotients)
        ties = (f[b] == f[b, j]).sum() > 1
        assert (radius[b] == 0) == bool(ties)
        if radius[b] > 0:
            exact = [Fraction(x.item()) for x in f[b]]                   # the inequality itself, without rounding
            assert all(exact[j] > exact[i]+Fraction(radius[b].item())*Fraction(proved.matrix[j, i].item()) for i in range(m) if i != j)


def test_ties_zeros_and_rows_that_coincide():
    proved = pair_bound(torch.eye(3), [], (1, 1, 3))
    assert (certified_radius(torch.zeros(4, 3), proved, EXACT) == 0).all()
    same = pair_bound(torch.ones(3, 4), [], (1, 2, 2))
    f = torch.tensor([[1., 2., 0.], [1., 1., 0.]])
    assert certified_radius(f, same, EXACT).tolist() == [math.inf, 0.]
    assert vra(certified_radius(torch.zeros(4, 3), proved, EXACT), torch.ones(4, dtype=torch.bool), 0) == 0


def test_a_radius_is_never_a_nan():
    proved = pair_bound(torch.ones(2, 3), [("zero", Bound(0., "all weights are zero"))], (1, 1, 3))
    assert certified_radius(torch.tensor([[1., 1.], [1., 2.]]), proved, EXACT).tolist() == [0., math.inf]


def test_what_certificates_refuse():
    proved, f = pair_bound(torch.eye(3), [], (1, 1, 3)), torch.rand(2, 3)
    with pytest.raises(InputError, match="needs a PairBound"): certified_radius(f, proved.matrix, EXACT)
    with pytest.raises(InputError, match="4 classes"): certified_radius(torch.rand(2, 4), proved, EXACT)
    with pytest.raises(InputError, match="NaN"): certified_radius(f/0*0, proved, EXACT)
    with pytest.raises(InputError, match="at least two classes"): certified_radius(f[:, :1], proved, EXACT)
    for bad in (-1., math.nan, math.inf, "x"):
        with pytest.raises(InputError): vra(torch.rand(2), torch.ones(2, dtype=torch.bool), bad)


def test_vra_takes_any_list_of_radii():
    import numpy as np
    assert vra(torch.tensor([0.5]), torch.tensor([True]), np.array([0.1, 0.9])) == [1., 0.] and vra(torch.tensor([0.5]), torch.tensor([True]), "1/4") == 1


def test_vra_is_strict_and_counts_right_answers_only():
    radius, right = torch.tensor([0.5, 0.5, 1.]), torch.tensor([True, False, True])
    assert vra(radius, right, [0, 0.49, 0.5, 2]) == [2/3, 2/3, 1/3, 0]


@pytest.mark.property
@given(batches(), st.floats(0, 3))
def test_losses_against_their_definitions(case, epsilon):
    f, y, K, _ = case
    f, K = f.double(), K.double()
    B, m = f.shape
    lifted = torch.stack([torch.stack([f[b, i]+epsilon*K[y[b], i] for i in range(m)]) for b in range(B)])
    torch.testing.assert_close(emma(f, y, K, epsilon), lifted.logsumexp(1)-f.gather(1, y[:, None])[:, 0])
    budget = torch.zeros(B, m, dtype=torch.float64)
    for b, i in itertools.product(range(B), range(m)):
        k = K[y[b], i]
        budget[b, i] = min(max(((f[b, y[b]]-f[b, i])/k).item(), 0.01*epsilon), epsilon) if k > 0 else epsilon
    own = f+budget*K[y]
    torch.testing.assert_close(emma_adaptive(f, y, K, epsilon), own.logsumexp(1)-own.gather(1, y[:, None])[:, 0])
    wide = torch.cat([f, bot_logit(f, K, epsilon)[:, None]], 1)
    torch.testing.assert_close(gloro(f, y, K, epsilon), F.cross_entropy(wide, y, reduction="none"))
    p, q = f.log_softmax(1), wide.log_softmax(1)[:, :m]
    torch.testing.assert_close(trades(f, y, K, epsilon, 2.), F.cross_entropy(f, y, reduction="none")+2*(p.exp()*(p-q)).sum(1), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(trades(f, y, K, epsilon, 1.), gloro(f, y, K, epsilon), rtol=1e-6, atol=1e-8)
    for loss in LOSSES.values(): assert (loss(f, y, K, epsilon) >= -1e-12).all()


@pytest.mark.parametrize("name", LOSSES)
def test_at_epsilon_zero(name):
    f, y, K = torch.randn(40, 6), torch.randint(6, (40,)), torch.rand(6, 6)
    second = f.softmax(1).topk(2, 1).values[:, 1]
    extra = dict(gloro=second.log1p(), trades=2*second.log1p()).get(name, 0)
    torch.testing.assert_close(get_loss(name)(f, y, K, 0.), F.cross_entropy(f, y, reduction="none")+extra, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_numbers_and_reach_the_constants(name):
    f, K = torch.randn(8, 5, requires_grad=True), torch.rand(5, 5)*(1-torch.eye(5))
    K.requires_grad_()
    get_loss(name)(f, torch.arange(8) % 5, K, 0.3).sum().backward()
    assert f.grad.isfinite().all() and f.grad.any()
    if name != "cross_entropy": assert K.grad.isfinite().all() and K.grad.any()


def test_no_loss_makes_a_batch_by_classes_by_features_tensor():
    "A thousand classes at batch 1024: every intermediate stays at [B,m]."
    from torch.utils._python_dispatch import TorchDispatchMode
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor): largest = max(largest, t.numel())
            return out
    f, y, K = torch.randn(256, 400, requires_grad=True), torch.randint(400, (256,)), torch.rand(400, 400)
    with Watch():
        for loss in LOSSES.values(): loss(f, y, K, 0.1).sum().backward()
    assert largest <= max(256*401, 400*400)


def test_vra_estimate_agrees_with_the_radius_when_the_estimate_is_the_bound():
    proved = pair_bound(torch.randn(5, 7), [("x", Bound(2., "test"))], (1, 1, 7))
    f, y = torch.randn(300, 5), torch.randint(5, (300,))
    radius = certified_radius(f, proved, EXACT)
    assert vra_estimate(f.double(), y, proved.matrix, 0.2).item() == pytest.approx(vra(radius, f.argmax(1) == y, 0.2))
    assert torch.equal(margins(f).amin(1), torch.zeros(300))


@pytest.mark.parametrize("name", LOSSES)
def test_what_losses_refuse(name):
    f, y, K, loss = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(3, 3), get_loss(name)
    for args, words in [((f, y+1, K, .1), "labels run from 1 to 3"), ((f, y-100, K, .1), "labels run from"), ((f, y.int(), K, .1), "int32"), ((f, y[:2], K, .1), r"wanted \[B,m\]"),
                        ((f, y, K, -.1), "epsilon is -0.1"), ((f, y, K, math.nan), "epsilon is nan")]:
        with pytest.raises(InputError, match=words): loss(*args)


def test_unknown_loss_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'emma'"): get_loss("ema")
