"The attack against known distances, a second implementation and the certificate; what it may not touch."
import copy
import math

import pytest
import torch
from torch import nn

from liresnet_nb import attack as module
from liresnet_nb.attack import BrokenCertificate, apgd, attack, audit, checkpoints, dlr, dlr_targeted, line_search
from liresnet_nb.core import InputError, generator
from liresnet_nb.evaluate import certify, load_pretrained
from liresnet_nb.layers import Flatten, NormalizedHead
from liresnet_nb.model import GloroNet

quiet = dict(progress=False)


class Wavy(nn.Module):
    "A rough landscape: sines of random projections; records where it was asked for a gradient."
    def __init__(self, shape=(1, 3, 3), classes=5, dtype=torch.float64):
        super().__init__()
        size = math.prod(shape)
        self.inner, self.outer = nn.Linear(size, 40, dtype=dtype), nn.Linear(40, classes, dtype=dtype)
        self.image_shape, self.asked = shape, []
        for k, p in enumerate(self.parameters()): p.data = torch.randn(p.shape, generator=generator("wavy", k), dtype=dtype)

    def forward(self, x):
        if x.requires_grad: self.asked.append(x.detach().clone())
        return self.outer(torch.sin(2*self.inner(x.flatten(1))))


def linear(weight, bias, shape, dtype=torch.float64):
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), len(weight), dtype=dtype))
    net[1].weight.data, net[1].bias.data = weight.to(dtype), bias.to(dtype)
    return net


def predict(model, images):
    with torch.no_grad(): return model(images).argmax(1)


@pytest.fixture(scope="module")
def shipped():
    return load_pretrained("digits").model


@pytest.fixture(scope="module")
def sample(digits):
    return digits.test.images(slice(0, 60)), digits.test.labels[:60]


def grey(n, shape, *key, low=0.45, high=0.55):
    return low+(high-low)*torch.rand(n, *shape, generator=generator(*key), dtype=torch.float64)


@pytest.mark.parametrize("classes", [2, 4, 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_linear_classifier_breaks_just_beyond_its_distance(classes, dtype):
    W = torch.randn(classes, 16, generator=generator("W", classes), dtype=torch.float64)
    model, x = linear(W, -W.sum(1)/2, (1, 4, 4), dtype), grey(40, (1, 4, 4), "x")
    y = predict(model, x.to(dtype))
    f = (x.flatten(1)-0.5) @ W.T
    gap, length = f.gather(1, y[:, None])-f, (W[y][:, None]-W).norm(dim=2)
    distance = torch.where(torch.arange(classes) == y[:, None], torch.inf, gap/length).amin(1)
    assert distance.max() < 0.4                                 # no pixel meets 0 or 1 on the way
    far = attack(model, x.to(dtype), y, 1.01*distance, steps=50, **quiet)
    near = attack(model, x.to(dtype), y, 0.99*distance, steps=50, **quiet)
    assert far.pgd_acc == 0 and near.pgd_acc == 1 and far.clean_acc == 1
    assert near.table.distance.isna().all() and (near.images == x.to(dtype)).all()
    along = torch.tensor(far.table.distance.to_numpy())
    assert (along >= distance*(1-1e-5)).all() and (along <= 1.01*distance).all()
    ends = [predict(model, line_search(model, x.to(dtype), y, s*distance)) for s in (1.01, 0.99)]
    assert (ends[0] != y).all() and (ends[1] == y).all()


@pytest.mark.parametrize("loss", ["ce", "dlr", "targeted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_iterate_is_in_the_ball_and_the_box(loss, dtype):
    model = Wavy(dtype=dtype)
    for k, (low, high, epsilon) in enumerate([(0, 1, 0.3), (0, 0.05, 0.7), (0.95, 1, 1e-3), (0.3, 0.6, 1e-6), (0, 1, 3.)]):
        x = grey(20, model.image_shape, "ball", k, low=low, high=high).to(dtype)
        model.asked.clear()
        end = apgd(model, x, predict(model, x), epsilon, loss, steps=12, restarts=2, **quiet)
        assert end.dtype == dtype and end.min() >= 0 and end.max() <= 1
        assert ((end.double()-x.double()).flatten(1).norm(dim=1) <= epsilon).all()
        for z in model.asked: assert z.min() >= 0 and z.max() <= 1
        whole = [z for z in model.asked if len(z) == 20]
        assert len(whole) >= 4, "too few iterates of all images together"
        for z in whole: assert ((z.double()-x.double()).flatten(1).norm(dim=1) <= epsilon).all()


def test_without_a_box_pixels_may_leave_it_and_each_image_has_its_ball():
    model = Wavy()
    x, radius = grey(30, model.image_shape, "own", low=0, high=1), torch.linspace(0, 2, 30, dtype=torch.float64)
    y = predict(model, x)
    for end in (apgd(model, x, y, radius, steps=10, box=None, **quiet), line_search(model, x, y, radius)):
        moved = (end-x).flatten(1).norm(dim=1)
        assert (moved <= radius).all() and (end[0] == x[0]).all() and end.min() < 0 and end.max() > 1
    assert apgd(model, x, y, radius, steps=10, **quiet).min() >= 0


def test_the_best_iterate_is_returned():
    model = Wavy()
    x = grey(25, model.image_shape, "best", low=0, high=1)
    y = predict(model, x)
    for loss, value in (("ce", lambda z: nn.functional.cross_entropy(z, y, reduction="none")), ("dlr", lambda z: dlr(z, y))):
        model.asked.clear()
        end = apgd(model, x, y, 0.12, loss, steps=30, **quiet)
        asked = torch.stack(model.asked)
        with torch.no_grad():
            losses, wrong = torch.stack([value(model(z)) for z in asked]), torch.stack([predict(model, z) for z in asked]) != y
            reached, broken = value(model(end)), predict(model, end) != y
        assert (broken == wrong.any(0)).all() and 0 < broken.sum() < 25
        first = wrong.long().argmax(0)
        torch.testing.assert_close(reached[~broken], losses.amax(0)[~broken], rtol=0, atol=1e-12)
        for i in broken.nonzero()[:, 0]: assert (end[i] == asked[first[i], i]).all()


def plain(f, x, y, start, epsilon, steps):
    "Algorithm 1 of arXiv:2003.01690 for one image, in words as plain as can be: points visited, step sizes."
    marks, p, q = [], 0.22, 0.
    while p <= 1.000001: marks.append(math.ceil(p*steps-1e-9)); p, q = p+max(p-q-0.03, 0.06), p

    def look(z):
        z = z.clone().requires_grad_()
        loss = nn.functional.cross_entropy(f(z), y)
        return loss.item(), torch.autograd.grad(loss, z)[0]

    def project(z):
        d = (z-x).norm().item()
        return (x+(z-x)*min(1, epsilon/d)).clamp(0, 1)
    points, etas, eta = [project(start)], [], 2*epsilon
    loss, grad = look(points[0])
    top, x_top, grad_top = loss, points[0], grad
    current, previous, f_then, eta_then, mark, ups = points[0], points[0], top, eta, 0, 0
    for k in range(1, steps+1):
        z = project(current+eta*grad/grad.norm())
        new = z if k == 1 else project(current+0.75*(z-current)+0.25*(current-previous))
        previous, current, before = current, new, loss
        points.append(current)
        loss, grad = look(current)
        ups += loss > before
        if loss > top: top, x_top, grad_top = loss, current, grad
        etas.append(eta)
        if k in marks:
            now = eta
            if ups < 0.75*(k-mark) or (eta_then == eta and f_then == top):
                eta, current, loss, grad = eta/2, x_top, top, grad_top
            f_then, eta_then, mark, ups = top, now, k, 0
    return torch.cat(points), etas


def test_iterates_are_those_of_a_second_implementation(monkeypatch):
    model, starts = Wavy(), []
    monkeypatch.setattr(module, "_starts", lambda *given, own=module._starts: starts.append(own(*given)) or starts[-1])
    x = grey(12, model.image_shape, "second", low=0, high=1)
    y = predict(model, x)
    histories = set()
    for i in range(12):
        for epsilon in (0.02, 0.05):
            model.asked.clear(); starts.clear()
            apgd(model, x[i:i+1], y[i:i+1], epsilon, steps=60, **quiet)
            mine = torch.cat(model.asked)
            theirs, etas = plain(model, x[i:i+1], y[i:i+1], starts[0], epsilon, 60)
            histories.add(tuple(etas))
            torch.testing.assert_close(mine, theirs[:len(mine)], rtol=0, atol=1e-6)     # rounding, amplified by a rough landscape
    assert len(histories) > 3, "the step size went the same way every time: nothing is tested"


def test_checkpoints_are_the_papers():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99] and checkpoints(1000) == [10*k for k in checkpoints(100)]
    assert checkpoints(1) == [1] and all(checkpoints(n)[-1] <= n for n in range(1, 60))


def scripted(losses, monkeypatch):
    "`_climb` for 100 steps where these are the losses: every point asked to be projected, and the result."
    asked, losses = [], iter(losses)
    monkeypatch.setattr(module, "_project", lambda points, centre, radius, box: asked.append(points) or centre)

    def look(images):
        return module._Point(images, torch.tensor([next(losses)]).double(), torch.ones_like(images), torch.tensor([False]))
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    end = module._climb(look, x, x, torch.full_like(x, 0.5), 100, None, dict(disable=True))
    return torch.cat(asked).flatten(), end


def step_sizes(losses, monkeypatch):
    "What the unit gradient is multiplied by in each interval, the first one 1."
    steps = scripted(losses, monkeypatch)[0][1::2].tolist()        # after the start: plain step, step with momentum, ...
    marks = [0, *checkpoints(100)]
    assert all(len(set(steps[i:j])) == 1 for i, j in zip(marks, [*marks[1:], 100]))
    return [steps[i] for i in marks]


def test_steps_are_halved_when_the_paper_says(monkeypatch):
    sizes = lambda losses: step_sizes(losses, monkeypatch)
    assert sizes(range(101)) == [1.]*9                                               # always uphill: never halved
    assert sizes([0]*101) == [2.**-k for k in range(9)]                              # never uphill: always halved
    assert sizes([1000, *range(100)]) == [2.**-((k+1)//2) for k in range(9)]         # uphill, yet never best: every other time
    def drops(n): return torch.tensor([0., *([1.]*41), *([-0.5]*n), *([1.]*(59-n))]).cumsum(0).tolist()
    assert sizes(drops(4)) == [1.]*9 and sizes(drops(5)) == [1.]*3+[0.5]*6           # 12 of 16 rises are 3/4, 11 are fewer


def test_the_peak_is_returned_though_the_climb_ends_lower(monkeypatch):
    assert checkpoints(100)[-1] == 99 and scripted([*range(100), -1], monkeypatch)[1].loss == 99


def test_losses_by_hand():
    z, y = torch.tensor([[3., 1., 0., -1.], [1., 3., 0., -1.], [0., 2., 2., 2.], [5., 5., 5., 5.]]), torch.zeros(4, dtype=torch.int64)
    assert dlr(z[:2], y[:2]).tolist() == pytest.approx([-2/3, 2/3]) and dlr(z[3:], y[3:]).item() == 0
    assert dlr_targeted(z[:2], y[:2], y[:2]+2).tolist() == pytest.approx([-3/3.5, -1/3.5])
    torch.testing.assert_close(dlr(1e-3*z[:2], y[:2]), dlr(1e3*z[:2], y[:2]))
    z.requires_grad_()
    for loss in (dlr(z, y), dlr_targeted(z, y, y+3)):
        assert torch.isfinite(loss).all() and torch.isfinite(torch.autograd.grad(loss.sum(), z)[0]).all()


def test_a_constant_network_gives_no_nan():
    model = linear(torch.zeros(5, 9), torch.zeros(5), (1, 3, 3))
    x = grey(8, (1, 3, 3), "constant")
    for loss in ("ce", "dlr", "targeted"):
        end = apgd(model, x, torch.zeros(8, dtype=torch.int64), 0.2, loss, steps=8, **quiet)
        assert torch.isfinite(end).all() and ((end-x).flatten(1).norm(dim=1) <= 0.2).all()
    result = attack(model, x, torch.tensor([0]*6+[1]*2), 0.2, steps=8, **quiet)
    assert result.table.broken_by.tolist() == [""]*6+["clean"]*2 and result.pgd_acc == result.clean_acc == 0.75
    assert torch.equal(line_search(model, x, torch.zeros(8, dtype=torch.int64), torch.full((8,), math.inf)), x)


def test_vanishing_gradients_still_point_somewhere():
    W = torch.tensor([[1., 0.], [-1., 0.]])
    x, y = torch.full((1, 1, 1, 2), 0.6, dtype=torch.float32), torch.tensor([0])
    model = linear(300*W, torch.tensor([-150., 150.]), (1, 1, 2), torch.float32)       # cross-entropy 0, its gradient about 1e-24
    assert (predict(model, apgd(model, x, y, 0.11, steps=20, **quiet)) == 1).all()
    for scale in (1e-30, 1e30):
        v = torch.tensor([[[[3., 4.]]], [[[0., 0.]]]])*scale
        torch.testing.assert_close(module.norm(v), torch.tensor([5*scale, 0.]), rtol=1e-6, atol=0)
        assert module.unit(v).flatten().tolist() == pytest.approx([.6, .8, 0, 0])


def test_full_precision_whatever_is_switched_on(shipped, sample):
    x, y = sample[0][:8], sample[1][:8]
    calls = [lambda: apgd(shipped, x, y, .3, steps=3, **quiet), lambda: attack(shipped, x, y, .3, steps=3, **quiet).images,
             lambda: line_search(shipped, x, y, torch.ones(8), steps=2)]
    for call in calls:
        usual = call()
        with torch.autocast("cpu", torch.bfloat16): assert torch.equal(call(), usual)


def test_the_same_by_seed_whatever_the_batch(sample):
    model = load_pretrained("digits").model.double()
    x, y = sample[0][:12].double(), sample[1][:12]
    for loss in ("ce", "targeted"):
        how = dict(loss=loss, steps=6, targets=2, restarts=2, **quiet)
        one = apgd(model, x, y, 0.3, **how)
        assert torch.equal(one, apgd(model, x, y, 0.3, **how))
        torch.testing.assert_close(one, apgd(model, x, y, 0.3, batch=5, **how), rtol=0, atol=1e-9)
        assert not torch.equal(one, apgd(model, x, y, 0.3, seed=1, **how))
    rows = [attack(model, x, y, 0.5, steps=6, batch=b, **quiet).table for b in (5, 256)]
    assert (rows[0].drop(columns="distance") == rows[1].drop(columns="distance")).all().all()
    line = [line_search(model, x, y, torch.ones(12), batch=b) for b in (5, 256)]
    torch.testing.assert_close(*line, rtol=0, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_alone(sample, training):
    model = load_pretrained("digits").model.train(training)
    for p in list(model.parameters())[:2]: p.grad = torch.ones_like(p)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    x, y = sample[0][:6], sample[1][:6]
    kept = x.clone()
    audit(model, x, y, 0.3, steps=3, **quiet)
    with torch.no_grad(): apgd(model, x, y, 0.3, steps=3, **quiet)
    line_search(model, x, y, torch.ones(6))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and torch.equal(x, kept)
    assert [p.grad is None or bool((p.grad == 1).all()) for p in model.parameters()] == [True]*len(list(model.parameters()))
    assert [p.grad is not None for p in model.parameters()][:3] == [True, True, False]
    assert all(m.training == training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_later_losses_and_restarts_only_see_what_still_stands(shipped, sample, monkeypatch):
    sizes, climb = [], module._climb
    monkeypatch.setattr(module, "_climb", lambda look, x, *rest: sizes.append(len(x)) or climb(look, x, *rest))
    result = attack(shipped, *sample, 0.6, steps=10, restarts=2, **quiet)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == result.table.correct.sum()
    assert repr(result) == f"60 images: {result.clean_acc:.1%} are classified correctly, {result.pgd_acc:.1%} withstand the attack"
    assert sizes[-1] < sizes[0] and len(sizes) == 2+2+9*2
    by = result.table.broken_by
    assert ((by == "") == result.table.robust).all() and set(by) <= {"", "clean", "ce", "dlr", "targeted"}
    wrong = torch.tensor(~result.table.robust.to_numpy())
    assert ((predict(shipped, result.images) != sample[1]) == wrong).all()


def test_audit_of_the_shipped_model(shipped, sample):
    result = audit(shipped, *sample, 0.3, steps=30, **quiet)
    table = result.table
    assert list(table.columns) == ["label", "pred", "margin", "radius", "certified", "robust", "broken_by"]
    assert 0.7 < result.vra <= result.pgd_acc < result.clean_acc and not (table.certified & ~table.robust & (table.pred == table.label)).any()
    text = repr(result)
    assert "60 images" in text and f"{result.vra:.1%}" in text and f"{result.pgd_acc:.1%}" in text and "\n" not in text


def test_no_point_of_a_line_inside_a_certified_ball_changes_the_prediction(digits):
    model, images = load_pretrained("digits").model.double(), digits.test.images(slice(0, 100)).double()
    rows = certify(model, images, 0.3)
    pred, radius = torch.tensor(rows.pred.to_numpy()), torch.tensor(rows.radius.to_numpy())
    assert (predict(model, line_search(model, images, pred, radius, steps=4)) == pred).all()
    assert (predict(model, apgd(model, images, pred, radius, steps=5, box=None, **quiet)) == pred).all()
    assert (predict(model, line_search(model, images, pred, 3*radius, steps=4)) != pred).float().mean() > 0.5


class Valley(nn.Module):
    "The rival class gains a little to the right, and a lot far to the left."
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        x = x.flatten(1)
        return torch.cat([torch.full_like(x, 0.1), self.slope*(x-0.5)+10*(0.3-x).relu()], 1)


def test_lines_are_searched_forth_and_back():
    model, x, y = Valley(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    assert predict(model, line_search(model, x, y, torch.tensor([0.4]))) == 1
    assert predict(model, line_search(model, x, y, torch.tensor([0.1]))) == 0


def test_a_certificate_that_claims_too_much_is_found_out(sample, monkeypatch):
    model, (x, y) = load_pretrained("digits").model, sample
    honest = certify

    def bold(model, images, epsilon, **how):
        table = honest(model, images, epsilon, **how).assign(radius=lambda t: 4*t.radius)
        return table.assign(certified=table.radius > epsilon)
    monkeypatch.setattr(module, "certify", bold)
    with pytest.raises(BrokenCertificate, match=r"image \d+ \(class \d\) has certified radius .* the proof is wrong"):
        audit(model, x, y, 0.5, steps=20, **quiet)
    monkeypatch.setattr(module, "_holds", lambda *given: False)         # a break by rounding alone does not count
    result = audit(model, x, y, 0.5, steps=20, **quiet)
    assert not (result.table.certified & ~result.table.robust & (result.table.pred == result.table.label)).any()


def test_images_that_are_certified_with_a_wrong_answer_are_attacked_too(sample, monkeypatch):
    model, (x, y) = load_pretrained("digits").model, sample
    honest = certify
    monkeypatch.setattr(module, "certify", lambda *a, **k: honest(*a, **k).assign(radius=9., certified=True))
    with pytest.raises(BrokenCertificate, match="the proof is wrong"): audit(model, x, (y+1) % 10, 3., steps=10, **quiet)
    monkeypatch.undo()
    assert audit(model, x, (y+1) % 10, .3, steps=10, **quiet).vra == 0


def axes(bias):
    "Two pixels, two classes: the brighter pixel wins."
    net = GloroNet([Flatten()], NormalizedHead(2, 2), (1, 1, 2))
    net.head.weight.data, net.head.bias.data = torch.eye(2), torch.tensor([0., bias])
    return net


def test_a_break_holds_in_the_arithmetic_of_the_claim_and_inside_the_ball_or_not_at_all():
    model, x = axes(-1e-9), torch.tensor([[[0.6, 0.5]]])
    for point, holds in (([0.5, 0.6], True), ([0.58, 0.52], False), ([0.6, 0.9], False)):
        for arithmetic in ("real", "float32"): assert module._holds(model, x, 0, torch.tensor([[point]]), 0.2, arithmetic) is holds
    rounded, even = axes(1e-9), torch.tensor([[[0.5, 0.5]]])            # class 1 by 1e-9: float32 sees a tie and says 0
    assert predict(rounded, even[None]).item() == 0
    assert not module._holds(rounded, even, 1, even, 0.2, "real") and module._holds(rounded, even, 1, even, 0.2, "float32")


def test_what_is_refused(shipped, sample):
    x, y = sample[0][:3], sample[1][:3]
    few = linear(torch.eye(2, 9), torch.zeros(2), (1, 3, 3))
    small, zero = torch.rand(1, 1, 3, 3), torch.tensor([0])
    for call, words in [
        (lambda: apgd(shipped, x*255, y, .3), "pixels from"), (lambda: apgd(shipped, x.expand(3, 3, 8, 8), y, .3), "made for"),
        (lambda: apgd(shipped, x, y[:2], .3), "2 labels for 3 images"), (lambda: apgd(shipped, x, y+10, .3), "labels run from"),
        (lambda: apgd(shipped, x, y, 0), "epsilon is 0"), (lambda: apgd(shipped, x, y, math.inf), "epsilon is inf"),
        (lambda: apgd(shipped, x, y, torch.ones(2)), r"epsilon has shape \[2\]"), (lambda: apgd(shipped, x, y, -torch.ones(3)), "negative, infinite or NaN"),
        (lambda: apgd(shipped, x, y, torch.ones(3)*math.nan), "negative, infinite or NaN"), (lambda: line_search(shipped, x, y, torch.ones(3)*math.nan), "NaN"),
        (lambda: apgd(shipped, x, y, .3, loss="dlrr"), "did you mean 'dlr'"), (lambda: apgd(shipped, x, y, .3, steps=0), "steps is 0"),
        (lambda: apgd(shipped, x, y, .3, restarts=0), "restarts is 0"), (lambda: apgd(shipped, x, y, .3, batch=0), "batch is 0"),
        (lambda: apgd(shipped, x, y, .3, loss="targeted", targets=10), "10 classes have 9 rivals"), (lambda: apgd(shipped, x, y, .3, box=(0, 2)), "box is"),
        (lambda: apgd(few, small, zero, .3, loss="dlr"), "2 classes: the loss 'dlr' wants at least 3"),
        (lambda: apgd(few, small, zero, .3, loss="targeted"), "at least 4"), (lambda: dlr(torch.zeros(1, 2), zero), "at least 3"),
        (lambda: apgd(shipped, x[:0], y[:0], .3), "no images"), (lambda: audit(few, small, zero, .3), "wanted a GloroNet"),
        (lambda: audit(shipped, x, y, -1), "epsilon is -1"), (lambda: line_search(shipped, x, y, torch.ones(3), steps=0), "steps is 0"),
    ]:
        with pytest.raises(InputError, match=words): call()
    broken = load_pretrained("digits").model
    broken.head.bias.data[0] = math.nan
    for call in (apgd, attack, audit):
        with pytest.raises(InputError, match="NaN"): call(broken, x, y, .3, **quiet)
