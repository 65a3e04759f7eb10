"Runs repeat, resume, share an epoch, stop well; and every bad setting is refused before anything is written."
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, weights
from safetensors.torch import save_file

from liresnet_nb import precision, train
from liresnet_nb.core import InputError
from liresnet_nb.data import Augment, ImageSet, Task, load_task
from liresnet_nb.evaluate import evaluate
from liresnet_nb.layers import Centre, Dense, Flatten, LipschitzLayer, MinMax, NormalizedHead
from liresnet_nb.model import GloroNet, build_model
from liresnet_nb.train import Diverged, TrainConfig, epsilon_at, fit, load_run, lr_at, make_config, read_checkpoint


def test_fit_can_be_imported_as_promised():
    from liresnet_nb.train import fit as promised
    assert promised is fit


def test_schedules():
    assert [round(epsilon_at(t, 800, 1.), 12) for t in (0, 400, 800)] == [0.1, 1.5, 1.5]
    for shape, half in (("linear", .8), ("early", 1.15), ("late", .45)):
        assert [round(epsilon_at(t, 800, 1., shape=shape), 12) for t in (0, 200, 400, 800)] == [.1, half, 1.5, 1.5]
    with pytest.raises(InputError, match="did you mean 'early'"): epsilon_at(0, 10, 1., shape="earl")
    assert epsilon_at(0, 10, 2., 1.5, 1.5) == 3. and epsilon_at(0, 10, 2., .1, 1.5, ramp=0.) == 3.
    assert [lr_at(t, 100, 1., 10) for t in (0, 5, 10)] == [0, .5, 1] and math.isclose(lr_at(55, 100, 1., 10), .5) and lr_at(100, 100, 1., 10) < 1e-9


def test_the_paper_preset_is_the_papers_setting():
    c = make_config("cifar10", "paper")
    assert (c.model, c.epochs, c.batch, c.lr, c.clip, c.loss, c.epsilon_start, c.epsilon_end, c.epsilon_ramp, c.weight_decay, c.dtype) == ("L6W128", 800, 256, 1e-3, 3., "emma", .1, 1.5, .5, 0., "float32")
    i = make_config("imagenet", "paper")
    assert (i.model, i.epochs, i.batch) == ("L18W588", 400, 1024)
    full = train.check_config(c, 36/255, Augment(4, True))
    assert (full.epsilon, full.warmup, full.shift, full.flip) == (36/255, 20, 4, True)
    assert train.check_config(make_config("digits", epochs=30), .3, Augment()).warmup == 3


def test_two_runs_are_equal_bit_for_bit(tiny_run):
    again = fit("digits", **TINY)
    assert torch.equal(weights(again.model), weights(tiny_run.model)) and again.path is None
    other = fit("digits", **{**TINY, "seed": 1})
    assert not torch.equal(weights(other.model), weights(tiny_run.model))


def test_names_and_objects_are_the_same_thing(tiny_run, digits):
    model = build_model("L1W8", (1, 8, 8), 10)
    again = fit(digits, model, **{k: v for k, v in TINY.items() if k != "model"})
    assert torch.equal(weights(again.model), weights(tiny_run.model)) and again.model is model


def test_the_shipped_defaults_learn(digits):
    few = dataclasses.replace(digits, train=digits.train.subset(slice(0, 64)))
    run = fit(few, model="L1W32", epochs=120, epsilon=0.1, device="cpu", progress=False)
    assert run.history.train_acc.iloc[-1] > 0.95 and run.history.train_vra_est.iloc[-1] > 0.8


@pytest.mark.parametrize("loss", ["gloro", "trades", "emma", "emma_adaptive", "cross_entropy"])
def test_every_loss_trains(loss):
    run = fit("digits", **{**TINY, "model": "L1W16", "epochs": 8, "loss": loss, "batch": 64, "shift": 0})
    assert run.history.train_acc.iloc[-1] > 0.5 and run.history.loss.isna().sum() == 0


WORDS = ["--task", "digits", "--model", "L1W8", "--epochs", "14", "--batch", "256", "--shift", "1",
         "--track", "--save-seconds", "0", "--device", "cpu"]
THREADS = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def trained(folder, said):
    torch.set_num_threads(1)
    with open(said, "a") as f, contextlib.redirect_stdout(f), contextlib.redirect_stderr(f):
        sys.exit(train.main([*WORDS, "--out", str(folder)]))


def test_killed_at_any_moment_it_resumes_to_the_same_weights(tmp_path, monkeypatch):
    for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"): monkeypatch.setenv(k, "1")
    subprocess.run([sys.executable, "-m", "liresnet_nb.train", *WORDS, "--out", tmp_path/"whole"], check=True, capture_output=True)
    prepared = multiprocessing.get_context("forkserver")          # a process for each run, torch imported once
    prepared.set_forkserver_preload(["liresnet_nb.train"])
    kills, first = 0, None
    for k in range(12):
        p = prepared.Process(target=trained, args=(tmp_path/"part", tmp_path/"said"))
        p.start()
        started, before = time.time(), done(tmp_path/"part")
        while p.is_alive() and done(tmp_path/"part") < before+2 and time.time()-started < 1800: time.sleep(0.01)
        time.sleep(0.013*k)                                       # a different moment within the epoch each time
        if p.is_alive(): p.kill(); kills += 1
        p.join()
        if p.exitcode == 0: break
        assert p.exitcode == -signal.SIGKILL, (tmp_path/"said").read_text()
        first = first or read_checkpoint(tmp_path/"part")[1]["history"][0]
    else: pytest.fail("the run never finished")
    assert kills >= 1
    a, b = (read_checkpoint(tmp_path/n) for n in ("whole", "part"))
    assert b[1]["history"][0] == first                            # with its seconds: it went on and did not begin again
    assert a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])
    assert "track.threatening" in a[0] and len(a[0]["track.runner_up"]) == 14
    strip = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert strip(a[1]["history"]) == strip(b[1]["history"])


def done(folder):
    try: return len(read_checkpoint(folder)[1]["history"])
    except InputError: return 0


def test_a_kill_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    run = fit("digits", **TINY, out=tmp_path/"r")
    before = (tmp_path/"r"/"checkpoint.safetensors").read_bytes()

    def half(tensors, path, metadata):
        path.write_bytes(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(train, "save_file", half)
    with pytest.raises(KeyboardInterrupt): train.save_checkpoint(tmp_path/"r"/"checkpoint.safetensors", run.model, {})
    assert (tmp_path/"r"/"checkpoint.safetensors").read_bytes() == before and not list((tmp_path/"r").glob("*.tmp"))


def test_ctrl_c_returns_what_was_learned_and_the_run_goes_on_later(tmp_path, monkeypatch, tiny_run):
    steps = 0
    original = train.train_step

    def stop_later(*a, **k):
        nonlocal steps
        steps += 1
        if steps == 8: raise KeyboardInterrupt                    # in the second epoch
        return original(*a, **k)
    monkeypatch.setattr(train, "train_step", stop_later)
    run = fit("digits", **TINY, out=tmp_path/"r")
    assert run.interrupted and len(run.history) == 1 and run.model.pair_bound()
    monkeypatch.setattr(train, "train_step", original)
    assert torch.equal(weights(fit("digits", **TINY, out=tmp_path/"r").model), weights(tiny_run.model))


def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    original, steps = train.train_step, 0

    def poison(*a, **k):
        nonlocal steps
        steps += 1
        out = original(*a, **k)
        return out*float("nan") if steps == 15 else out
    monkeypatch.setattr(train, "train_step", poison)
    with pytest.raises(Diverged, match=r"epoch 3.*last good checkpoint.*epoch 2"): fit("digits", **TINY, out=tmp_path/"r")
    assert done(tmp_path/"r") == 2 and all(v.isfinite().all() for v in read_checkpoint(tmp_path/"r")[0].values())


def test_nothing_is_written_without_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit("digits", **TINY)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_another_run_or_other_things_is_refused(tmp_path, tiny_run):
    before = {p.name: p.read_bytes() for p in tiny_run.path.iterdir()}
    for change, words in [(dict(epochs=4), "epochs is 3 there and 4 here"), (dict(lr=.5), "lr is"), (dict(model="L1W16"), "L1W8"), (dict(seed=5), "seed is 0 there")]:
        with pytest.raises(InputError, match=words): fit("digits", **{**TINY, **change}, out=tiny_run.path)
    assert {p.name: p.read_bytes() for p in tiny_run.path.iterdir()} == before
    (tmp_path/"thesis.tex").write_text("chapter 1")
    with pytest.raises(InputError, match="not empty and holds no run"): fit("digits", **TINY, out=tmp_path)
    with pytest.raises(InputError, match="is a file"): fit("digits", **TINY, out=tmp_path/"thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_other_data_under_the_same_name_are_refused(tiny_run, digits):
    other = dataclasses.replace(digits, train=digits.train.subset(slice(0, 500)))
    with pytest.raises(InputError, match="other data"): fit(other, **TINY, out=tiny_run.path)


def test_checkpoints_that_cannot_be_used_say_why(tmp_path, tiny_run):
    data = (tiny_run.path/"checkpoint.safetensors").read_bytes()
    bad = tmp_path/"checkpoint.safetensors"
    for cut in (0, 5, len(data)//2, len(data)-1):
        bad.write_bytes(data[:cut])
        with pytest.raises(InputError, match="truncated or damaged"): load_run(bad)
    save_file(dict(x=torch.ones(1)), bad)
    with pytest.raises(InputError, match="not one that liresnet_nb wrote"): load_run(bad)
    tensors, meta = read_checkpoint(tiny_run.path)
    save_file(tensors, bad, dict(liresnet_nb=json.dumps({**meta, "format": 99, "version": "9.0"})))
    with pytest.raises(InputError, match="format 99 .liresnet_nb 9.0"): load_run(bad)
    save_file(tensors, bad, dict(liresnet_nb=json.dumps({**meta, "model": {**meta["model"], "width": 16}})))
    with pytest.raises(InputError, match="another architecture"): load_run(bad)
    broken = {**tensors, "model.head.bias": tensors["model.head.bias"]*math.nan}
    save_file(broken, bad, dict(liresnet_nb=json.dumps({**meta, "sha256": train._digest(broken)})))
    with pytest.raises(InputError, match="NaN or infinity in head.bias"): load_run(bad)
    with pytest.raises(InputError, match="no checkpoint at"): load_run(tmp_path/"nowhere")


def test_checkpoints_are_not_pickles(tiny_run, monkeypatch):
    import pickle
    def never(*a, **k): raise AssertionError("unpickled")
    monkeypatch.setattr(pickle, "load", never)
    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(torch, "load", never)
    assert torch.equal(weights(load_run(tiny_run.path).model), weights(tiny_run.model))


@pytest.mark.parametrize("fields, words", [
    (dict(epoch=3), "did you mean 'epochs'"), (dict(epochs=0), "epochs is 0"), (dict(epochs=2.5), "whole number"), (dict(batch=0), "batch is 0"), (dict(lr=-1.), "lr is"), (dict(lr=math.nan), "lr is"),
    (dict(epsilon=-.1), "epsilon is"), (dict(epsilon=math.nan), "epsilon is"), (dict(epsilon=0.), "epsilon is"), (dict(loss="ema"), "did you mean 'emma'"), (dict(model="ResNet50"), "wanted LxWy"),
    (dict(dtype="float16"), "unknown dtype"), (dict(device="gpu"), "unknown device"), (dict(device="cuda:9"), "not on this machine"), (dict(warmup=99.), "warmup"), (dict(shift=-1), "shift"), (dict(clip=0.), "clip"),
    (dict(held_out="train"), "held_out"), (dict(task="digit"), "did you mean 'digits'"), (dict(task="folder"), "needs data_dir"), (dict(power_steps=0), "power_steps")])
def test_bad_settings_are_refused_and_nothing_is_written(fields, words, tmp_path):
    if fields.get("device") == "cuda:9" and torch.cuda.device_count() > 9: pytest.skip("ten GPUs here")
    with pytest.raises(InputError, match=words): fit(**{**TINY, "task": "digits", **fields}, out=tmp_path/"r")
    assert not (tmp_path/"r").exists()


def test_plain_training_accepts_epsilon_zero():
    assert fit("digits", **{**TINY, "epochs": 1}, loss="cross_entropy", epsilon=0.).config.epsilon == 0


def test_a_model_that_does_not_fit_the_task_is_refused(digits):
    with pytest.raises(InputError, match="tells 4 classes apart"): fit(digits, build_model("L1W8", (1, 8, 8), 4), progress=False)
    with pytest.raises(InputError, match="takes .1, 16, 16."): fit(digits, build_model("L1W8", (1, 16, 16), 10), progress=False)


class Halve(LipschitzLayer):
    "A layer of the user's own."
    def forward(self, x): return x/2
    def lipschitz_est(self, known): return torch.tensor(0.5)
    def lipschitz_bound(self):
        from liresnet_nb.bounds import Bound
        return Bound(0.5, "it halves")


def own_model():
    torch.manual_seed(0)
    return GloroNet([Centre(), Flatten(), Dense(4, 8), Halve(), MinMax()], NormalizedHead(8, 3), (1, 2, 2))


def test_a_task_and_a_model_of_ones_own(tmp_path):
    g = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    raw = (torch.eye(4)[y]*200+30*torch.rand(300, 4, generator=g)).to(torch.uint8).reshape(300, 1, 2, 2)
    data = ImageSet(raw, y)
    task = Task("corners", data, data, ("a", "b", "c"), 0.05)
    run = fit(task, own_model(), epochs=30, batch=50, lr=1e-2, device="cpu", progress=False, out=tmp_path/"own")
    assert run.history.train_acc.iloc[-1] > 0.95 and run.config.task == "corners"
    with pytest.raises(InputError, match="model of your own"): load_run(tmp_path/"own")
    assert torch.equal(weights(load_run(tmp_path/"own", own_model()).model), weights(run.model))


def test_the_config_prints_a_command_that_means_the_same_run():
    config = make_config("digits", seed=3, epochs=7, track=True)
    words = config.command(gpus=4, out="runs/x").split()
    assert words[:5] == ["torchrun", "--standalone", "--nproc_per_node=4", "-m", "liresnet_nb.train"]
    import argparse

    from liresnet_nb.core import add_flags
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset"); parser.add_argument("--out")
    add_flags(parser, TrainConfig)
    fields = vars(parser.parse_args(words[5:]))
    assert fields.pop("out") == "runs/x" and make_config(fields.pop("task"), fields.pop("preset"), **fields) == config


def test_two_processes_give_the_run_of_one(tmp_path):
    flags = ["--task", "digits", "--model", "L1W8", "--epochs", "2", "--batch", "257", "--device", "cpu", "--preset", "paper", "--lr", "0.003"]
    run = lambda launch, out: subprocess.run([*launch, "-m", "liresnet_nb.train", *flags, "--out", out], check=True, env=THREADS, capture_output=True, text=True)
    run([sys.executable], tmp_path/"one")
    said = run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"], tmp_path/"two")
    assert said.stderr.count("emma:   0%|") == 1 and said.stdout.count("next: liresnet-certify") == 1       # one bar, one answer
    (a, ma), (b, mb) = (read_checkpoint(tmp_path/n) for n in ("one", "two"))
    for k in a: torch.testing.assert_close(a[k], b[k], rtol=2e-3, atol=2e-4)
    assert [r["train_acc"] for r in ma["history"]] == pytest.approx([r["train_acc"] for r in mb["history"]], abs=2e-3)


def test_bfloat16_trains_with_float32_constants():
    run = fit("digits", **{**TINY, "dtype": "bfloat16"})
    assert all(p.dtype == torch.float32 for p in run.model.parameters()) and run.history.loss.isna().sum() == 0


def test_bfloat16_without_the_arithmetic_is_a_warning_and_float32(monkeypatch, tiny_run):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict(avx2=True, avx512_f=True))
    with pytest.warns(UserWarning, match="no bfloat16 arithmetic .* slow: training in float32"): run = fit("digits", **{**TINY, "dtype": "bfloat16"})
    assert run.config.dtype == "float32" and torch.equal(weights(run.model), weights(tiny_run.model))


class Backwards(torch.autograd.Function):
    "Right on the way there; on the way back, one channel has the other sign."
    @staticmethod
    def forward(ctx, y): return y.clone()
    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad[:, 3] *= -1
        return grad


def misread(y): return y.flatten().roll(1).view_as(y)


def negated(y, *where):
    y = y.clone()
    y[where] *= -1
    return y


LAST = 1347 % 256
BROKEN = {     # batch at which a convolution in bfloat16 goes wrong, how, and what the warning says
    "numbers from the wrong places": (256, misread, r"forward, \[256, 8, 4, 4\]"), "one channel": (256, lambda y: negated(y, slice(None), 3), r"forward, \[256,"),
    "one image": (256, lambda y: negated(y, 17), r"forward, \[256,"), "the last batch": (LAST, misread, rf"forward, \[{LAST},"), "backward only": (256, Backwards.apply, r"backward, \[256,"),
    "not a number": (256, lambda y: y*math.nan, "not a number")}


@pytest.mark.parametrize("name", BROKEN)
def test_a_kernel_that_is_wrong_is_named_and_the_run_is_that_of_float32(monkeypatch, tiny_run, name):
    batch, wrong, words = BROKEN[name]
    right = F.conv2d

    def broken(x, *more, **how):
        y = right(x, *more, **how)
        return wrong(y) if y.dtype == torch.bfloat16 and len(x) == batch and y.shape[1] == 16 else y
    monkeypatch.setattr(train, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(F, "conv2d", broken)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run = fit("digits", **{**TINY, "dtype": "bfloat16"})
    assert len(said) == 1 and re.search(rf"this cpu computes wrongly in bfloat16 .*\d Conv, .*{words}.*training in full float32", str(said[0].message))
    if "backward" in name: assert "forward" not in str(said[0].message)
    assert run.config.dtype == "float32" and torch.equal(weights(run.model), weights(tiny_run.model))


def test_asking_leaves_no_trace_and_every_size_of_a_step_is_asked_for(monkeypatch, digits):
    seen, asked, original = set(), set(), train.train_step

    def watched(*a, **k):
        seen.add(len(a[2]))
        return original(*a, **k)
    deviations = precision.deviations

    def noted(operator, batch, *more):
        asked.add(batch)
        return deviations(operator, batch, *more)
    monkeypatch.setattr(train, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(train, "train_step", watched)
    monkeypatch.setattr(precision, "deviations", noted)
    asking = train.wrong_operators
    runs = []
    for answer in (lambda *a: asking(*a) and [], lambda *a: []):
        monkeypatch.setattr(train, "wrong_operators", answer)
        torch.manual_seed(7)
        runs.append((fit("digits", **{**TINY, "dtype": "bfloat16"}), torch.get_rng_state()))
    (a, stream), (b, other) = runs
    assert asked == seen == {256, LAST} and a.config.dtype == "bfloat16"
    assert torch.equal(weights(a.model), weights(b.model)) and torch.equal(stream, other) and not any(m._forward_hooks for m in a.model.modules())


class Restless(LipschitzLayer):
    "Draws and counts whenever it is called."
    lipschitz_est, lipschitz_bound = Halve.lipschitz_est, Halve.lipschitz_bound
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        return x*(0.5+1e-9*torch.rand(()))


def test_asking_moves_no_stream_and_no_buffer():
    model = GloroNet([Centre(), Flatten(), Dense(4, 8), Restless(), MinMax()], NormalizedHead(8, 3), (1, 2, 2))
    before, stream = weights(model).clone(), torch.get_rng_state()
    found = precision.operators(model, torch.rand(2, 1, 2, 2, generator=torch.Generator()))
    assert [op.name for op in found] == ["0 Centre", "1 Flatten", "2 Dense", "3 Restless", "4 MinMax", "head"]
    assert not precision.wrong_operators(found, (5, 2)) and set(precision.deviations(found[2], 5)) == {"forward", "backward"}
    assert torch.equal(weights(model), before) and torch.equal(torch.get_rng_state(), stream) and all(p.grad is None for p in model.parameters())


def test_one_wrong_slice_of_many_is_seen():
    right = precision.made((50, 1000, 2, 2), "right")
    for where in ((7,), (slice(None), 7)): assert 1.5 < precision.deviation(negated(right, *where), right) < 2.01
    assert precision.deviation(right*1.01, right) == pytest.approx(.01, rel=1e-3) and precision.deviation(right, right) == 0
    assert precision.deviation(right*math.nan, right) == math.inf and precision.deviation(torch.ones(3), torch.zeros(3)) > 1e9
    tiny = torch.cat([right, 1e-9*right[:1]])                      # a slice of nothing need not be right to the last digit
    assert precision.deviation(torch.cat([right, -1e-9*right[:1]]), tiny) < 1e-6


@pytest.mark.parametrize("n, batch, world", [(10, 4, 1), (8, 4, 1), (3, 4, 1), (10, 4, 3), (9, 4, 2), (1347, 673, 2)])
def test_shares_of_a_step(n, batch, world):
    data = ImageSet(torch.zeros(n, 1, 1, 1), torch.zeros(n, dtype=torch.int64), 1.)
    for rank in range(world):
        sizes = {len(y) for _, y, _ in data.epoch(batch, 0, 0, Augment(), rank, world)}-{0}
        assert train._shares(n, batch, rank, world) == sorted(sizes)


def test_images_are_asked_about_in_the_order_in_memory_that_they_will_have():
    data, config = ImageSet(torch.rand(5, 3, 8, 8), torch.zeros(5, dtype=torch.int64), 1.), TrainConfig(shift=1, flip=True)
    given, _, _ = next(data.epoch(2, 0, 0, Augment(1, True)))
    assert train._example(data, config).stride() == given.stride() and not given.is_contiguous()
    found = precision.operators(build_model("L1W8", (3, 8, 8), 10), given)
    assert found[0].layout == torch.channels_last and {op.dtype for op in found[2:]} == {torch.bfloat16}


@pytest.fixture
def tf32():
    "A CPU that may take TF32 for float32, as GPUs do; the products stay what they are."
    switch = torch.backends.mkldnn.conv
    before, switch.fp32_precision = switch.fp32_precision, "tf32"
    yield switch
    switch.fp32_precision = before


def test_float32_in_fewer_digits_is_asked_about_as_well(monkeypatch, digits, tiny_run, tf32):
    assert train.coarsest(torch.device("cpu")) == "tf32" and train.coarsest(torch.device("cpu"), "bfloat16") == "bfloat16"
    model, settings = build_model("L1W8", (1, 8, 8), 10), {k: v for k, v in TINY.items() if k != "model"}
    right, factor = F.conv2d, 1.01                     # off by one per cent, unless float32 has to be float32
    monkeypatch.setattr(F, "conv2d", lambda *a, **k: right(*a, **k)*(1. if tf32.fp32_precision == "ieee" else factor))
    monkeypatch.setattr(train, "_told_wrong", lambda wrong, *_: " and ".join(wrong))
    with pytest.warns(UserWarning, match="1 Conv, forward, .*constants, 1 at once, backward"): run = fit(digits, model, **settings, track=True)
    assert torch.equal(weights(run.model), weights(tiny_run.model)) and tf32.fp32_precision == "tf32"
    factor = 1+2**-11                                  # what TF32 may do
    with warnings.catch_warnings(record=True) as said: assert not torch.equal(weights(fit("digits", **TINY).model), weights(tiny_run.model))
    assert not said


def test_a_fused_adam_that_is_wrong_gives_way_to_the_loop(monkeypatch):
    class Broken(torch.optim.AdamW):
        "Fused, the last bias goes the wrong way."
        def step(self):
            if self.defaults["fused"]: self.param_groups[0]["params"][-1].grad *= -1
            super().step()
    with monkeypatch.context() as m:
        m.setattr(train, "wrong_adam", lambda *a, **k: ["asked"])
        with pytest.warns(UserWarning, match="asked.*: AdamW in a plain loop"): wanted = fit("digits", **TINY)
    monkeypatch.setattr(torch.optim, "AdamW", Broken)
    with pytest.warns(UserWarning, match=r"AdamW.fused=True.: off by .*: AdamW in a plain loop"): run = fit("digits", **TINY)
    assert torch.equal(weights(run.model), weights(wanted.model)) and run.config.dtype == "float32"


def test_a_run_has_its_threads_and_gives_them_back(monkeypatch):
    before, seen = torch.get_num_threads(), []
    try:
        torch.set_num_threads(3)
        def watch(run):
            seen.append(torch.get_num_threads())
            if len(seen) == 2: raise KeyboardInterrupt
            if len(seen) == 3: raise ZeroDivisionError
        run = fit("digits", **TINY, on_epoch=watch)
        assert run.interrupted and run.config.threads == 1 and torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError): fit("digits", **TINY, threads=2, on_epoch=watch)
        assert seen == [1, 1, 2] and torch.get_num_threads() == 3
    finally: torch.set_num_threads(before)


def test_a_report_is_made_with_the_threads_of_the_run(tmp_path, monkeypatch):
    from liresnet_nb import report
    before = torch.get_num_threads()
    fit("digits", **{**TINY, "epochs": 1}, threads=before+1, out=tmp_path/"r")
    assert report.main([str(tmp_path/"r"), "--device", "cpu"]) == 0 and torch.get_num_threads() == before
    page = (tmp_path/"r"/"report.html").read_text()
    assert f"threads = {before+1}" in page and f", {before+1} thread(s)" in page


SMALL = {k: v for k, v in TINY.items() if k != "progress"}


def test_a_trial_chooses_the_threads_that_are_fastest_and_moves_nothing(monkeypatch, tmp_path):
    before, took, tried = torch.get_num_threads(), {6: 4., 3: 1., 1: 2.}, []

    def clock(call):
        call()
        tried.append(torch.get_num_threads())
        return took[tried[-1]]
    config = TrainConfig(**SMALL)
    try:
        torch.set_num_threads(6)
        with monkeypatch.context() as m:
            m.setattr(train, "_seconds", clock)
            torch.manual_seed(7)
            run, stream = fit(config=config, progress=False, out=tmp_path/"r"), torch.get_rng_state()
            assert run.config.threads == 3 and list(dict.fromkeys(tried)) == [6, 3, 1] and torch.get_num_threads() == 6
        torch.manual_seed(7)
        again = fit(config=config, progress=False, threads=3)
        assert torch.equal(weights(again.model), weights(run.model)) and torch.equal(torch.get_rng_state(), stream)
        monkeypatch.setattr(train, "fastest_threads", lambda *a: pytest.fail("the folder has a number"))
        assert fit(config=config, progress=False, out=tmp_path/"r").config.threads == 3
        with pytest.raises(InputError, match="threads is 3 there and 2 here"): fit(config=config, progress=False, threads=2, out=tmp_path/"r")
        (tmp_path/"r"/"config.json").unlink()
        assert fit(config=config, progress=False, out=tmp_path/"r").config.threads == 3
    finally: torch.set_num_threads(before)


def test_a_run_from_before_there_were_threads_goes_on_with_any_number(tmp_path):
    first = fit("digits", **TINY, out=tmp_path/"r")
    text = json.loads((tmp_path/"r"/"config.json").read_text())
    assert text.pop("threads") == 1 and text.pop("drawing") is None
    (tmp_path/"r"/"config.json").write_text(json.dumps(text))
    (tmp_path/"r"/"checkpoint.safetensors").unlink()
    again = fit("digits", **TINY, threads=2, out=tmp_path/"r")
    assert again.config.threads == 2 and len(again.history) == len(first.history)


def test_a_run_keeps_the_drawing_of_its_images(tmp_path, monkeypatch):
    config, drawn = make_config("glyphs", model="L1W8", epsilon=.5), SimpleNamespace(drawing=2)
    assert train._drawn(config, drawn).drawing == 2 and train._drawn(config, SimpleNamespace(drawing=None)).drawing is None
    with pytest.raises(InputError, match="drawing is 1, the images of this task are 2"): train._drawn(dataclasses.replace(config, drawing=1), drawn)
    given = []
    monkeypatch.setattr(train, "load_task", lambda *a, **k: given.append(k))
    for drawing in (None, 2): train.task_of(dataclasses.replace(config, drawing=drawing))
    assert given == [{}, dict(drawing=2)]
    old = dataclasses.asdict(config)
    for k in ("drawing", "threads"): del old[k]
    model = build_model("L1W8", (1, 16, 16), 10)
    train.save_checkpoint(tmp_path/"checkpoint.safetensors", model, dict(config=old, history=[], classes=["a"]*10, fingerprint="then"))
    assert load_run(tmp_path).config.drawing == 1 and torch.equal(weights(load_run(tmp_path).model), weights(model))
    with pytest.raises(InputError, match=r"different run .drawing is 1 there and 2 here.: choose"): train.open_run(tmp_path, train._drawn(config, drawn), "now")
    assert train.open_run(tmp_path, dataclasses.replace(config, drawing=1), "then")[1]["history"] == []


@pytest.mark.parametrize("room, words", [(100, "not enough memory for batch 256 .*: batch 64 fits"), (0, "not even one image fits")])
def test_out_of_memory_says_which_batch_fits(monkeypatch, tmp_path, capsys, room, words):
    original = train.train_step

    def scarce(model, optimizer, images, *more):
        if len(images) > room: raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(model, optimizer, images, *more)
    monkeypatch.setattr(train, "train_step", scarce)
    assert train.main(["--task", "digits", "--model", "L1W8", "--epochs", "1", "--batch", "256", "--device", "cpu", "--out", str(tmp_path/"r")]) == 2
    err = capsys.readouterr().err.splitlines()
    assert re.search(words, err[-1]) and err[-1].startswith("liresnet-train: ") and not any("Traceback" in line for line in err)


def test_a_streamed_run_stops_at_a_corrupt_file_and_goes_on_without_it(tmp_path, capsys):
    from liresnet_nb.data import write_imagenet
    write_imagenet(tmp_path/"d", 2, 6, 1, 40)
    flags = ["--task", "imagenet", "--data-dir", str(tmp_path/"d"), "--size", "32", "--model", "L1W8", "--dense", "16", "--batch", "5", "--track",
             "--epochs", "2", "--device", "cpu", "--save-seconds", "0", "--out", str(tmp_path/"r")]
    bad = tmp_path/"d"/"train"/"n00000001"/"train_0002.JPEG"
    bad.write_bytes(b"x"*9)
    assert train.main([*flags, "--workers", "0"]) == 2
    assert re.search(r"cannot read image .*train_0002.JPEG.*skip_corrupt.*no checkpoint was written", capsys.readouterr().err.splitlines()[-1])
    with pytest.warns(UserWarning, match="left out, number 1"): assert train.main([*flags, "--workers", "1", "--skip-corrupt"]) == 0
    tensors, meta = read_checkpoint(tmp_path/"r")
    assert len(meta["history"]) == 2 and ((tensors["track.runner_up"] == -1).sum(0) == torch.tensor([0]*8+[2]+[0]*3)).all()


def test_the_command_line(tmp_path, capsys):
    assert train.main(["--task", "digits", "--model", "L1W8", "--epochs", "1", "--epsilon", "36/255", "--device", "cpu", "--out", str(tmp_path/"r")]) == 0
    assert "next: liresnet-certify" in capsys.readouterr().out and load_run(tmp_path/"r").config.epsilon == 36/255
    assert train.main(["--task", "digts", "--out", str(tmp_path/"s")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "did you mean 'digits'" in err and not (tmp_path/"s").exists()
    for bad, words in [(["--epsilon", "abc"], "cannot read 'abc'|--epsilon"), (["--epoch", "3"], "--epoch"), (["--epochs", "many"], "--epochs")]:
        assert train.main(bad) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and re.search(words, err)
    with pytest.raises(SystemExit): train.main(["--help"])
    text = capsys.readouterr().out
    assert all("--"+f.name.replace("_", "-") in text for f in dataclasses.fields(TrainConfig)) and "l2 radius" in text




def test_a_task_keeps_its_identity_in_the_config(tmp_path):
    from liresnet_nb.evaluate import evaluate
    run = fit(load_task("glyphs", n_classes=3), model="L1W8", epochs=1, device="cpu", progress=False, out=tmp_path/"r")
    assert run.config.n_classes == 3 and len(evaluate(load_run(tmp_path/"r"), progress=False).table) == 75 and "--n-classes 3" in run.config.command()
    assert fit(load_task("digits", held_out="valid"), **TINY).config.held_out == "valid"


def test_a_run_goes_on_and_is_judged_when_its_data_have_moved(tmp_path):
    from liresnet_nb import certificate, report
    from test_data import make_folder
    make_folder(tmp_path/"here", n=6, size=16)
    settings = dict(model="L1W8", epochs=2, batch=9, device="cpu", progress=False, shift=0, flip=False)
    run = fit("folder", data_dir=tmp_path/"here", **settings, out=tmp_path/"r")
    (tmp_path/"here").rename(tmp_path/"there")
    again = fit("folder", data_dir=str(tmp_path/"there"), **settings, out=tmp_path/"r")
    assert torch.equal(weights(again.model), weights(run.model))
    assert certificate.main([str(tmp_path/"r"), "--device", "cpu"]) == 2
    for command in (certificate, report): assert command.main([str(tmp_path/"r"), "--data-dir", str(tmp_path/"there"), "--device", "cpu"]) == 0


def test_two_runs_that_start_at_once_cannot_share_a_folder(tmp_path):
    a, b = (train.check_config(make_config("digits", seed=s), .3, Augment()) for s in (0, 1))
    train._claim(tmp_path/"r", a, "")
    train._claim(tmp_path/"r", a, "")                                # the same run: fine
    (tmp_path/"r"/"config.json").rename(tmp_path/"first.json")
    claims = iter([False, True])                                     # not there yet when looked for, there when claimed
    original = pathlib.Path.exists

    def late(self, *a, **k):
        if self.name == "config.json" and next(claims, True) is False:
            (tmp_path/"first.json").rename(tmp_path/"r"/"config.json")
            return False
        return original(self, *a, **k)
    pathlib.Path.exists = late
    try:
        with pytest.raises(InputError, match="seed is 0 there and 1 here"): train._claim(tmp_path/"r", b, "")
    finally: pathlib.Path.exists = original
    assert json.loads((tmp_path/"r"/"config.json").read_text())["seed"] == 0


def test_what_a_killed_process_left_half_written_is_swept_away(tmp_path):
    run = fit("digits", **TINY, out=tmp_path/"r")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path/"r"/f".checkpoint.safetensors.{dead.pid}.tmp").write_text("half")
    (tmp_path/"r"/f".checkpoint.safetensors.{os.getpid()}.tmp").write_text("being written")
    assert torch.equal(weights(fit("digits", **TINY, out=tmp_path/"r").model), weights(run.model))
    assert [p.name for p in (tmp_path/"r").glob(".*.tmp")] == [f".checkpoint.safetensors.{os.getpid()}.tmp"]


def test_a_full_disk_does_not_lose_the_model(tmp_path, monkeypatch, capsys):
    def full(*a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(train, "save_file", full)
    with pytest.warns(UserWarning, match="No space left"): run = fit("digits", **TINY, out=tmp_path/"r")
    assert run.path is None and len(run.history) == 3 and run.model.pair_bound()
    with pytest.warns(UserWarning): assert train.main(["--task", "digits", "--model", "L1W8", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path/"s")]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_ctrl_c_while_tracking_keeps_history_and_tracks_alike(monkeypatch):
    original, calls = train.threats, 0

    def stop(*a):
        nonlocal calls
        calls += 1
        if calls == 2: raise KeyboardInterrupt
        return original(*a)
    monkeypatch.setattr(train, "threats", stop)
    run = fit("digits", **TINY, track=True)
    assert run.interrupted and len(run.history) == len(run.threatening) == len(run.runner_up) == 1


def test_a_flipped_bit_and_a_broken_text_are_noticed(tmp_path, tiny_run):
    tensors, meta = read_checkpoint(tiny_run.path)
    bad = tmp_path/"checkpoint.safetensors"
    save_file({**tensors, "model.head.bias": tensors["model.head.bias"]+1e-6}, bad, dict(liresnet_nb=json.dumps(meta)))
    with pytest.raises(InputError, match="numbers are not those"): load_run(bad)
    for text in ("not json", "[1]", "{}"):
        save_file(tensors, bad, dict(liresnet_nb=text))
        with pytest.raises(InputError, match="is damaged"): load_run(bad)
    save_file(tensors, bad, dict(liresnet_nb=json.dumps({**meta, "config": {**meta["config"], "telepathy": 1}})))
    with pytest.raises(InputError, match="was written by liresnet_nb .*telepathy"): load_run(bad)
    (tmp_path/"r").mkdir()
    (tmp_path/"r"/"config.json").write_text("[1]")
    with pytest.raises(InputError, match="damaged"): fit("digits", **TINY, out=tmp_path/"r")


@pytest.mark.parametrize("fields, words", [
    (dict(lr="0.1"), "lr is '0.1': wanted a number"), (dict(seed=1.5), "seed is 1.5"), (dict(seed=None), "seed is None"), (dict(track="yes"), "wanted True or False"), (dict(flip="no"), "flip is 'no'"),
    (dict(epochs=True), "epochs is True"), (dict(dense=-2), "dense is -2"), (dict(dense=7), "dense is 7"), (dict(size=0), "size is 0"), (dict(clip=None), "clip is None"), (dict(model=3), "wanted LxWy or a GloroNet"),
    (dict(model=torch.nn.Linear(2, 2)), "wanted LxWy or a GloroNet"), (dict(task=7), "wanted a name or a Task"), (dict(task=("a", "b")), "wanted a name or a Task")])
def test_settings_of_the_wrong_type_are_refused_in_one_line(fields, words):
    with pytest.raises(InputError, match=words) as e: fit(**{**TINY, "task": "digits", **fields})
    assert "\n" not in str(e.value)


def test_help_is_readable_also_as_a_module():
    done = subprocess.run([sys.executable, "-m", "liresnet_nb.train", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "passes over the training images" in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path/"file").write_text("")
    assert train.main(["--task", "digits", "--model", "L1W8", "--device", "cpu", "--out", str(tmp_path/"file"/"r")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_on_epoch_sees_the_run_grow_and_may_stop_it():
    seen = []

    def watch(run):
        seen.append((len(run.history), tuple(run.threatening.shape)))
        if len(seen) == 2: raise KeyboardInterrupt
    run = fit("digits", model="L1W4", epochs=4, batch=512, track=True, progress=False, on_epoch=watch)
    assert seen == [(1, (1, 1347)), (2, (2, 1347))] and run.interrupted and len(run.history) == 2


@pytest.mark.parametrize("kind", [dict(backbone="convnet"), dict(backbone="resnet", activation="householder"), dict(head="plain"), dict(model="6C2F", dense=16)], ids=["convnet", "resnet", "plain head", "6C2F"])
def test_every_architecture_trains_saves_loads_and_certifies(digits, tmp_path, kind):
    settings = {**TINY, "lr": 0.006, "epsilon": 0.1, **kind}
    run = fit("digits", **settings, out=tmp_path/"r")
    again = load_run(tmp_path/"r")
    assert torch.equal(weights(run.model), weights(again.model)) and type(again.model) is type(run.model)
    assert {k: getattr(again.config, k) for k in kind} == kind
    certified = evaluate(again, digits, progress=False)
    assert run.history.train_acc.iloc[-1] > 0.25 and 0 < certified.vra(0.02) <= certified.clean_acc
    with pytest.raises(InputError, match="holds a different run"): fit("digits", **{**settings, "head": "plain" if run.config.head == "normalized" else "normalized"}, out=tmp_path/"r")


def test_a_run_from_before_there_were_kinds_goes_on(tmp_path):
    first = fit("digits", **TINY, out=tmp_path/"r")
    text = json.loads((tmp_path/"r"/"config.json").read_text())
    for k in ("backbone", "activation", "head"): del text[k]
    (tmp_path/"r"/"config.json").write_text(json.dumps(text))
    (tmp_path/"r"/"checkpoint.safetensors").unlink()
    assert torch.equal(weights(fit("digits", **TINY, out=tmp_path/"r").model), weights(first.model))


def test_a_model_tells_the_config_what_it_is(digits):
    model = build_model("L1W8", (1, 8, 8), 10, backbone="resnet", activation="householder", head="plain")
    config = fit(digits, model, **{k: v for k, v in TINY.items() if k not in ("model", "epochs")}, epochs=1).config
    assert (config.model, config.backbone, config.activation, config.head) == ("L1W8", "resnet", "householder", "plain")
    own = GloroNet([Flatten()], NormalizedHead(64, 10), (1, 8, 8))
    assert fit(digits, own, epochs=1, backbone="resnet", head="plain", device="cpu", progress=False).config.network == "GloroNet"
    assert config.network == "L1W8-resnet-householder-plain" and TrainConfig(model="6C2F").network == "6C2F"
