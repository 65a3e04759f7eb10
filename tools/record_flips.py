"""Record the flip rates that the demo and chapter 25 draw: `python tools/record_flips.py`.

Trains TRADES (λ = 2) and EMMA on 10, 100 and 200 glyph classes and writes flips.csv.gz (an epoch of a run a row),
flips_instances.csv.gz (who threatens 60 images of the first seed, epoch by epoch) and flips.json (command, settings, versions,
seconds). The files are replaced after each run, whole or not at all; the JSON lists the runs that they hold."""
import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from liresnet_nb.core import InputError, atomic_path, run_command
from liresnet_nb.data import DRAWING
from liresnet_nb.demos.flips import flip_instances, flip_run, flip_table, flip_task
from liresnet_nb.experiments import provenance

ROOT = Path(__file__).resolve().parents[1]


def write_csv(path, tables):
    with atomic_path(path) as p:
        pd.concat(tables).to_csv(p, index=False, float_format="%.5g", compression=dict(method="gzip", mtime=0))


def record(args):
    if not args.out.is_dir(): raise InputError(f"no folder {args.out} to write to: make it first")
    rates, instances, began = [], [], time.time()
    about = dict(command=" ".join(["python", "tools/record_flips.py", *sys.argv[1:]]), drawing=DRAWING, **provenance(), runs=[])
    plan = [(seed, loss, n) for seed in args.seeds for n in args.n_classes for loss in args.losses]
    with tqdm(total=len(plan)*args.epochs, unit="epoch") as bar:
        for seed, loss, n in plan:
            bar.set_description(f"{loss}, {n} classes, seed {seed}")
            labels, start, cpu = flip_task(n).train.labels, time.time(), time.process_time()
            run = flip_run(loss, n, args.epochs, seed, progress=False, on_epoch=lambda _: bar.update())
            if run.interrupted: raise InputError("interrupted: the files hold the runs that were complete")
            rates.append(flip_table(run))
            about["config"] = {k: v for k, v in asdict(run.config).items() if k not in ("loss", "seed", "n_classes", "data_dir")}
            about["runs"].append(dict(loss=loss, n_classes=n, seed=seed, wall_seconds=round(time.time()-start, 1),
                                      cpu_seconds=round(time.process_time()-cpu, 1)))
            about["seeds"] = sorted({r["seed"] for r in about["runs"]})
            about["wall_seconds"] = round(time.time()-began, 1)
            write_csv(args.out/"flips.csv.gz", rates)
            if seed == args.seeds[0]:
                instances.append(flip_instances(run, labels).assign(loss=loss, n_classes=n))
                write_csv(args.out/"flips_instances.csv.gz", instances)
            with atomic_path(args.out/"flips.json") as p: p.write_text(json.dumps(about, indent=1, ensure_ascii=False)+"\n")


def main():
    parser = argparse.ArgumentParser("record_flips.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT/"liresnet_nb"/"recorded", metavar="FOLDER", help="where the files go")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--n-classes", type=int, nargs="+", default=[10, 100, 200])
    parser.add_argument("--losses", nargs="+", default=["trades", "emma"])
    return run_command(record, parser)


if __name__ == "__main__": raise SystemExit(main())
