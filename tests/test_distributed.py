"Two processes give the run of one, whoever they are, whenever they stop; and what is wrong is said once."
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import TINY
from test_train import THREADS, done

from liresnet_nb import certificate
from liresnet_nb.core import InputError
from liresnet_nb.data import load_task, write_imagenet, write_shards
from liresnet_nb.evaluate import evaluate
from liresnet_nb.train import fit, load_run, main, read_checkpoint

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]


def torchrun(*words, ok=True, **env):
    p = subprocess.run([*TORCHRUN, *map(str, words)], env={**THREADS, **env}, capture_output=True, text=True, timeout=1800)
    assert (p.returncode == 0) == ok, p.stderr
    return p


def close(a, b):
    assert a.keys() == b.keys()
    for k in a:
        if a[k].is_floating_point(): torch.testing.assert_close(a[k], b[k], rtol=2e-3, atol=2e-4)


SHARED = """
import dataclasses, json, pathlib, sys, torch, warnings
import torch.nn.functional as F
from liresnet_nb import certificate, train
from liresnet_nb.core import pick_device, processes
from liresnet_nb.data import load_task
from liresnet_nb.evaluate import evaluate
from liresnet_nb.train import fit
home, DIGITS, STREAM = pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
made = load_task("imagenet", data_dir=str(home/"shards"), size=32)

def judged(n):
    task = load_task("digits")
    return dataclasses.replace(task, test=task.test.subset(slice(0, n)))

def stop(run):
    if len(run.history) == 2: raise KeyboardInterrupt

with processes(pick_device("cpu")) as (rank, world, _):
    assert world == 2
    run = fit("digits", **DIGITS, out=home/"two")
    torch.save((dict(run.model.state_dict(), pair=run.model.pair_est().detach()), run.history), home/f"state{rank}.pt")
    fit("digits", **DIGITS, out=home/"from_one")
    assert fit("digits", **DIGITS, out=home/"from_two", on_epoch=stop).interrupted
    stream = fit(made, **STREAM, out=home/"stream")
    found = [evaluate(run, judged(n), progress=False) for n in (7, 1)]
    if rank == 0: torch.save([(e.table, e.low) for e in found], home/"tables.pt")
    plain, right = fit("digits", **{**DIGITS, "epochs": 1}), F.conv2d
    def broken(*a, **k):
        y = right(*a, **k)
        return -y if rank and y.dtype == torch.bfloat16 else y
    F.conv2d, train.has_bfloat16 = broken, lambda device: True
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        low = fit("digits", **{**DIGITS, "epochs": 1, "dtype": "bfloat16"})
    F.conv2d = right
    train.torch.set_num_threads(2-rank)
    train._seconds = lambda call: 1.
    free = fit(config=train.TrainConfig(**{k: v for k, v in DIGITS.items() if k != "progress"} | dict(epochs=1)), progress=False)
    torch.save((low.config, [str(w.message) for w in said], low.model.state_dict(), plain.model.state_dict(), free.config), home/f"low{rank}.pt")
    torch.set_num_threads(1)
    assert certificate.main([str(home/"two"), "--device", "cpu"]) == 0
"""
DIGITS = dict(TINY, epochs=3, batch=673, lr=3e-3, track=True)     # the last step of an epoch has one image, for two processes
STREAM = dict(model="L2W64", epochs=2, batch=4, dense=16, lr=3e-3, device="cpu", progress=False, save_seconds=0, workers=1)


def judged(n):
    task = load_task("digits")
    return dataclasses.replace(task, test=task.test.subset(slice(0, n)))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "What two processes and one made of the same things"
    home = tmp_path_factory.mktemp("shared")
    write_imagenet(home/"folders", 3, 3, 1, 40)
    for part in ("train", "val"): write_shards(home/"folders"/part, home/"shards"/part, per_shard=4)

    def stop(run):
        if len(run.history) == 1: raise KeyboardInterrupt
    fit("digits", **DIGITS, out=home/"from_one", on_epoch=stop)
    (home/"shared.py").write_text(SHARED)
    said = torchrun(home/"shared.py", home, json.dumps(DIGITS), json.dumps(STREAM), PYTHONPATH=os.pathsep.join(sys.path))
    return home, fit("digits", **DIGITS), said.stdout


def test_two_processes_end_in_one_state_and_it_is_that_of_one_process(shared):
    home, one, _ = shared
    (a, history), (b, other) = (torch.load(home/f"state{r}.pt", weights_only=False) for r in (0, 1))
    assert all(torch.equal(a[k], b[k]) for k in a) and "pair" in a
    assert history.drop(columns="seconds").equals(other.drop(columns="seconds"))
    close(read_checkpoint(home/"two")[0], {f"model.{k}": v for k, v in one.model.state_dict().items()}
          | {"track.threatening": one.threatening, "track.runner_up": one.runner_up})
    assert history.train_acc.tolist() == pytest.approx(one.history.train_acc.tolist(), abs=2e-3)
    track = read_checkpoint(home/"two")[0]["track.runner_up"]
    assert track.shape == (3, 1347) and (track == one.runner_up).float().mean() > 0.99


def test_a_run_goes_on_with_another_number_of_processes(shared):
    home, one, _ = shared
    assert len(read_checkpoint(home/"from_two")[1]["history"]) == 2
    runs = [load_run(home/"from_one"), fit("digits", **DIGITS, out=home/"from_two")]         # one to two, two to one
    for run in runs:
        assert len(run.history) == 3
        close(run.model.state_dict(), one.model.state_dict())


def test_a_stream_of_shards_is_shared_also_when_a_step_has_fewer_images_than_processes(shared):
    home, _, _ = shared
    folders = load_task("imagenet", data_dir=str(home/"folders"), size=32)
    assert len(folders.train) % STREAM["batch"] == 1
    close(load_run(home/"stream").model.state_dict(), fit(folders, **STREAM).model.state_dict())


def test_every_test_image_is_certified_once_whatever_the_number_of_processes(shared):
    home, one, _ = shared
    for n, (table, low) in zip((7, 1), torch.load(home/"tables.pt", weights_only=False)):
        alone = evaluate(load_run(home/"two"), judged(n), progress=False)
        assert table["index"].tolist() == list(range(n)) and table.label.tolist() == alone.table.label.tolist()
        assert (table.radius-alone.table.radius).abs().max() < 1e-6 and low == pytest.approx(alone.low)


def test_the_certificate_of_two_processes_is_printed_once_and_checked_by_one(shared):
    home, _, said = shared
    assert said.count("Claimed:") == 1 and said.count("certificate: ") == 1
    assert certificate.main(["--check", str(home/"two"/"certificate.json"), "--run", str(home/"two"), "--device", "cpu"]) == 0


def test_two_processes_agree_on_what_they_can_trust_and_on_their_threads(shared):
    (mine, said, low, plain, free), (other, silent, _, _, too) = (torch.load(shared[0]/f"low{r}.pt", weights_only=False) for r in (0, 1))
    assert mine == other and mine.dtype == "float32" and all(torch.equal(low[k], plain[k]) for k in plain)
    assert len(said) == 1 and "1 Conv, forward, [336, 1, 8, 8]" in said[0] and not silent        # what the second one found, said by the first
    assert free == too and free.threads == 2                # the second one alone would take its one


FLAGS = ["--task", "digits", "--model", "L1W8", "--epochs", "400", "--batch", "256", "--shift", "1", "--save-seconds", "0", "--device", "cpu"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_one_line_and_a_checkpoint(tmp_path, victim):
    p = subprocess.Popen([*TORCHRUN, "-m", "liresnet_nb.train", *FLAGS, "--out", tmp_path/"r"], env=THREADS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.time()
    while p.poll() is None and done(tmp_path/"r") < 2 and time.time()-started < 1800: time.sleep(0.05)
    ranks = {}
    for pid in subprocess.run(["ps", "-o", "pid=", "--ppid", str(p.pid)], capture_output=True, text=True).stdout.split():
        env = dict(v.partition("=")[::2] for v in open(f"/proc/{pid}/environ").read().split("\0"))
        if "RANK" in env: ranks[int(env["RANK"])] = int(pid)
    os.kill(ranks[victim], signal.SIGKILL)
    out, err = p.communicate(timeout=1800)
    assert p.returncode and "another process of this run is gone" in err or "interrupted after" in out
    epochs = done(tmp_path/"r")
    assert 2 <= epochs < 400

    def stop(run): raise KeyboardInterrupt
    more = fit(config=load_run(tmp_path/"r").config, out=tmp_path/"r", on_epoch=stop, progress=False)
    assert len(more.history) == epochs+1


def test_two_processes_say_one_thing_once(tmp_path):
    p = torchrun("-m", "liresnet_nb.train", *FLAGS, "--batch", "1", "--out", tmp_path/"r", ok=False)
    assert p.stderr.count("liresnet-train: batch is 1, shared by 2 processes: wanted at least 2") == 1 and not (tmp_path/"r").exists()


def test_a_device_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*FLAGS, "--device", "cuda", "--out", str(tmp_path/"r")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for k, v in dict(WORLD_SIZE="2", LOCAL_RANK="1").items(): monkeypatch.setenv(k, v)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="'cuda:1' is not on this machine: start one process a GPU, 1 here"): fit("digits", **{**TINY, "device": "cuda"})
