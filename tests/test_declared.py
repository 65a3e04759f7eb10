"One certificate, one function: what is hashed, proved and run are the same numbers, or there is no certificate."
import dataclasses
import functools
import math
import re
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from liresnet_nb.bounds import ONE, Bound
from liresnet_nb.core import InputError
from liresnet_nb.data import ImageSet
from liresnet_nb.evaluate import certify, evaluate, load_pretrained, nearest_neighbour
from liresnet_nb.layers import Conv, Dense, Flatten, Head, LipschitzLayer, MinMax, NormalizedHead, OneLipschitz, Residual
from liresnet_nb.model import GloroNet, build_model

SHIPPED = "85cfe138d1652bbfdf1e7ac022ec89246b87b71d3bba602dd356b253562241b6"
IMAGES = torch.rand(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))


def net(*layers, head=None, shape=(1, 2, 2)):
    torch.manual_seed(0)
    return GloroNet([Flatten(), *layers] if len(shape) == 3 else layers, head or NormalizedHead(4, 3), shape)


def refused(model, words, images=IMAGES, calls=("proof", "certificate")):
    "Nothing about `model` is proved or certified, and the message says why."
    if "proof" in calls:
        with pytest.raises(InputError, match=words): model.pair_bound()
    if "certificate" in calls:
        with pytest.raises(InputError, match=words): certify(model, images, .1)


# Shapes: nothing is stretched to fit

@pytest.mark.parametrize("edge, change", [(3, dict(padding=0)), (2, dict(stride=2)), (2, dict(stride=3))], ids=str)
def test_a_branch_of_another_shape_is_not_stretched_over_the_map(edge, change):
    block, shape = Residual((2, edge, edge), MinMax()), (2, edge, edge)
    block.outer.beta.data[:] = 30.
    model = GloroNet([block, Flatten()], NormalizedHead(2*edge*edge, 2), shape)
    images = torch.rand(4, *shape)
    certify(model, images, .001)
    for name, value in change.items(): setattr(block.outer, name, value)
    if edge-3+2*block.outer.padding < 0: pytest.fail("the branch has no output")
    refused(model, r"layer 0 \(Residual\).*adds a branch of shape \(2, 1, 1\).*wanted one shape", images)
    with pytest.raises(InputError, match="wanted one shape"): model.plain(images)


def test_a_head_for_another_number_of_features_is_refused():
    model = net(Dense(4, 128), MinMax(), head=NormalizedHead(64, 3))
    refused(model, r"the layers end in \(128,\), the head wants \(64,\)")
    with pytest.raises(InputError, match="the head wants"): model.plain(IMAGES)


def test_a_bias_of_another_shape_is_refused():
    for name, change in (("[1]", lambda d: torch.zeros(1)), ("[4, 1]", lambda d: torch.zeros(4, 1)), ("no bias", lambda d: None)):
        for where in ("layer", "head"):
            model = net(Dense(4, 4))
            owner = model.body[1] if where == "layer" else model.head
            bias = change(owner)
            owner.bias = None if bias is None else nn.Parameter(bias)
            refused(model, f"{where}.*{re.escape(name)} for {4 if where == 'layer' else 3} outputs")


def test_a_layer_that_mixes_or_drops_images_is_refused():
    class First(OneLipschitz):
        kind = "first"
        def forward(self, x): return x[:1]
        def rounding(self, shape, dtype): return 0, 0
    refused(net(First()), r"layer 1 \(First\) makes \(1, 4\) of \(2, 4\)")
    class Mean(OneLipschitz):
        kind = "mean of the batch"
        def lipschitz_bound(self, known): return Bound(2., "generous")
        def forward(self, x): return x-x.mean(0)
        def rounding(self, shape, dtype): return Fraction(1, 2**20), 0
    refused(net(Mean()), "depends on the others of its batch")


# A bound below a pair of inputs

def test_a_bound_that_a_pair_of_inputs_contradicts_is_refused_everywhere():
    class Three(LipschitzLayer):
        kind = "three"
        def forward(self, x): return 3*x
        def lipschitz_est(self, known): return torch.tensor(2.)
        def lipschitz_bound(self, known): return Bound(2., "a slip")
        def rounding(self, shape, dtype): return Fraction(1, 2**20), 0
    model = net(Three())
    refused(model, r"layer 1 \(Three\): this layer stretches a pair of inputs by (3|2.99).*more than its bound 2 \(a slip\)")
    with pytest.raises(InputError, match="more than its bound"): model.constants()


def test_a_constant_of_the_whole_network_that_images_contradict_is_refused(digits):
    "A layer whose slip lies where no random input of its own comes, and images do."
    class Near(LipschitzLayer):
        kind = "near"
        def forward(self, x): return torch.where(x.norm(dim=1, keepdim=True) < 1.2, 50*x, 60*x/x.norm(dim=1, keepdim=True))
        def lipschitz_est(self, known): return torch.ones(())
        def lipschitz_bound(self, known): return Bound(10., "a slip")
        def lipschitz_low(self): return 0.
        def rounding(self, shape, dtype): return Fraction(1, 2**20), 0
    refused(net(Near()), "the network stretches a pair of inputs by .*more than its bound 10")


def test_the_best_pair_that_an_evaluation_finds_is_compared_with_the_bound(tiny_run, digits):
    model = tiny_run.model
    proved = model.pair_bound()
    low = model.lipschitz_low(digits.test.images(slice(0, 4)), proved=proved)
    assert 0 < low <= proved.sub_lipschitz.value
    lower = dataclasses.replace(proved, sub_lipschitz=Bound(low/2, "a slip"))
    with pytest.raises(InputError, match="the network stretches a pair"): model.lipschitz_low(digits.test.images(slice(0, 4)), proved=lower)
    with pytest.raises(InputError, match="changed after they were proved"): evaluate(tiny_run, digits, pair_bound=lower, progress=False)


def test_constants_that_were_scaled_for_a_picture_certify_nothing():
    model = net(Dense(4, 4))
    for numbers in ("matrix", "distances"):
        proved = model.pair_bound()
        certify(model, IMAGES, .1, pair_bound=proved)
        getattr(proved, numbers).numpy()[:] /= 100
        with pytest.raises(InputError, match="changed after they were proved"): certify(model, IMAGES, .1, pair_bound=proved)


# State that no hash sees

@dataclasses.dataclass
class Settings: gain: float = 1.


HIDDEN = dict(_gain=1., table=np.ones(1), settings_=Settings(), chosen={1}, rule=lambda x: x, parts=[Dense(4, 4)], plain_number=1, buffer=torch.ones(1))


@pytest.mark.parametrize("name", HIDDEN)
def test_what_a_layer_keeps_and_does_not_declare_is_refused_by_name(name):
    class Keeps(OneLipschitz):
        kind = "keeps"
        def forward(self, x): return x
        def rounding(self, shape, dtype): return 0, 0
    layer = Keeps()
    certify(net(layer), IMAGES, .1)
    setattr(layer, name, HIDDEN[name])
    refused(net(layer), rf"layer 1 \(Keeps\) keeps '{name}' without declaring it")


def test_a_value_that_a_class_keeps_is_refused_by_name():
    class Keeps(OneLipschitz):
        kind, gain = "keeps", 1.
        def forward(self, x): return self.gain*x
        def rounding(self, shape, dtype): return 0, 0
    refused(net(Keeps()), "keeps 'gain' without declaring it")
    Keeps.settings = ("gain",)
    proved = (model := net(Keeps())).pair_bound()
    certify(model, IMAGES, .1, pair_bound=proved)
    Keeps.gain = 100.
    with pytest.raises(InputError, match="weights it has no more"): certify(model, IMAGES, .1, pair_bound=proved)


@pytest.mark.parametrize("value", [np.ones(1), Settings(), {1}, print, Dense(2, 2), 1j, object()], ids=lambda v: type(v).__name__)
def test_a_setting_without_a_spelling_is_refused(value):
    class Keeps(OneLipschitz):
        kind, settings = "keeps", ("gain",)
        def forward(self, x): return x
        def rounding(self, shape, dtype): return 0, 0
    layer = Keeps()
    object.__setattr__(layer, "gain", value)
    refused(net(layer), r"setting 'gain' of layer 1 \(Keeps\) is a .*: wanted numbers, names, tensors")


def test_settings_that_differ_hash_differently():
    class Keeps(OneLipschitz):
        kind, settings = "keeps", ("value",)
        def forward(self, x): return x
        def rounding(self, shape, dtype): return 0, 0
    layer, prints = Keeps(), []
    for layer.value in ([[0], 1], [[0, 1]], [0, [1]], [0, 1], {"a": 1}, {"b": 1}, {"a": "1"}, 1, 1., True, "1", None, [], "", torch.ones(2), torch.ones(1, 2), torch.ones(2).double()):
        prints.append(net(layer).fingerprint())
    assert len(set(prints)) == len(prints)


def test_a_gain_that_grows_after_the_proof_makes_the_proof_stale():
    class Gain(LipschitzLayer):
        kind, settings = "gain", ("_gain",)
        def __init__(self): super().__init__(); self._gain = 1.
        def forward(self, x): return self._gain*x
        def lipschitz_est(self, known): return torch.tensor(self._gain)
        def lipschitz_bound(self, known): return Bound(self._gain, "its gain")
        def rounding(self, shape, dtype): return Fraction(1, 2**20), 0
    model = net(Gain())
    proved = model.pair_bound()
    model.body[1]._gain = 100.
    with pytest.raises(InputError, match="weights it has no more"): certify(model, IMAGES, .1, pair_bound=proved)
    assert model.pair_bound().sub_lipschitz.value >= 100


def test_a_layer_without_a_kind_or_with_somebody_elses_is_refused():
    class Nameless(OneLipschitz):
        def forward(self, x): return x
        def rounding(self, shape, dtype): return 0, 0
    refused(net(Nameless()), r"layer 1 \(Nameless\) declares no kind")
    class Sly(Nameless): kind = "minmax"
    refused(net(Sly()), "calls itself 'minmax', the kind of another class, MinMax")
    class Heir(MinMax):
        def forward(self, x): return x
        def plain(self, x): return x
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return 0, 0
    refused(net(Heir()), "computes anew in Heir.forward and calls itself 'minmax'")
    first, second = (type(n, (Nameless,), dict(kind="mine")) for n in "AB")
    refused(net(first(), second()), "calls itself 'mine', the kind of another class, A")
    refused(net(first(), first()), "", calls=())
    refused(net(type("C", (Nameless,), dict(kind="c", settings="gain"))()), "settings 'gain': wanted a tuple of names")
    refused(net(type("D", (Nameless,), dict(kind="d", settings=("gain",)))()), "declares a setting 'gain' that it does not have")


def test_a_torch_module_inside_of_a_layer_is_refused_by_name():
    class Holds(LipschitzLayer):
        kind = "holds"
        def __init__(self): super().__init__(); self.inside = nn.Linear(4, 4)
        def forward(self, x): return self.inside(x)
        def lipschitz_est(self, known): return torch.tensor(9.)
        def lipschitz_bound(self, known): return Bound(9., "generous")
        def rounding(self, shape, dtype): return 1, 1
    refused(net(Holds()), r"layer 1 \(Holds, inside Linear\) declares no kind")


# Parametrisations, and numbers that change from call to call

def test_a_parametrised_weight_is_hashed_proved_and_run_as_applied():
    plain, param = (net(Dense(4, 4), MinMax()) for _ in range(2))
    nn.utils.parametrizations.orthogonal(param.body[1], "weight")
    plain.body[1].weight.data = param.body[1].weight.detach().clone()
    assert plain.fingerprint() == param.fingerprint()          # the same function, however it is stored
    assert param.pair_bound().sub_lipschitz.value == pytest.approx(1, rel=1e-4)
    torch.testing.assert_close(plain.plain(IMAGES).logits, param.plain(IMAGES).logits, rtol=0, atol=0)


def test_a_spectral_norm_that_iterates_at_every_call_is_refused_until_it_rests():
    model = net(Dense(4, 4), MinMax())
    model.body[1].weight.data = torch.randn(4, 4)
    nn.utils.parametrizations.spectral_norm(model.body[1], "weight", n_power_iterations=1)
    for vector in ("_u", "_v"): getattr(model.body[1].parametrizations.weight[0], vector).data = F.normalize(torch.tensor([1., 2., -3., .5]), dim=0)
    refused(model, "train.. and in eval|from call to call|changed while", calls=("proof",))
    model.eval()
    proved = model.pair_bound()
    certify(model, IMAGES, .1, pair_bound=proved)
    old = net(Dense(4, 4), MinMax())
    nn.utils.spectral_norm(old.body[1])
    refused(old, r"layer 1 \(Dense\) has a hook")


class Drop(nn.Module):
    "Dropout, as a parametrisation of a weight."
    def __init__(self): super().__init__(); self.drop = nn.Dropout(.5)
    def forward(self, w): return self.drop(w)


def test_weights_that_change_from_call_to_call_certify_nothing():
    model = net(Dense(4, 4), MinMax())
    nn.utils.parametrize.register_parametrization(model.body[1], "weight", Drop())
    torch.manual_seed(1)
    refused(model, "from call to call|changed while")
    model.eval()
    proved = model.pair_bound()
    assert proved.mode == "eval" and len(certify(model, IMAGES, .1, pair_bound=proved))
    model.train()
    with pytest.raises(InputError, match="call model.eval|weights it has no more|changed while"): certify(model, IMAGES, .1, pair_bound=proved)


def test_a_layer_that_answers_differently_in_train_and_eval_is_refused():
    class Doubles(LipschitzLayer):
        kind = "doubles"
        def forward(self, x): return 2*x if self.training else x
        def lipschitz_est(self, known): return torch.tensor(2.)
        def lipschitz_bound(self, known): return Bound(2., "generous")
        def rounding(self, shape, dtype): return 0, 0
    model = net(Doubles())
    refused(model, "differently in train.. and in eval")
    model.eval()
    proved = model.pair_bound()
    model.train()
    with pytest.raises(InputError, match="call model.eval"): certify(model, IMAGES, .1, pair_bound=proved)
    assert all(build_model("L1W8", (1, 8, 8), 3).train(t).pair_bound().mode == "any" for t in (True, False))


def test_weights_that_are_changed_while_images_are_certified_are_seen(monkeypatch):
    model = net(Dense(4, 4), MinMax())
    plain = GloroNet.plain
    def trains_on(self, images):
        if len(images) == 8: self.body[1].weight.data[0, 0] += 1e-3
        return plain(self, images)
    monkeypatch.setattr(GloroNet, "plain", trains_on)
    with pytest.raises(InputError, match=r"layer 1 \(Dense\) changed while the network was certified"): certify(model, IMAGES, .1)


# The head

def test_rows_of_a_head_do_not_depend_on_its_layout_in_memory():
    "In float32 they did, by 6e-8; constants proved for one layout were too small for the other."
    for seed in range(20):
        torch.manual_seed(seed)
        a, b = NormalizedHead(257, 10), NormalizedHead(257, 10)
        b.weight.data = a.weight.data.t().contiguous().t()
        assert not b.weight.is_contiguous() and torch.equal(a.applied()["rows"], b.applied()["rows"])
        one, other = (GloroNet([Flatten()], h, (1, 1, 257)) for h in (a, b))
        one.head.bias.data.zero_(), other.head.bias.data.zero_()
        assert one.fingerprint() == other.fingerprint()
        x = torch.rand(3, 1, 1, 257)
        assert torch.equal(one.plain(x).logits, other.plain(x).logits)
        proved, rows = one.pair_bound(), other.head.applied()["rows"].double()
        for j, i in ((0, 1), (3, 7)):
            exact = sum((Fraction(p)-Fraction(q))**2 for p, q in zip(rows[j].tolist(), rows[i].tolist()))
            assert Fraction(proved.matrix[j, i].item())**2 >= exact


def test_a_head_that_applies_other_rows_than_it_shows_is_refused():
    class Louder(NormalizedHead):
        def rows(self): return 3*super().rows()
    refused(net(head=Louder(4, 3)), "the head applies numbers that differ from its rows")


# What is set from outside

def test_what_is_set_on_an_instance_is_refused_by_name():
    for name in ("plain", "prove", "lipschitz_bound", "rounding", "kernel", "applied", "forward"):
        model = net(Dense(4, 4))
        vars(model.body[1])[name] = lambda *a, **k: None
        refused(model, rf"layer 1 \(Dense\) has a {name} set from outside")
    for name in ("plain", "rounding", "pair_bound", "prints", "_check"):
        model = net(Dense(4, 4))
        vars(model)[name] = getattr(model, name)
        with pytest.raises(InputError, match=rf"the network \(GloroNet\) has a {name} set from outside"): GloroNet._check(model)


@pytest.mark.parametrize("name", ["__call__", "_call_impl", "__getattr__", "__getattribute__"])
def test_a_layer_that_changes_what_a_call_means_is_refused(name):
    model = net(Dense(4, 4), MinMax())
    usual = getattr(nn.Module, name)
    model.body[2].__class__ = type("Own", (MinMax,), {name: lambda self, *a: usual(self, *a)})
    refused(model, rf"layer 2 \(Own\) has a {name} of its own class")


def test_a_weight_that_is_no_plain_tensor_is_refused():
    class Shows(torch.Tensor):
        "A tensor that may compute with other numbers than it shows."
    model = net(Dense(4, 4))
    model.body[1].weight = nn.Parameter(torch.eye(4).as_subclass(Shows))
    refused(model, r"kernel of layer 1 \(Dense\) is a (Shows|Parameter|_ParameterMeta).*wanted a plain torch tensor", calls=("proof",))


def test_a_body_that_runs_its_layers_its_own_way_is_refused():
    class Twice(nn.Sequential):
        def forward(self, x): return 2*super().forward(x)
    model = net(Dense(4, 4))
    model.body = Twice(*model.body)
    refused(model, "the body is a Twice, which may run its layers as it likes")


def test_hooks_for_all_modules_are_refused():
    model = net(Dense(4, 4))
    for register in (nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook):
        handle = register(lambda *a: None)
        try: refused(model, "torch has a forward hook for all modules")
        finally: handle.remove()
    certify(model, IMAGES, .1)


@pytest.mark.parametrize("name", ["plain", "__call__", "forward", "rounding", "pair_bound", "prints", "device", "__getattr__", "_head"])
def test_a_network_that_computes_in_its_own_way_is_refused(name):
    model = net(Dense(4, 4))
    usual = getattr(GloroNet, name)
    model.__class__ = type("Own", (GloroNet,), {name: usual if isinstance(usual, property) else lambda self, *a, **k: usual(self, *a, **k)})
    with pytest.raises(InputError, match=f"Own has a {name} of its own"): GloroNet._check(model)


def test_a_network_may_say_how_it_is_built():
    class Small(GloroNet):
        "A network of one's own."
        width: int = 4
        def __init__(self): super().__init__([Flatten(), Dense(4, self.width)], NormalizedHead(4, 3), (1, 2, 2))
        @classmethod
        def make(cls): return cls()
    certify(Small.make(), IMAGES, .1)


# Rounding

def test_no_radius_without_an_account_of_rounding():
    from liresnet_nb.margins import certified_radius
    from liresnet_nb.rounding import EXACT, Account
    model = net(Dense(4, 4), MinMax(), head=Head(4, 2))
    model.head.bias.data = torch.tensor([65536., 65536.])
    images = torch.rand(200, 1, 2, 2)
    proved, single = model.pair_bound(), model.plain(images)
    with pytest.raises(TypeError, match="account"): certified_radius(single.logits, proved)
    for wrong in (None, 0., (0., 0.), torch.zeros(200, 2)):
        with pytest.raises(InputError, match="needs an account of rounding"): certified_radius(single.logits, proved, wrong)
    for bad in (Account(-1., 0.), Account(math.nan, 0.), Account(0., -1e-9), Account(torch.full((200, 2), math.inf), 0.)):
        with pytest.raises(InputError, match="of the account holds"): certified_radius(single.logits, proved, bad)
    exact = certified_radius(model.plain(images.double()).logits, proved, EXACT)
    careless = certified_radius(single.logits, proved, EXACT)
    radius = certified_radius(single.logits, proved, model.rounding(single, proved, arithmetic="float32"))
    assert (careless > exact*(1+1e-6)).any()                 # why there is no usual value
    assert (radius <= exact).all()


@pytest.mark.parametrize("answer", [(-1e-9, 0), (0, -1), (math.nan, 0), (0, math.inf), (None, 0), 3, ("a", "b"), (0, 0, 0)], ids=str)
def test_a_rounding_that_is_none_is_refused(answer):
    class Odd(OneLipschitz):
        kind = "odd"
        def forward(self, x): return x.abs()
    Odd.rounding = lambda self, shape, dtype: answer
    refused(net(Odd()), r"layer 1 \(?Odd\)?: rounding\(\) returned .*wanted slope and offset", calls=("certificate",))


def test_a_layer_that_inherits_only_its_constant_says_itself_how_it_rounds():
    class Adds(OneLipschitz):
        kind = "adds"
        def forward(self, x): return x+1e4
    refused(net(Adds()), "layer 1 Adds: it does not say how it rounds", calls=("certificate",))


def test_kernels_of_numbers_that_are_not_real_are_refused():
    for dtype in (torch.complex64, torch.int32, torch.bool):
        class Odd(Dense):
            def kernel(self): return self.weight.detach().to(dtype)
        refused(net(Odd(4, 4)), rf"layer 1 \(Odd\).*{dtype}|layer 1 \(Odd\) does not fit", calls=("proof",))
        layer = Odd(4, 4)
        with pytest.raises(InputError, match="wanted real floating-point numbers"): layer.prove()


def test_weights_of_more_digits_than_the_arithmetic_are_not_rounded_on_the_way(digits):
    model = net(Dense(4, 4), MinMax())
    model.body[1].double()
    with pytest.raises(InputError, match="body.1.(weight|bias) is torch.float64 and would be rounded to torch.float32"): model.plain(IMAGES)
    with pytest.raises(InputError, match="wanted float32 or float64"): net().plain(IMAGES.half())


def test_radii_of_the_nearest_neighbour_are_rounded_down():
    g, larger = torch.Generator().manual_seed(0), 0
    train = ImageSet(torch.rand(12, 1, 3, 3, generator=g), torch.arange(12) % 3, 1.)
    test = ImageSet(torch.rand(120, 1, 3, 3, generator=g), torch.zeros(120, dtype=torch.int64), 1.)
    table = nearest_neighbour(train, test)
    with mpmath.workdps(60):
        for image, row in zip(test.raw.flatten(1).tolist(), table.itertuples()):
            far = [mpmath.sqrt(mpmath.fsum((mpmath.mpf(a)-mpmath.mpf(b))**2 for a, b in zip(image, known))) for known in train.raw.flatten(1).tolist()]
            other = min(d for d, y in zip(far, train.labels.tolist()) if y != row.pred)
            exact = (other-min(far))/2
            assert row.radius <= exact and row.radius >= float(exact)*(1-1e-10)-1e-12
            larger += (other-min(far))/2 < mpmath.mpf((float(other)-float(min(far)))/2)
    assert larger > 10                                       # as a float64 without care would have been


# Plain errors

@pytest.mark.parametrize("how, words", [
    (dict(stride=(2, 2)), r"stride \(2, 2\): wanted one whole number >= 1"), (dict(stride=0), "stride 0: wanted"), (dict(stride=True), "stride True"),
    (dict(padding="same"), "padding 'same': wanted one whole number >= 0"), (dict(padding=-1), "padding -1"), (dict(padding=(1, 1)), r"padding \(1, 1\)"),
    (dict(kernel_size=(3, 3)), r"kernel_size \(3, 3\)"), (dict(kernel_size=0), "kernel_size 0"), (dict(kernel_size=2.), "kernel_size 2.0")], ids=str)
def test_settings_of_a_convolution_are_one_number_each(how, words):
    with pytest.raises(InputError, match=words): Conv((1, 8, 8), 4, **(dict(kernel_size=3) | how))
    layer = Conv((1, 8, 8), 4, 3, padding=1)
    name, value = next(iter(how.items()))
    if name == "kernel_size": return
    setattr(layer, name, value)
    model = GloroNet([layer, Flatten()], NormalizedHead(256, 3), (1, 8, 8))
    refused(model, f"layer 0.*{words}", torch.rand(2, 1, 8, 8), ("proof",))


def test_a_module_that_only_declares_constants_can_be_trained_and_not_certified():
    class Duck(nn.Module):
        def forward(self, x): return x
        def lipschitz_est(self, known): return torch.ones(())
        def lipschitz_bound(self, known): return ONE
    model = net(Duck())
    assert model(IMAGES).shape == (8, 3) and model.pair_est().isfinite().all()
    refused(model, "LipschitzLayer")


def test_numbers_without_memory_are_refused():
    model = net(Dense(4, 4))
    model.body[1].to("meta")
    refused(model, "meta", calls=("proof",))
    with pytest.raises(InputError): certify(net(Dense(4, 4)), IMAGES.to_sparse(), .1)
    with pytest.raises(InputError): certify(net(Dense(4, 4)), IMAGES.to("meta"), .1)
    with pytest.raises(InputError): certify(net(Dense(4, 4)), IMAGES, .1, batch=True)


def test_a_fingerprint_names_no_file_and_no_class():
    "The same layers, their classes moved and renamed."
    class Moved(MinMax): pass
    Moved.__module__, Moved.__qualname__ = "elsewhere", "Renamed"
    class AlsoDense(Dense): pass
    a, b = net(Dense(4, 4), MinMax()), net(AlsoDense(4, 4), Moved())
    b.body[1].weight.data = a.body[1].weight.data
    b.head = a.head
    assert a.fingerprint() == b.fingerprint()


class Base(LipschitzLayer):
    "A layer of gain 1 to start from, as somebody might write it."
    kind = "base"
    def forward(self, x): return x
    def lipschitz_est(self, known): return torch.ones(())
    def lipschitz_bound(self, known): return ONE
    def rounding(self, shape, dtype): return Fraction(1, 2**20), 0


def test_settings_of_a_base_class_are_not_forgotten():
    class LowRank(Conv):
        settings, rank = ("rank",), 2
    model = GloroNet([LowRank((2, 4, 4), 2, 3, 3, 1), Flatten()], NormalizedHead(8, 2), (2, 4, 4))
    proved, images = model.pair_bound(), torch.rand(4, 2, 4, 4)
    certify(model, images, .1, pair_bound=proved)
    model.body[0].stride, model.body[0].padding = 1, 0          # another operator with outputs of the same shape
    with pytest.raises(InputError, match="weights it has no more"): certify(model, images, .1, pair_bound=proved)


class Slotted(Base):
    kind, __slots__ = "slotted", ("gain",)
class OfClass(Base):
    kind, inner = "of class", Dense(4, 4)
class Config(Base):
    kind = "config"
    class config: gain = 1.
class Mixed(Base, type("Mixin", (), dict(gain=1.))): kind = "mixed"


@pytest.mark.parametrize("cls, name", [(Slotted, "gain"), (OfClass, "inner"), (Config, "config"), (Mixed, "gain")])
def test_state_in_slots_classes_and_mixins_is_refused_by_name(cls, name):
    refused(net(cls()), f"keeps '{name}' without declaring it")


def test_a_buffer_is_not_overlooked_for_its_name():
    layer = Base()
    layer.register_buffer("power_vector", torch.ones(4))
    before = net(layer).fingerprint()
    layer.power_vector[0] = 2.
    assert net(layer).fingerprint() != before


def test_a_method_that_a_base_calls_is_a_computation_too():
    class Template(Base):
        kind = "template"
        def forward(self, x): return self.f(x)
        def f(self, x): return x
        def lipschitz_bound(self, known): return Bound(9., "generous")
        def rounding(self, shape, dtype): return 0, 0
    class Other(Template):
        def f(self, x): return x.flip(1)
    net(Template()).pair_bound()
    with pytest.raises(InputError, match="computes anew in Other.f, but its lipschitz_bound"): net(Other())
    class Kindless(Other):
        def lipschitz_bound(self, known): return Bound(9., "generous")
        def rounding(self, shape, dtype): return 0, 0
    refused(net(Kindless()), "computes anew in Other.f and calls itself 'template'")


def test_the_network_that_is_called_is_the_one_that_is_proved():
    class Shift(Base):
        kind = "shift"
        def forward(self, x): return x+1
        def plain(self, x): return x
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return 0, 0
    refused(net(Shift()), "otherwise than its plain")
    class Watches(Dense):
        def kernel(self): return self.weight*(2 if torch.is_grad_enabled() else 1)
    refused(net(Watches(4, 4)), "otherwise than its plain")
    class Biased(Head):
        def applied(self): return dict(rows=self.weight, bias=self.bias+5)
    refused(net(head=Biased(4, 3)), "the head applies numbers that differ from its bias")
    model = net(Dense(4, 4))
    model.head.double()
    refused(model, "does not run on images of its own|would be rounded", calls=("proof",))


class Doubles:
    "A mixin that stands in front of a layer."
    def forward(self, x): return 2*super().forward(x)
    def plain(self, x): return 2*super().plain(x)


def hundred(self, x, gain): return gain*x


@pytest.mark.parametrize("make", [
    lambda: type("G", (Doubles, Dense), {})(4, 4), lambda: type("G", (Doubles, MinMax), {})(),
    lambda: type("G", (Dense,), dict(forward=functools.partialmethod(hundred, gain=100.), plain=functools.partialmethod(hundred, gain=100.)))(4, 4)])
def test_a_mixin_or_a_partial_method_in_front_of_a_layer_is_a_computation(make):
    with pytest.raises(InputError, match="computes anew in"): net(make())
    model = net(Dense(4, 4), MinMax())
    model.body[1].__class__ = type(make())
    with pytest.raises(InputError, match="computes anew in|has no known"): model.pair_bound()


def test_state_of_a_container_and_names_with_underscores_are_seen():
    class Row(Base):
        kind = "row"
        def __init__(self): super().__init__(); self.parts = nn.ModuleList([MinMax()])
        def forward(self, x): return self.parts[0](x)
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return 0, 0
    for change in (lambda m: setattr(m, "gain", 1.), lambda m: m.register_buffer("gain", torch.ones(1)), lambda m: m.register_parameter("gain", nn.Parameter(torch.ones(1)))):
        layer = Row()
        change(layer.parts)
        refused(net(layer), "keeps 'gain' in its container parts")
    refused(net(type("G", (Base,), dict(kind="g", __gain__=1.))()), "keeps '__gain__' without declaring it")


def test_a_compiled_call_is_not_taken_for_the_layer():
    model = net(Dense(4, 4), MinMax())
    layer = model.body[2]
    layer._compiled_call_impl = lambda x: 100*MinMax.forward(layer, x)
    refused(model, r"layer 2 \(MinMax\) is compiled by itself")
    model = net(Dense(4, 4), MinMax())
    model._compiled_call_impl = lambda x: GloroNet.forward(model, x)+torch.arange(3)
    refused(model, "otherwise than its plain", calls=("proof",))


def test_an_account_is_of_the_network_whose_constants_they_are():
    from liresnet_nb.margins import certified_radius
    from liresnet_nb.rounding import EXACT
    one, other = net(Dense(4, 4)), net(Dense(4, 4))
    with torch.no_grad(): other.body[1].weight.mul_(100)
    proved = one.pair_bound()
    with pytest.raises(InputError, match="another model"): other.rounding(other.plain(IMAGES.double()), proved)
    proved.matrix.mul_(.01)
    with pytest.raises(InputError, match="changed after they were proved"): certified_radius(one.plain(IMAGES.double()).logits, proved, EXACT)


def test_a_plain_pass_that_differs_is_seen_layer_by_layer():
    def apart(move, rounding=lambda self, shape, dtype: (0, 0)):
        return type("P", (Base,), dict(kind="p", forward=move, plain=lambda self, x: x, lipschitz_bound=lambda self, known: ONE, rounding=rounding))()
    refused(net(apart(lambda self, x: x*math.nan)), "otherwise than its plain|lies nan from its plain")
    up, down = Dense(4, 4), Dense(4, 4)
    for layer, sign in ((up, 1), (down, -1)):
        layer.weight.data, layer.bias.data = torch.eye(4), torch.full((4,), sign*2.**20)
    refused(net(up, down, apart(lambda self, x: x+30)), "from its plain")          # the room of the whole network would hide it
    refused(net(apart(lambda self, x: x+30, lambda self, shape, dtype: (1, 1) if dtype == torch.float32 else (0, 0))), "from its plain")


def test_a_head_of_torch_and_a_setting_that_fails_are_told_in_a_line():
    model = net()
    model.head = nn.Linear(4, 3)
    refused(model, "the head: its rows.. failed with AttributeError")
    class Broken(Base):
        kind, settings = "broken", ("gain",)
        gain = property(lambda self: 1/0)
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return 0, 0
    refused(net(Broken()), r"layer 1 \(Broken\): its setting 'gain' failed with ZeroDivisionError")


def test_autocast_around_a_proof_changes_nothing():
    class Product(Dense):
        def kernel(self): return self.weight @ torch.eye(4)
    model = net(Product(4, 4), MinMax())
    with torch.no_grad(): model.body[1].weight.mul_(1.001)
    usual, proved = model.fingerprint(), model.pair_bound()
    with torch.autocast("cpu", torch.bfloat16):
        assert model.fingerprint() == usual
        certify(model, IMAGES, .1, pair_bound=proved)
        assert torch.equal(model.rounding(model.plain(IMAGES.double()), proved).slack, model.rounding(model.plain(IMAGES.double()), proved).slack)


def test_the_account_is_for_the_arithmetic_of_the_run():
    model = net(Dense(4, 4))
    proved = model.pair_bound()
    for images, arithmetic in ((IMAGES, "real"), (IMAGES, "float64"), (IMAGES.double(), "float32")):
        with pytest.raises(InputError, match="name its arithmetic"): model.rounding(model.plain(images), proved, arithmetic=arithmetic)


def test_layers_that_change_the_precision_or_their_input_are_refused():
    class Casts(Base):
        kind = "casts"
        def forward(self, x): return x.float()
        def rounding(self, shape, dtype): return Fraction(1, 2**23), 0
        def lipschitz_bound(self, known): return ONE
    with pytest.raises(InputError, match=r"layer 1 \(Casts\) gives torch.float32 for torch.float64"): certify(net(Casts()), IMAGES, .1)
    class Clamps(Base):
        kind = "clamps"
        def forward(self, x): return x.mul_(.5)
        def rounding(self, shape, dtype): return 0, 0
        def lipschitz_bound(self, known): return ONE
    refused(net(Clamps()), r"layer 1 \(Clamps\) changes its input in place")
    images = IMAGES.double()
    net(Clamps()).plain(images)
    assert torch.equal(images, IMAGES.double())


def test_shared_and_absent_parts_are_part_of_the_fingerprint():
    class Two(Base):
        kind = "two"
        def __init__(self): super().__init__(); self.a, self.b = MinMax(), MinMax()
        def forward(self, x): return self.a(x) if self.b is None else self.b(self.a(x))
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return 0, 0
    layer, prints = Two(), []
    prints.append(net(layer).fingerprint()); layer.b = layer.a
    prints.append(net(layer).fingerprint()); layer.b = None
    prints.append(net(layer).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_containers_of_torch_may_hold_layers():
    class Row(Base):
        kind = "row"
        def __init__(self): super().__init__(); self.parts = nn.ModuleList([MinMax(), nn.Sequential(MinMax())])
        def forward(self, x): return self.parts[1](self.parts[0](x))
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return 0, 0
    certify(net(Row()), IMAGES, .1)
    layer = Row()
    layer.parts.append(nn.ReLU())
    refused(net(layer), r"layer 1 \(Row, parts.2 ReLU\) declares no kind")


def test_a_bound_below_the_norm_of_a_fresh_convolution_is_found():
    class Brags(Conv):
        def lipschitz_bound(self, known): return Bound(.8*known[self].value, "a slip")
    model = GloroNet([Brags((1, 6, 6), 4, 3, padding=1), Flatten()], NormalizedHead(144, 2), (1, 6, 6))
    refused(model, r"layer 0 \(Brags\): this layer stretches a pair of inputs", torch.rand(2, 1, 6, 6))


def test_a_proof_leaves_the_network_as_it_was():
    class Running(Base):
        "Subtracts a running mean, which train() moves on."
        kind = "running"
        def __init__(self): super().__init__(); self.register_buffer("mean", torch.zeros(4))
        def forward(self, x):
            if self.training: self.mean += .1*x.mean(0).to(self.mean).detach()
            return x-self.mean.to(x)
        def lipschitz_bound(self, known): return ONE
        def rounding(self, shape, dtype): return Fraction(1, 2**20), 1
    model = net(Running()).eval()
    proved = model.pair_bound()
    assert proved.mode in ("eval", "any") and not model.body[1].mean.any() and not model.training
    certify(model, IMAGES, .1, pair_bound=proved)
    model = net(Dense(4, 4), MinMax())
    model.body[1].weight.data = torch.randn(4, 4)
    nn.utils.parametrizations.spectral_norm(model.body[1], "weight", n_power_iterations=1)
    model.eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    certify(model, IMAGES, .1)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_half_precision_weights_and_numpy_numbers_are_taken():
    for dtype in (torch.float16, torch.bfloat16):
        certify(net(Dense(4, 4), MinMax()).to(dtype), IMAGES, .1)
    shape = tuple(np.array([1, 2, 2]))
    certify(GloroNet([Conv(shape, 4, np.int64(1), np.int64(1), np.int64(0)), Flatten(), Dense(np.prod((4, 2, 2)), 4)], NormalizedHead(4, 3), shape), IMAGES, .1)


def test_a_parametrised_weight_of_any_layer_is_hashed_as_applied():
    class Unit(nn.Module):
        def forward(self, v): return v/v.norm(dim=0)
    from liresnet_nb.layers import Householder
    layer = Householder(4)
    nn.utils.parametrize.register_parametrization(layer, "mirror", Unit())
    certify(net(layer), IMAGES, .1)
    plain = Householder(4)
    plain.mirror.data = layer.mirror.detach()
    assert net(layer).fingerprint() == net(plain).fingerprint()


SLIPS = dict(
    settings=lambda c: setattr(c, "settings", None), numbers=lambda c: setattr(c, "settings", (3,)),
    applied=lambda c: setattr(c, "applied", lambda self: None), listed=lambda c: setattr(c, "applied", lambda self: [torch.ones(1)]),
    output=lambda c: setattr(c, "forward", lambda self, x: (x, x)), nothing=lambda c: setattr(c, "forward", lambda self, x: None),
    scalar=lambda c: setattr(c, "forward", lambda self, x: x.sum()), crash=lambda c: setattr(c, "forward", lambda self, x: x.no_such_thing),
    low=lambda c: setattr(c, "lipschitz_low", lambda self: None), key=lambda c: setattr(c, "lipschitz_bound", lambda self, known: known["nothing"]),
    tensor=lambda c: setattr(c, "lipschitz_bound", lambda self, known: Bound(torch.ones(()), "a tensor")),
    text=lambda c: setattr(c, "lipschitz_bound", lambda self, known: Bound("1", "a text")))


@pytest.mark.parametrize("slip", SLIPS)
def test_slips_in_a_layer_of_ones_own_are_told_in_a_line(slip):
    cls = type("Slip", (Base,), dict(kind="slip", forward=lambda self, x: x, rounding=Base.rounding, lipschitz_bound=Base.lipschitz_bound))
    SLIPS[slip](cls)
    refused(net(cls()), r"layer 1 \(Slip\)")


@pytest.mark.parametrize("change", [
    lambda m: setattr(m.head, "bias", None), lambda m: setattr(type(m.head), "applied", lambda self: None),
    lambda m: setattr(type(m.head), "applied", lambda self: dict(rows=self.weight)), lambda m: setattr(type(m.head), "applied", lambda self: dict(rows=self.bias, bias=self.weight)),
    lambda m: setattr(type(m.head), "applied", lambda self: (self.weight, self.bias))])
def test_slips_in_a_head_of_ones_own_are_told_in_a_line(change):
    model = net(head=type("Own", (Head,), {})(4, 3))
    change(model)
    refused(model, "the head")


def test_a_network_without_weights_has_a_device():
    class Fixed(nn.Module):
        bias = torch.zeros(2)
        def rows(self): return torch.eye(2, 4)
    certify(net(head=Fixed()), IMAGES, .1)


def test_the_shipped_model_has_this_fingerprint_on_every_machine():
    "Hashed here and now; recorded once. A change of it is a change of the format of certificates."
    assert load_pretrained("digits").model.fingerprint() == SHIPPED
