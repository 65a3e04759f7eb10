"The benchmark: what is compared computes the same, what is counted adds up, what cannot be measured says why."
import copy
import json
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import liresnet_nb.bench as bench
from liresnet_nb.core import InputError
from liresnet_nb.losses import LOSSES, get_loss
from liresnet_nb.train import train_step

FEW = dict(size=16, batch=bench.MORE, device="cpu")
ROUNDED = 3e-7       # the product of the constants is a float32, whatever the weights are; all else is float64 below


@pytest.fixture(scope="module")
def setup():
    return bench.make_setup("L2W8", **FEW)


@pytest.fixture(scope="module")
def exact(setup):
    "The same in float64."
    double = replace(setup.copy(), images=setup.images.double())
    double.model.double()
    return double


@pytest.mark.parametrize("net", [dict(model="L2W8", size=16), dict(model="L1W4", size=32, classes=3), dict(model="L3W6", size=8)], ids=str)
def test_the_same_algorithm_is_the_textbooks_from_any_vector(net):
    setup = bench.make_setup(**net, batch=5, device="cpu")
    assert bench.oracle(setup)["same algorithm"].max() < 1e-4


def test_the_recipe_is_the_textbooks_from_converged_vectors(setup, exact):
    assert bench.oracle(exact)["same algorithm"].max() < ROUNDED
    there = bench.oracle(exact, converge=3000)
    assert list(there.index) == ["logits", "constants", "loss", "gradients"]
    assert there["same algorithm"].max() < ROUNDED and there["full recipe"][:-1].max() < ROUNDED and there["full recipe"]["gradients"] < 1e-5
    assert bench.oracle(setup, converge=3000).max(axis=None) < 1e-3
    assert bench.oracle(exact)["full recipe"]["gradients"] > 1e-4, "nothing to see: the vectors have converged already"


MUTATIONS = dict(
    logits=(bench._PlainBlock, "forward", lambda self, x: x+torch.conv2d(x, 1.01*self.branch(), self.bias, padding=1)),
    constants=(bench._PlainConv, "product", lambda self, v: 1.01*torch.conv2d(v, self.weight, None, self.stride, self.padding)),
    gradients=(bench._Plain, "constant", lambda self, steps: self.product(self.power_vector[None]).norm().detach()))


@pytest.mark.parametrize("quantity", MUTATIONS)
def test_the_oracle_sees_a_change_on_one_side(monkeypatch, exact, quantity):
    owner, name, change = MUTATIONS[quantity]
    assert bench.oracle(exact)["same algorithm"][quantity] < ROUNDED
    monkeypatch.setattr(owner, name, change)
    assert bench.oracle(exact)["same algorithm"][quantity] > 1e-4


def test_a_step_changes_its_own_weights_only(setup):
    before = {k: v.clone() for k, v in setup.model.state_dict().items()}
    for recipe in bench.RECIPES.values():
        step = recipe(setup)
        mine = step.model.head.weight.clone()
        step()
        assert not torch.equal(step.model.head.weight, mine)
    assert all(torch.equal(v, before[k]) for k, v in setup.model.state_dict().items())


def test_phases_do_what_train_step_does(setup, exact):
    phased, whole = exact.step(), exact.step()
    seen = []
    for _ in range(3):
        bench.phased_step(phased, exact, iter([(exact.images, exact.labels, None)]), lambda name: seen.append(name) or nullcontext())
        train_step(whole.model, whole.optimizer, exact.images, exact.labels, bench.emma, exact.config.epsilon, exact.config)
    a, b = (torch.cat([v.flatten() for v in step.model.state_dict().values()]) for step in (phased, whole))
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert set(seen) == set(bench.PHASES)
    parts = bench.breakdown(setup, rounds=1)
    assert list(parts.index) == list(bench.PHASES) and math.isclose(parts.share.sum(), 1)


@pytest.mark.parametrize("name", [n for n in bench.LEVERS if not any(w in n for w in ("compile", "CUDA", "bf16"))])
def test_a_lever_computes_the_same(exact, name):
    start = exact.copy()
    if followed := "ten" in name or "product" in name:
        for _ in range(300): start.model.pair_est(10)                     # until the vectors stand still
    other = bench.LEVERS[name].change(start.copy())
    a, b = start.step(), other.step()
    for _ in range(1 if followed else 3): torch.testing.assert_close(a()[0], b()[0], rtol=1e-6, atol=0)
    room = 1e-4 if followed else 1e-5                    # fresh layers are orthogonal: no vector is the top one, in any number of products
    for p, q in zip(a.model.parameters(), b.model.parameters()): torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=room*p.grad.abs().max().item())
    kinds = {type(m) for m in b.model.modules()} - {type(m) for m in a.model.modules()}
    different = kinds or other.config != start.config or other.adam != start.adam or other.images.stride() != start.images.stride()
    assert different or any(p.stride() != q.stride() for p, q in zip(a.model.parameters(), b.model.parameters())), "nothing was changed"


def test_levers_that_cannot_be_pulled_say_why(setup, monkeypatch):
    monkeypatch.setattr(bench, "has_bfloat16", lambda device: False)
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    table = bench.levers(setup, ["bf16", "torch.compile", "torch.compile, CUDA graphs", "the whole step one CUDA graph", "fused Adam, not a loop"], rounds=1)
    assert table.gain.isna().tolist() == [True, True, True, True, False]
    graphs = "CUDA graphs need CUDA"
    assert table.note.tolist() == ["this cpu does not multiply bfloat16 itself", "no C++ compiler", graphs, graphs, ""]
    with pytest.raises(InputError, match="unknown lever"): bench.levers(setup, ["warp drive"])
    assert len(bench.plot_levers(table).data) == 2


class OnOneDevice(TorchDispatchMode):
    "Fails where a number leaves its device, or comes from another one."
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        where = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        copied = name in ("_to_copy", "copy_", "_copy_from", "index", "index_put_")
        assert not (copied and len(where) > 1) and name not in ("_local_scalar_dense", "lift_fresh"), f"{name} {where}"
        return out


@pytest.mark.parametrize("loss", LOSSES)
def test_a_step_never_waits_for_the_device(setup, loss, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())    # it does not know this device
    x, y = setup.images.to("meta"), setup.labels.to("meta")          # without numbers: whoever asks for one fails
    model = copy.deepcopy(setup.model).to("meta")
    optimizer = SimpleNamespace(zero_grad=model.zero_grad, step=lambda: None)        # torch's own counts on the CPU
    def made(*a, **k): raise AssertionError("torch.tensor copies from the CPU")       # which the mode below is not told
    with monkeypatch.context() as m, OnOneDevice():
        m.setattr(torch, "tensor", made)
        train_step(model, optimizer, x, y, get_loss(loss), 0.1, setup.config)
    at = torch.tensor([0])
    for wrong in (lambda: x.sum().item(), lambda: torch.ones(()).to(x), lambda: x[at]):
        with pytest.raises((RuntimeError, AssertionError)), OnOneDevice(): wrong()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need CUDA")
def test_a_recorded_step_is_the_step():
    start = bench.make_setup("L2W8", size=16, batch=bench.MORE, device="cuda")
    plain, graphed = start.step(), bench.LEVERS["the whole step one CUDA graph"].change(start).step()
    for _ in range(3+5): plain()
    for _ in range(5): graphed()
    for p, q in zip(plain.model.parameters(), graphed.model.parameters()): torch.testing.assert_close(p, q)


def test_the_work_of_a_step_is_counted_by_hand(setup):
    stem, blocks, neck, dense, head = 8*8*8*3*5*5, 2*8*8*8*8*3*3, 16*2*2*8*4*4, 64*256, 10*256
    assert bench.work(setup) == 6*len(setup.labels)*(stem+blocks+neck+dense+head)


def test_the_ceiling_is_the_work_of_a_product_over_its_time(monkeypatch):
    ticks = iter([0., 10., 12., 20., 21., 30., 34.])         # the first is thrown away; then 2, 1 and 4 seconds
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert bench.ceiling(torch.device("cpu"), n=8, rounds=3) == 2*8**3/2


def test_a_point_that_does_not_fit_is_left_out_of_the_growth(monkeypatch):
    def refuse(few, batch):
        if batch == 4: raise InputError("a batch of 4 does not fit")
    monkeypatch.setattr(bench, "check_memory", refuse)
    with pytest.warns(UserWarning, match="batch 4: .*does not fit"):
        table = bench.scaling("L1W4", size=8, batch=2, axes=("batch",), rounds=1, device="cpu")
    assert table.library.isna().tolist() == [False, False, True]
    monkeypatch.setattr(bench, "check_memory", lambda few, batch: None)
    def runs_out(setup, rounds):
        with bench._memory_told(4):
            if len(setup.labels) == 4: raise MemoryError
            return measured(setup, rounds)
    measured = bench.breakdown
    monkeypatch.setattr(bench, "breakdown", runs_out)            # foretold wrongly
    with pytest.warns(UserWarning, match="batch 4: .*try --batch 2"):
        table = bench.scaling("L1W4", size=8, batch=2, axes=("batch",), rounds=1, device="cpu")
    assert table.library.isna().tolist() == [False, False, True]
    with pytest.raises(InputError, match="size"): bench.scaling("L1W4", size=0, batch=2, device="cpu")


def test_the_network_has_no_graph_breaks(setup):
    assert torch._dynamo.explain(setup.model.forward)(setup.images).graph_break_count == 0
    torch._dynamo.reset()


@pytest.fixture
def garbage(monkeypatch):
    "A processor that multiplies in bfloat16, and convolves wrongly in it."
    right = F.conv2d

    def conv2d(*a, **k):
        y = right(*a, **k)
        return y.flatten().roll(1).view_as(y) if y.dtype == torch.bfloat16 else y
    monkeypatch.setattr(bench, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(F, "conv2d", conv2d)


def pulled(setup, lever, monkeypatch):
    monkeypatch.setitem(bench.LEVERS, "made up", lever)
    return bench.levers(setup, ["made up"], rounds=1).iloc[0]


def test_a_lever_whose_kernels_are_wrong_has_no_gain(setup, garbage, monkeypatch):
    assert not bench.wrong_kernels(setup) and any("Conv, forward" in line for line in bench.wrong_kernels(setup.typed("bfloat16")))
    row = bench.levers(setup, ["bf16"], rounds=1).iloc[0]
    assert math.isnan(row.gain) and row.note.startswith("computed wrongly here: 1 Conv, forward, [16, 3, 16, 16] to [16, 8, 8, 8]")
    with pytest.raises(InputError, match="computed wrongly here"): bench.levers(setup.typed("bfloat16"), ["one product, not four"])


def test_a_compiled_network_is_compiled_and_compared_with_itself(setup, monkeypatch):
    made = []

    def backend(factor):
        def build(graph, inputs):
            made.append(factor)
            return lambda *given: [factor*out for out in graph(*given)]
        return build
    for factor, words in ((1., "") , (1.001, "computed wrongly here: compiled network, forward: off by 0.001")):
        torch._dynamo.reset()
        row = pulled(setup, bench.Lever(False, lambda s, f=factor: replace(s, compiled=dict(backend=backend(f)))), monkeypatch)
        assert math.isnan(row.gain) == bool(words) and row.note.startswith(words) and factor in made
    torch._dynamo.reset()


def test_steps_that_are_played_back_are_compared_with_steps(setup, monkeypatch):
    class Skips(bench.Step):
        "Takes a step when it is made, and then every other one only."
        taken = 1
        def __post_init__(self):
            super().__post_init__()
            self.calls = 0
            super().__call__()
        def __call__(self):
            self.calls += 1
            return super().__call__() if self.calls%2 else None

    class Takes(Skips):
        "All of them."
        def __call__(self): return bench.Step.__call__(self)
    for kind, words in ((Takes, ""), (Skips, "computed wrongly here: steps played back: off by")):
        row = pulled(setup, bench.Lever(False, lambda s, kind=kind: replace(s, kind=kind)), monkeypatch)
        assert row.note.startswith(words) and math.isnan(row.gain) == bool(words)


def test_a_wrong_adam_and_a_wrong_product_are_named(setup, monkeypatch):
    class Broken(torch.optim.AdamW):
        "In groups, the weight decays at twice its rate."
        def step(self):
            if self.defaults["foreach"]: self.param_groups[0]["weight_decay"] *= 2
            super().step()
    with monkeypatch.context() as m:
        m.setattr(torch.optim, "AdamW", Broken)
        row = bench.levers(setup, ["fused Adam, not foreach"], rounds=1).iloc[0]
    assert row.note.startswith("computed wrongly here: AdamW(foreach=True): off by") and math.isnan(row.gain)
    monkeypatch.setattr(bench, "_exactly", lambda a: 1.1*(a.float() @ a.float()))
    with pytest.raises(InputError, match="a matrix product in bfloat16 is computed wrongly here: off by 0.09"): bench.ceiling(torch.device("cpu"), "bfloat16", n=64, rounds=1)


def test_the_command_measures_float32_where_bfloat16_is_wrong(garbage, capsys, monkeypatch):
    before = torch.get_num_threads()
    assert bench.main(["--model", "L1W4", "--size", "8", "--batch", "3", "--rounds", "1", "--device", "cpu", "--threads", str(before+1)]) == 0
    said = capsys.readouterr().out
    assert "computed wrongly here, so float32 instead of bfloat16: 1 Conv, forward" in said and "recipe, bf16" not in said and torch.get_num_threads() == before
    assert f"{before+1} thread(s)" in said


def test_a_training_that_fell_back_to_float32_is_no_row_of_bfloat16(garbage, monkeypatch):
    from liresnet_nb import train
    monkeypatch.setattr(train, "has_bfloat16", lambda device: True)
    with pytest.warns(UserWarning, match="computes wrongly in bfloat16"): table = bench.accuracy("digits", seeds=(0,), device="cpu", progress=False, model="L1W4", epochs=1)
    assert table.training.tolist() == ["textbook", "full recipe"]


def test_ratios_are_of_medians_and_their_range_of_rounds():
    times = pd.DataFrame([dict(round=k, name=n, seconds=s) for k, row in enumerate([(4, 2), (9, 2), (6, 3)]) for n, s in zip("ab", row)])
    table = bench.ratios(times, "a")
    assert table.loc["b"].tolist() == [2, 3, 2, 4.5] and table.loc["a"].tolist() == [6, 1, 1, 1]


def test_steps_take_turns(setup):
    order = []
    class Told(bench.Step):
        def __call__(self): order.append(self.adam["lr"])
    steps = {k: Told(torch.nn.Linear(1, 1), setup.images, None, dict(lr=k)) for k in (1., 2.)}
    times = bench.interleaved(steps, rounds=3, shortest=0)
    assert order[-6:] == [1., 2.]*3 and times.name.tolist() == [1., 2.]*3 and times["round"].tolist() == [0, 0, 1, 1, 2, 2]


def test_memory_is_that_of_the_tensors():
    x = torch.zeros(1000)
    def take(model, optimizer):
        with torch.no_grad(): return (x+1).sum()+(x+2).sum()        # 4 kB at a time, twice
    step = bench.Step(torch.nn.Linear(1, 1), x, take, {})
    assert 8000 <= bench.peak_memory(step) <= 8000+200


def test_a_batch_that_does_not_fit_is_told_the_one_that_does(setup, monkeypatch):
    few = bench.make_setup("L2W8", **FEW)
    with pytest.raises(InputError, match=r"batch of 100000 does not fit .* try --batch (\d+)") as e: bench.check_memory(few, 100_000, free=1e8)
    fits = int(str(e.value).split()[-1])
    needs = bench.peak_memory(bench.textbook(bench.make_setup("L2W8", size=16, batch=fits, device="cpu")))
    assert 0.6e8 < needs < 1e8
    bench.check_memory(few, fits, free=1e8)
    monkeypatch.setattr(bench, "textbook_step", lambda *_: torch.empty(2**60))
    with pytest.raises(InputError, match="try --batch 8"): bench.interleaved(dict(textbook=bench.textbook(few)))


def test_scaling_has_a_row_a_point(setup):
    table = bench.scaling("L1W4", size=8, batch=2, axes=("depth", "batch"), rounds=1, device="cpu")
    assert table[["axis", "value"]].values.tolist() == [["depth", 1], ["depth", 2], ["batch", 1], ["batch", 2], ["batch", 4]]
    assert len(bench.plot_scaling(table).data) == 8
    with pytest.raises(InputError, match="unknown axis"): bench.scaling("L1W4", axes=("weather",))


def test_the_command(tmp_path, capsys, monkeypatch):
    words = ["--model", "L1W4", "--size", "8", "--batch", "3", "--rounds", "1", "--device", "cpu", "--threads", str(torch.get_num_threads())]
    assert bench.main([*words, "--out", str(tmp_path/"x.json")]) == 0
    said, told = capsys.readouterr().out, json.loads((tmp_path/"x.json").read_text())
    assert "full recipe" in said and "optimiser" in said and "relative: logits" in said
    assert told["model"] == "L1W4" and told["batch"] == 3 and len(told["phases"]) == len(bench.PHASES) and max(told["oracle"].values()) < 1e-4
    monkeypatch.setattr(bench, "has_bfloat16", lambda device: False)
    assert bench.main([*words, "--dtype", "bfloat16"]) == 0
    assert "so it would be slow: float32 instead" in capsys.readouterr().out


@pytest.mark.parametrize("words, message", [
    (["--model", "6C2F"], "wanted LxWy"), (["--model", "L1W3"], "even number"), (["--rounds", "0"], "whole number"), (["--batch", "-1"], "whole number"),
    (["--threads", "0"], "whole number"), (["--device", "tpu"], "unknown device"), (["--dtype", "half"], "unknown dtype"), (["--out", "/nowhere/x"], "no folder"),
    (["--size", "4"], "at least 8"), (["--classes", "1"], "at least two"), (["--batch", "10000000000"], "try --batch")])
def test_bad_input_is_one_line(words, message, capsys):
    assert bench.main(["--quick", "--device", "cpu", *words]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
