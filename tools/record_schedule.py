"""Record the small runs behind the demo "ε schedule": `python tools/record_schedule.py`.

Trains with every loss on every schedule of a grid, on `few_glyphs` with the settings `SCHEDULE` (both in
liresnet_nb.demos.schedule), and certifies each network on the validation images. Writes schedule.csv.gz (a row an epoch)
and schedule.json (how it was made), whole or not at all, after every run. Runs that are there are not run again.

The sizes were chosen before the grid was run, from 32 trial runs: 50 classes and ε = 0.3, because there one loss
stays at chance on some schedules and not on others; 1,000 images and 30 epochs, because the grid must fit into
half an hour of one thread. The last multiple of ε is 1, 1.5, 2 or 3; it is there from the first step on, or it is
reached, from 0.1, after 25, 50 or 100 % of the run, on a line or on a parabola that rises early or late."""
import argparse
import json
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from liresnet_nb.core import InputError, atomic_path, check_whole, choose, run_command
from liresnet_nb.data import DRAWING
from liresnet_nb.demos.schedule import SCHEDULE, few_glyphs
from liresnet_nb.evaluate import evaluate
from liresnet_nb.experiments import provenance
from liresnet_nb.losses import LOSSES
from liresnet_nb.train import SHAPES, fit

ROOT = Path(__file__).resolve().parents[1]

ENDS, RAMPS = (1., 1.5, 2., 3.), (0.25, 0.5, 1.)
KEYS = ["loss", "epsilon_start", "epsilon_end", "epsilon_ramp", "epsilon_shape", "seed"]
CURVES = ["epoch", "train_acc", "train_vra_est", "sub_lipschitz_est"]
RESULTS = ["clean_acc", "vra"]      # of the finished network, on the validation images: alike in all rows of a run


def schedules():
    "Start, end, ramp and shape; where nothing ramps, the first multiple is the last and the ramp 0."
    fixed = [(end, end, 0., "linear") for end in ENDS]
    return fixed+[(0.1, end, ramp, shape) for shape, end, ramp in product(SHAPES, ENDS, RAMPS)]


def record(task, loss, start, end, ramp, shape, seed):
    "One run: its settings in full, a row an epoch, and seconds."
    began, cpu = time.perf_counter(), time.process_time()
    fields = dict(loss=loss, epsilon_start=start, epsilon_end=end, epsilon_ramp=ramp, epsilon_shape=shape, seed=seed)
    run = fit(task, progress=False, device="cpu", **fields, **SCHEDULE)
    result = evaluate(run, task, progress=False)
    rows = run.history[CURVES].assign(**fields, clean_acc=result.clean_acc, vra=result.vra(run.config.epsilon))
    took = dict(seconds=time.perf_counter()-began, cpu_seconds=time.process_time()-cpu)
    return asdict(run.config), rows[KEYS+CURVES+RESULTS], took


def read(table_file, about_file, shared):
    "What was recorded earlier, with these settings."
    if not (table_file.exists() and about_file.exists()): return None, dict(runs=0, seconds=0., cpu_seconds=0.)
    about = json.loads(about_file.read_text())
    if (drawing := about.get("drawing", 1)) != DRAWING:
        raise InputError(f"{about_file} tells of drawing {drawing} of the glyphs, and {DRAWING} is made today: give another --out, or delete it")
    if about["shared"] != shared:
        raise InputError(f"{about_file} tells of other settings: give another --out, or delete it")
    return pd.read_csv(table_file), about


def main(args):
    check_whole(seeds=args.seeds)
    losses = [choose(loss, LOSSES, "loss") for loss in args.losses.split(",")]
    if not args.out.is_dir(): raise InputError(f"no folder {args.out}: make it first")
    torch.set_num_threads(1)
    table_file, about_file, task = args.out/"schedule.csv.gz", args.out/"schedule.json", few_glyphs()
    shared = dict(task=repr(task), fingerprint=task.train.fingerprint(), **SCHEDULE)
    table, about = read(table_file, about_file, shared)
    done = set() if table is None else set(table[KEYS].itertuples(index=False, name=None))
    wanted = [(loss, *s, seed) for seed, loss, s in product(range(args.seeds), losses, schedules())]
    todo, source = [key for key in wanted if key not in done], provenance()
    bar = tqdm(todo, desc="runs", initial=len(wanted)-len(todo), total=len(wanted))
    for key in bar:
        config, rows, took = record(task, *key)
        table = (rows if table is None else pd.concat([table, rows])).sort_values(KEYS+["epoch"])
        about = dict(command="python tools/record_schedule.py", runs=about["runs"]+1,
                     **{name: round(about[name]+value, 1) for name, value in took.items()},
                     seeds=sorted(set(table.seed.tolist())), drawing=DRAWING, shared=shared,
                     config={k: v for k, v in config.items() if k not in KEYS},
                     **source)
        how = dict(index=False, float_format="%.4g", compression=dict(method="gzip", mtime=0))
        with atomic_path(table_file) as p: table.to_csv(p, **how)
        with atomic_path(about_file) as p: p.write_text(json.dumps(about, indent=1)+"\n")
        bar.set_postfix_str(" ".join(map(str, key))+f": clean {rows.clean_acc.iloc[0]:.2f}, VRA {rows.vra.iloc[0]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT/"liresnet_nb"/"recorded", metavar="FOLDER",
                        help="where the two files are, or are to be")
    parser.add_argument("--losses", default="emma,emma_adaptive,trades", metavar="NAMES", help="separated by commas")
    parser.add_argument("--seeds", type=int, default=2, metavar="N", help="0 to N-1")
    raise SystemExit(run_command(main, parser))
