"The attack suite: what earlier certifiers got wrong, tried on this one."
import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_constants import networks

from liresnet_nb.attack import apgd, audit, line_search
from liresnet_nb.bounds import PairBound
from liresnet_nb.core import InputError
from liresnet_nb.evaluate import certify, evaluate, load_pretrained
from liresnet_nb.layers import (Centre, Conv, Dense, Flatten, Head, LinearOperator, LinearResidual, LipschitzLayer, MinMax, NormalizedHead,
                                OneLipschitz, Residual, roundings)
from liresnet_nb.lipschitz import operator_matrix
from liresnet_nb.model import ARITHMETIC, GloroNet
from liresnet_nb.rounding import UNIT, gamma

NECK, DENSE = 11, 14          # places in the body of the shipped model


def shipped(): return load_pretrained("digits").model


def column(table, name): return torch.tensor(table[name].to_numpy())


def predict(model, images, arithmetic): return model.plain(images.to(ARITHMETIC[arithmetic])).logits.argmax(1)


# Ties (klasleino/gloro #9)

def test_a_network_that_outputs_zeros_certifies_nothing(digits):
    model, images = shipped(), digits.test.images(slice(0, 50))
    for p in (model.body[DENSE].weight, model.body[DENSE].bias, model.head.bias): p.data.zero_()
    for arithmetic in ("real", "float32"):
        table = certify(model, images, 1e-6, arithmetic=arithmetic)
        assert not table.certified.any() and (table.radius == 0).all()


def test_rows_that_coincide_certify_nothing_at_equal_biases_and_everything_at_different_ones(digits):
    model, images = shipped(), digits.test.images(slice(0, 50))
    model.head.weight.data[:] = model.head.weight.data[0]
    model.head.bias.data.zero_()
    for arithmetic in ("real", "float32"): assert not certify(model, images, 1e-6, arithmetic=arithmetic).certified.any()
    model.head.bias.data[4] = 1.
    for arithmetic in ("real", "float32"): assert (certify(model, images, .3, arithmetic=arithmetic).radius == math.inf).all()


def test_two_rows_that_coincide_at_the_top_are_a_tie(digits):
    model, images = shipped(), digits.test.images(slice(0, 50))
    model.head.weight.data[1], model.head.bias.data[:2] = model.head.weight.data[0], 50.
    for arithmetic in ("real", "float32"): assert not certify(model, images, 1e-6, arithmetic=arithmetic).certified.any()


def test_a_head_row_of_zeros_is_refused(digits):
    model = shipped()
    model.head.weight.data[3].zero_()
    with pytest.raises(InputError, match="head row 3 is all zeros"): certify(model, digits.test.images(slice(0, 5)), .3)


# Guards, underflow, overflow (klasleino/gloro #8)

def rescale(model, power):
    "The neck convolution halved, weights and bias, and the dense layer doubled, again and again: the same function, and nothing rounds."
    neck, dense = model.body[NECK], model.body[DENSE]
    for _ in range(power):
        for p in (neck.weight, neck.bias): p.data /= 2
        dense.weight.data *= 2
    return model


@pytest.mark.parametrize("power", [17, 30, 100])     # 1e-5, 1e-9, 1e-30
def test_tiny_weights_compensated_elsewhere_gain_nothing(digits, power):
    images = digits.test.images()
    for arithmetic in ("real", "float32"):
        before, after = (certify(m, images, .3, arithmetic=arithmetic) for m in (shipped(), rescale(shipped(), power)))
        assert (after.pred == before.pred).all() and not (after.certified & ~before.certified).any()
        assert before.certified.sum() > 380
        if arithmetic == "real": assert (after.certified == before.certified).all()


def test_halving_one_layer_and_doubling_the_next_changes_nothing_while_numbers_are_normal(digits):
    images = digits.test.images(slice(0, 100)).double()
    usual = certify(shipped().double(), images, .3)
    for power in (1, 50, 100, 200, 500):
        assert (certify(rescale(shipped().double(), power), images, .3).certified == usual.certified).all(), power
    for power in (100, 110, 120, 900, 1000, 1010):       # activations leave the normal numbers first: certificates may only be lost
        model = shipped() if power < 126 else shipped().double()
        try: lost = certify(rescale(model, power), images.to(next(model.parameters())), .3)
        except InputError as e: assert "layer 11 (Conv)" in str(e) or "layer 14 (Dense)" in str(e)
        else: assert not (lost.certified & ~usual.certified).any()
    for model, power in ((shipped(), 124), (shipped(), 140), (shipped().double(), 1019), (shipped().double(), 1060)):
        with pytest.raises(InputError, match=r"layer 11 \(Conv\).*subnormal|layer 14 \(Dense\).*infinity"):
            certify(rescale(model, power), images.to(next(model.parameters())), .3)


@given(st.integers(-300, 300), st.integers(-300, 300))
def test_products_pass_through_any_magnitude(a, b):
    from liresnet_nb.bounds import Bound, product
    bounds = [Bound(3*2.**e, "x") for e in (a, b, -a, -b, 600, -600)]
    assert product(bounds).value == 3**6


# The forward pass that is deployed (Jin et al. arXiv:2205.10159, Murray arXiv:2603.13334)

def test_a_bias_of_a_million_is_withdrawn_in_float32_and_a_counterexample_shows_why(digits):
    model, clean, epsilon = shipped(), shipped().double(), .05
    model.body[DENSE].bias.data += 1e6                               # over the reals: each logit plus a constant, which
    model.head.bias.data -= 1e6*model.head.rows().detach().sum(1)    # the head's bias takes away again
    a, b = digits.test.images(slice(0, 60)), digits.test.images(slice(60, 120))
    mix = lambda share: (a+share[:, None, None, None]*(b-a)).clamp(0, 1)
    first = certify(model, a, epsilon)
    pred, low, high = column(first, "pred"), torch.zeros(60), torch.ones(60)
    for _ in range(12):                                              # on the way to another image, as far as the certificate holds
        rows = certify(model, mix((low+high)/2), epsilon)
        held = column(rows, "certified") & (column(rows, "pred") == pred)
        low, high = torch.where(held, (low+high)/2, low), torch.where(held, high, (low+high)/2)
    images, pred = mix(low)[column(first, "certified")], pred[column(first, "certified")]
    assert certify(model, images, epsilon).certified.all() and len(images) > 50
    withdrawn = certify(model, images, epsilon, arithmetic="float32")
    assert not withdrawn.certified.any() and (withdrawn.radius == 0).all()
    worst = apgd(clean, images.double(), pred, .999*epsilon, steps=15, loss="dlr", progress=False)
    generator, broken = torch.Generator().manual_seed(0), 0
    for _ in range(10):
        near = (worst+2e-5*torch.randn(worst.shape, generator=generator)).float().clamp(0, 1)
        inside = (near.double()-images.double()).flatten(1).norm(dim=1) <= epsilon
        assert (predict(model, near, "real") == pred)[inside].all()               # the claim over the reals stands,
        broken += (predict(model, near, "float32") != pred)[inside].sum().item()  # the float32 program does not keep it
    assert broken > 10


def test_margins_lose_no_more_to_rounding_than_the_account_says(digits):
    model, images = shipped(), digits.test.images(slice(0, 100))
    exact, single, proved = model.plain(images.double()), model.plain(images), model.pair_bound()
    pred, generator = exact.logits.argmax(1), torch.Generator().manual_seed(0)
    slack, growth = model.rounding(single, proved, pred, "float32")
    gap = lambda run: run.logits.double().gather(1, pred[:, None])-run.logits.double()
    for epsilon in (0., 1e-3, .3, 2.):
        noise = torch.randn(images.shape, generator=generator)
        near = (images+epsilon*noise/noise.flatten(1).norm(dim=1)[:, None, None, None]).clamp(0, 1)
        wrong = (gap(model.plain(near))-gap(model.plain(near.double()))).abs()
        assert (wrong <= slack+growth*epsilon).all() and wrong.max() > 1e-9
    assert (slack < 0.01*.3*proved.matrix[pred].clamp_min(1)).all()              # below 1 % of what the radius asks for


@pytest.mark.property
@given(networks(), st.sampled_from([1e-2, 1., 1e3]))
def test_rounding_of_random_networks_stays_within_the_account(case, size):
    model, g = case
    for layer in model.body:
        if isinstance(layer, LinearOperator): layer.bias.data = size*torch.randn(layer.bias.shape, generator=g)
    x = torch.rand(16, *model.image_shape, generator=g)
    exact, single = model.plain(x.double()), model.plain(x)
    pred = exact.logits.argmax(1)
    slack, growth = model.rounding(single, model.pair_bound(), pred, "float32")
    gap = lambda run: run.logits.double().gather(1, pred[:, None])-run.logits.double()
    assert ((gap(single)-gap(exact)).abs() <= slack).all() and (growth >= 0).all()


@pytest.mark.parametrize("arithmetic", ["real", "float32", "float64"])
def test_the_account_of_a_network_step_by_step(digits, arithmetic):
    "A second implementation, one image and one radius at a time: error at the image, and at any other image of the ball."
    dtype = ARITHMETIC[arithmetic]
    model, images = shipped().to(dtype), digits.test.images(slice(0, 3)).to(dtype)
    run, proved = model.plain(images), model.pair_bound()
    pred, rows, g = run.logits.argmax(1), model.head.applied()["rows"].double(), float(gamma(roundings(256), dtype))
    slack, growth = model.rounding(run, proved, pred, arithmetic)
    for b in range(3):
        for epsilon in (0., .3, 2.):
            here = away = 0.
            reach, lengths = epsilon, run.lengths[b].tolist()
            for layer, (_, bound), shape, length in zip(model.body, proved.layers, run.shapes, lengths):
                slope, offset = (float(v) for v in layer.rounding(shape, dtype))
                away = bound.value*away+slope*(length+reach+here+away)+offset
                here, reach = bound.value*here+slope*length+offset, reach*bound.value
            last, size, bias = lengths[-1], rows.norm(dim=1), model.head.bias.detach().double().abs()
            def margin(error, length):
                own = g*(size*length+bias)
                return (rows-rows[pred[b]]).norm(dim=1)*error+own+own[pred[b]]
            wanted = margin(here, last)+(0 if arithmetic == "real" else margin(away, last+reach+here+away))
            torch.testing.assert_close(slack[b]+growth[b]*epsilon, wanted.detach(), rtol=1e-6, atol=0)
            assert (slack[b]+growth[b]*epsilon >= wanted*(1-1e-12)).all()


@pytest.mark.parametrize("layer", [Conv((3, 9, 7), 4, 3, 1, 1), Conv((2, 12, 12), 5, 5, 2, 2), Conv((4, 8, 8), 6, 4, 4), Dense(150, 40), LinearResidual((6, 7, 7), 3)], ids=str)
def test_the_account_of_a_layer_is_gamma_times_the_norm_of_its_absolute_values(layer):
    torch.manual_seed(1)
    for p in layer.parameters(): torch.nn.init.normal_(p)
    A = operator_matrix(layer.kernel().detach().double(), layer.in_shape, layer.stride, layer.padding).abs()
    places = math.prod(layer.out_shape[1:])
    for dtype in (torch.float32, torch.float64):
        slope, offset = (float(x) for x in layer.rounding(layer.in_shape, dtype))
        g = float(gamma(roundings(layer.kernel()[0].numel()), dtype))
        exact = g*torch.linalg.matrix_norm(A, 2).item(), g*layer.bias.detach().double().norm().item()*places**.5
        assert exact[0]*(1-1e-12) <= slope <= 2*exact[0] and exact[1]*(1-1e-12) <= offset <= exact[1]*(1+1e-5)


@pytest.mark.parametrize("fmt, arithmetic", [(torch.float32, "float32"), (torch.float64, "float64")])
def test_the_named_forward_is_the_network(digits, fmt, arithmetic):
    model, images = shipped().to(fmt), digits.test.images(slice(0, 30)).to(fmt)
    with torch.no_grad(): usual = model(images)
    torch.testing.assert_close(model.plain(images).logits, usual, rtol=1e3*float(UNIT[fmt]), atol=1e3*float(UNIT[fmt]))
    assert certify(model, images, .3, arithmetic=arithmetic).certified.sum() > 20


def test_what_an_execution_needs(digits):
    images = digits.test.images(slice(0, 5))
    with pytest.raises(InputError, match="the model's weights are torch.float64"): certify(shipped().double(), images.double(), .3, arithmetic="float32")
    with pytest.raises(InputError, match="round them first"): certify(shipped(), images.double()*(1-1e-12), .3, arithmetic="float32")
    with pytest.raises(InputError, match="unknown arithmetic 'flaot32': did you mean 'float32'"): certify(shipped(), images, .3, arithmetic="flaot32")
    model = shipped()
    model.body[1].weight.data *= 1e30
    model.body[NECK].weight.data *= 1e10
    with pytest.raises(InputError, match="may overflow|infinity"): certify(model, images, .3, arithmetic="float32")


# Broken numbers, unknown layers, other sizes

@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(digits, value):
    images = digits.test.images(slice(0, 5))
    for break_it in (lambda m: m.body[NECK].weight.data, lambda m: m.body[5].bias.data, lambda m: m.head.weight.data, lambda m: m.head.bias.data, lambda m: m.body[3].beta.data):
        model = shipped()
        break_it(model).flatten()[3] = value
        for arithmetic in ("real", "float32"):
            with pytest.raises(InputError, match="NaN or infinity"): certify(model, images, .3, arithmetic=arithmetic)
    images = images.clone()
    images[2, 0, 0, 0] = value
    with pytest.raises(InputError, match="NaN or infinity|pixels from"): certify(shipped(), images, .3)


class Declared(LipschitzLayer):
    "A layer that declares its constants and not how it rounds."
    kind = "declared"
    def forward(self, x): return x.abs()
    def lipschitz_est(self, known): return torch.ones(())
    def lipschitz_bound(self, known): return Centre().lipschitz_bound(known)


def test_a_layer_of_unknown_constant_or_unknown_rounding_is_refused_by_name():
    with pytest.raises(InputError, match=r"layer 1 \(ReLU\) has no known Lipschitz constant"): GloroNet([Flatten(), torch.nn.ReLU()], NormalizedHead(4, 2), (1, 2, 2))
    model = GloroNet([Flatten(), Declared()], NormalizedHead(4, 2), (1, 2, 2))
    model.pair_bound()
    with pytest.raises(InputError, match=r"layer 1 Declared: it does not say how it rounds"): certify(model, torch.rand(3, 1, 2, 2), .1)
    class Other(Dense):
        def forward(self, x): return 2*super().forward(x)
        def lipschitz_bound(self, known): return known[self]*known[self]
    with pytest.raises(InputError, match="rounding.. is that of LinearOperator"): GloroNet([Flatten(), Other(4, 4)], NormalizedHead(4, 2), (1, 2, 2))


def test_constants_of_another_input_size_are_never_reused(digits):
    model, images = shipped(), digits.test.images(slice(0, 5))
    proved = model.pair_bound()
    other = dataclasses.replace(proved, image_shape=(1, 16, 16))
    with pytest.raises(InputError, match="another model"): certify(model, images, .3, pair_bound=other)
    with pytest.raises(InputError, match="made for"): certify(model, torch.rand(2, 1, 16, 16), .3)
    small, large = (GloroNet([Conv((1, n, n), 4, 3, padding=1), Flatten()], NormalizedHead(4*n*n, 3), (1, n, n)) for n in (4, 6))
    assert large.body[0].in_shape == (1, 6, 6)
    before = small.pair_bound()
    small.body[0].padding = 0
    with pytest.raises(InputError, match="no more|fit"): certify(small, torch.rand(1, 1, 4, 4), .1, pair_bound=before)
    small.body[0].padding, small.body[0].in_shape = 1, (1, 6, 6)
    with pytest.raises(InputError, match="layer 0 .Conv. does not fit"): small.pair_bound()


def test_the_analysed_forward_refuses_inputs_of_another_size():
    "A constant proved for 2×2 pixels says nothing about 8×8, where the same kernel stretches by twice as much."
    model = GloroNet([Conv((1, 2, 2), 1, 3, padding=1), Flatten()], NormalizedHead(64, 2), (1, 8, 8))
    for call in (lambda: model.plain(torch.rand(1, 1, 8, 8)), model.pair_bound, lambda: certify(model, torch.rand(1, 1, 8, 8), .1)):
        with pytest.raises(InputError, match=r"layer 0 \(Conv\).*made for inputs \(1, 2, 2\)"): call()


def test_layers_that_occur_twice_count_twice():
    torch.manual_seed(0)
    dense, minmax, head = Dense(32, 32), MinMax(), NormalizedHead(32, 3)
    dense.weight.data *= 3
    small = GloroNet([Centre(), Flatten(), dense, minmax], head, (2, 4, 4))
    large = GloroNet([*small.body, dense, minmax, dense, minmax], head, (2, 4, 4))
    proved = small.pair_bound()
    assert small.fingerprint() != large.fingerprint() and large.pair_bound().sub_lipschitz.value == pytest.approx(27, rel=1e-5)
    small.body.append(dense)
    for model in (small, large):
        with pytest.raises(InputError, match="no more"): certify(model, torch.rand(3, 2, 4, 4), 1e-3, pair_bound=proved)


class Factor(MinMax):
    "Ten times MinMax, with MinMax's constant."
    def forward(self, x): return 10*super().forward(x)


class Louder(Dense):
    "A hundred times what its constant says, in the pass that is certified only."
    def plain(self, x): return 100*super().plain(x)


def test_what_is_put_in_place_later_is_looked_at_again(digits):
    images = digits.test.images(slice(0, 3))
    def outside(model): model.body[2].forward = lambda x: 10*x
    def own_forward(model): model.__class__ = type("Own", (type(model),), dict(forward=lambda self, x: torch.sin(super(type(self), self).forward(x))))
    changes = [(lambda m: m.body.__setitem__(2, Factor()), "layer 2 .Factor. computes anew"), (lambda m: m.body.__setitem__(2, torch.nn.ReLU()), "layer 2 .ReLU. has no known"),
               (lambda m: m.body[2].register_forward_hook(lambda *a: 10*a[2]), "layer 2 .MinMax. has a hook"), (outside, "layer 2 .MinMax. has a forward set from outside"),
               (lambda m: m.body[14].register_forward_pre_hook(lambda *a: None), "layer 14 .Dense. has a hook"), (lambda m: m.register_forward_hook(lambda *a: None), "the network .LiResNet. has a hook"),
               (own_forward, "Own has a forward of its own")]
    for change, words in changes:
        model = shipped()
        change(model)
        for call in (model.pair_bound, lambda model=model: model.plain(images), lambda model=model: certify(model, images, .1)):
            with pytest.raises(InputError, match=words): call()
    with pytest.raises(InputError, match="computes anew in Louder.plain"): GloroNet([Flatten(), Louder(4, 4)], NormalizedHead(4, 2), (1, 2, 2))


def test_a_setting_that_is_a_tensor_or_a_list_is_part_of_the_fingerprint():
    class Scaled(LipschitzLayer):
        kind, settings = "scaled", ("scale", "table")

        def __init__(self):
            super().__init__()
            self.scale, self.table = torch.tensor(2.), dict(a=[1, 2])

        def forward(self, x): return self.scale*x
        def lipschitz_est(self, known): return self.scale
        def lipschitz_bound(self, known): return dataclasses.replace(Centre().lipschitz_bound(known), value=abs(self.scale.item()))
    model = GloroNet([Flatten(), Scaled()], NormalizedHead(4, 2), (1, 2, 2))
    prints = [model.fingerprint()]
    model.body[1].scale.mul_(1000)
    prints.append(model.fingerprint())
    model.body[1].table["a"][1] = 3
    prints.append(model.fingerprint())
    assert len(set(prints)) == 3 and model.fingerprint() == prints[-1]


def test_numbers_whose_squares_vanish_are_not_taken_for_zero():
    "Head rows and features of 2^-560: a tie broken by rounding alone must not be certified."
    class Own(torch.nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.w, self.bias = torch.nn.Parameter(rows), torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def rows(self): return self.w
    for seed in range(10):
        g = torch.Generator().manual_seed(seed)
        rows, x = torch.randn(2, 1024, generator=g, dtype=torch.float64), torch.rand(1, 1, 32, 32, generator=g, dtype=torch.float64)
        rows[1] = rows[0]
        rows[1, 0] += 1e-16*rows[1, 0].sign()                                # the margin is far below what an inner product rounds
        rows[1, 1:] = rows[1, 1:].roll(0)
        model = GloroNet([Flatten()], Own((rows+1e-17*torch.randn(2, 1024, generator=g, dtype=torch.float64))*2.**-560), (1, 32, 32))
        run = model.plain(x)
        slack, _ = model.rounding(run, model.pair_bound(), run.logits.argmax(1))
        assert (slack >= 2.**-53*2.**-560).all()


def test_a_plain_tensor_never_certifies(digits):
    model, images = shipped(), digits.test.images(slice(0, 5))
    for fake in (model.pair_est().detach(), model.pair_bound().matrix, None):
        if fake is None: continue
        with pytest.raises(InputError, match="a certificate needs a PairBound"): certify(model, images, .3, pair_bound=fake)
    assert isinstance(model.pair_bound(), PairBound)


# The proof against the attack

@pytest.mark.property
@given(networks())
def test_no_certified_point_of_a_random_network_is_broken(case):
    "In float64, by Auto-PGD and by lines along the gradients, as far as the certified radius goes."
    model, g = case
    model = model.double()
    x = torch.rand(12, *model.image_shape, generator=g, dtype=torch.float64)
    rows = certify(model, x, 1e-9)
    pred, radius = column(rows, "pred"), column(rows, "radius").clamp(max=1e3)
    inside = radius > 0
    x, pred, radius = x[inside], pred[inside], radius[inside]
    if not len(x): return
    for moved in (line_search(model, x, pred, radius, steps=4), apgd(model, x, pred, radius, steps=8, box=None, progress=False)):
        assert ((moved-x).flatten(1).norm(dim=1) <= radius).all()
        assert (predict(model, moved, "real") == pred).all()


@pytest.mark.property
@given(networks(), st.floats(0.05, 1))
def test_no_float32_image_of_a_certified_ball_changes_the_float32_answer(case, share):
    model, g = case
    x = torch.rand(32, *model.image_shape, generator=g)
    rows = certify(model, x, 1e-9, arithmetic="float32")
    pred, radius = column(rows, "pred"), column(rows, "radius").clamp(max=10.)
    assert (predict(model, x, "float32") == pred).all()
    moved = line_search(model, x, pred, radius.float()*share, steps=2).clamp(0, 1)
    inside = (moved.double()-x.double()).flatten(1).norm(dim=1) < radius
    assert (predict(model, moved, "float32") == pred)[inside].all()


@pytest.mark.parametrize("arithmetic", ["real", "float32"])
def test_the_shipped_model_keeps_its_certificates_under_attack(digits, arithmetic):
    images, labels = digits.test.images(slice(0, 150)), digits.test.labels[:150]
    result = audit(shipped(), images, labels, .3, steps=20, progress=False, arithmetic=arithmetic)
    assert result.vra <= result.pgd_acc <= result.clean_acc and result.vra > .8


def test_the_steps_from_estimate_to_proof_to_execution_cost_few_images(digits):
    run = load_pretrained("digits")
    real, single = (evaluate(run, digits, .3, progress=False, arithmetic=a) for a in ("real", "float32"))
    n = len(digits.test)
    assert round(n*(real.vra_est(.3)-real.vra(.3))) <= 2 and round(n*(real.vra(.3)-single.vra(.3))) <= 1
    assert (single.table.radius <= real.table.radius*(1+1e-6)).all()              # the stronger claim, the smaller radius
    assert 0 < real.low <= real.pair_bound.sub_lipschitz.value <= 1.2*real.low
    assert (real.constants.low <= real.constants.bound).all() and (real.constants.low >= .99*real.constants.estimate).all()


def test_a_net_of_ones_own(digits):
    "MinMax on flat features, a stem of even size: every part says how it rounds."
    torch.manual_seed(1)
    model = GloroNet([Centre(), Conv((1, 8, 8), 6, 4, 2, 1), MinMax(), Flatten(), Dense(96, 20), MinMax()], NormalizedHead(20, 10), (1, 8, 8))
    images, labels = digits.test.images(slice(0, 40)), digits.test.labels[:40]
    for arithmetic in ("real", "float32"): audit(model, images, labels, 1e-3, steps=5, progress=False, arithmetic=arithmetic)


# Layers inside of layers; sums that overflow out of sight

def residual(activation=None):
    return Residual((4, 6, 6), activation or MinMax())


def test_what_a_residual_block_is_made_of_is_checked():
    class Loud(MinMax):
        def forward(self, x): return 10*super().forward(x)
    class Floor(OneLipschitz):
        kind = "floor"
        def forward(self, x): return x.clamp_min(1e9)
    class Louder(Conv):
        def forward(self, x): return 10*super().forward(x)
        def plain(self, x): return 10*super().plain(x)
    for activation in (Loud(), Floor(), torch.nn.ReLU()):
        with pytest.raises(InputError, match="activation of a Residual is a .*wanted MinMax or Householder"): residual(activation)
    block = residual()
    model = GloroNet([block, Flatten()], NormalizedHead(144, 2), (4, 6, 6))
    for name, part in (("activation", Loud()), ("activation", Floor()), ("inner", Louder((4, 6, 6), 4, 3, padding=1)), ("outer", Conv((4, 6, 6), 4, 3, padding=1))):
        before = getattr(block, name)
        setattr(block, name, part)
        with pytest.raises(InputError, match="Residual is a|computes anew"): model.pair_bound()
        with pytest.raises(InputError, match="Residual is a"): block.rounding((4, 6, 6), torch.float32)
        setattr(block, name, before)
    model.pair_bound()


def test_layers_inside_of_a_layer_of_your_own_are_checked():
    class Loud(MinMax):
        def forward(self, x): return 10*super().forward(x)
    class Twice(LipschitzLayer):
        kind = "twice"
        def __init__(self, part):
            super().__init__()
            self.part = part
        def forward(self, x): return self.part(self.part(x))
        def lipschitz_est(self, known): return torch.ones(())
        def lipschitz_bound(self, known): return self.part.lipschitz_bound(known)
    GloroNet([Twice(MinMax()), Flatten()], NormalizedHead(144, 2), (4, 6, 6)).pair_bound()
    with pytest.raises(InputError, match=r"layer 0.part \(Loud\) computes anew"): GloroNet([Twice(Loud()), Flatten()], NormalizedHead(144, 2), (4, 6, 6))


def test_a_head_whose_sums_may_overflow_certifies_nothing():
    dense, head = Dense(2, 2), Head(2, 2)
    dense.weight.data, head.weight.data = 3.74*torch.eye(2), torch.tensor([[1e38, 0], [1.5e38, 0]])
    net = GloroNet([Flatten(), dense], head, (1, 1, 2))
    image, other = torch.tensor([[[[.6, 0.]]]]), torch.tensor([[[[1., 0.]]]])
    assert net.plain(image).logits.isfinite().all() and net.plain(other).logits.isinf().any()
    with pytest.raises(InputError, match="head's sums may overflow"): certify(net, image, .45, arithmetic="float32")
    assert certify(net, image, .45).certified.all()              # over the reals, in float64, there is room


@pytest.mark.parametrize("beta", [0., 2.**-125])
def test_an_overflow_inside_a_residual_block_is_seen(beta):
    block, head = Residual((2, 1, 1), MinMax()), Head(2, 2)
    for p in block.parameters(): p.data.zero_()
    block.inner.weight.data[0, :, 1, 1] = 3e38
    block.outer.weight.data[0, 0, 1, 1], block.outer.beta.data[:] = 1., beta
    head.weight.data, head.bias.data = torch.tensor([[1., 0], [-1, 0]]), torch.tensor([-1e6, 1e6])
    net = GloroNet([block, Flatten()], head, (2, 1, 1))
    image = torch.full((1, 2, 1, 1), .4)
    assert not net.plain(2*image).logits.isfinite().all()
    with pytest.raises(InputError, match="layer 0 .*may overflow"): certify(net, image, .6, arithmetic="float32")
