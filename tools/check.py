"Checks of the notebooks: `sync` (clean and in agreement with the library, README and llms.txt), `notebooks` (each runs top to bottom)."
import argparse, ast, hashlib, json, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent
TRAIN = {"fit", "train_step", "reproduce", "flip_run", "smoothed_digits"}     # a call of one of these is a training

def state():
    files = [*root.glob("nbs/*.ipynb"), *root.glob("liresnet_nb/**/*.py"), root/"README.md", root/"llms.txt"]
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def sync():
    before = state()
    subprocess.run([bin/"nbdev_clean"], check=True, cwd=root)
    subprocess.run([bin/"nbdev_export"], check=True, cwd=root)
    for made in ("readme", "llms"): subprocess.run([sys.executable, root/"tools"/f"{made}.py"], check=True)
    after = state()
    changed = sorted(str(p.relative_to(root)) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if changed: sys.exit(f"notebooks, library, README and llms.txt did not agree (they do now; look at the difference and commit it): {', '.join(changed)}")
    print("notebooks, library, README and llms.txt agree")

def trains(path):
    "Does a cell of the notebook train a network?"
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    trees = (ast.parse("".join(c["source"])) for c in cells if c["cell_type"] == "code")
    return any(isinstance(n, ast.Call) and getattr(n.func, "id", "") in TRAIN for tree in trees for n in ast.walk(tree))

def chosen(names, training):
    "The notebooks that are asked for by the beginnings of their names, or all; of these, only those that train."
    found = [p for p in sorted((root/"nbs").glob("*.ipynb"), reverse=True) if not names or p.name.startswith(tuple(names))]
    return [p for p in found if not training or trains(p)]

def run(path, anew=False):
    "A notebook's run and what went wrong, if anything did."
    from liresnet_nb.docs import executed, run_notebook
    try: return path.name, run_notebook(path) if anew else executed(path), None
    except Exception as e: return path.name, None, re.sub(r"\x1b\[[0-9;]*m", "", str(e))

def notebooks(names=(), training=False, jobs=2):
    "So many at a time, each on one thread (the Makefile says so); the pages use the same runs."
    from liresnet_nb.docs import LIMIT
    times, solutions, failed = {}, 0, []
    with ThreadPoolExecutor(jobs) as pool:
        for name, done, error in pool.map(lambda p: run(p, anew=training), chosen(names, training)):
            if error: failed.append(name); print(f"{name} failed:\n{error}", flush=True); continue
            times[name] = done["seconds"]; solutions += done["solutions"]
            print(f"{done['seconds']:6.1f} s  {name}", flush=True)
    slow = [n for n, t in times.items() if t > LIMIT]
    if slow: print(f"slower than {LIMIT} s on this machine, which is a remark and no failure: {', '.join(slow)}")
    if failed: sys.exit(f"failed: {', '.join(failed)}")
    if not times: sys.exit("no notebook was asked for")
    what = "notebooks that train" if training else "notebooks" if names else "every notebook"
    print(f"{len(times)} passed, 0 failed: {what}, {sum(times.values())/len(times):.1f} s on average, and {solutions} solutions")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=("sync", "notebooks"))
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks whose names begin so; all if not given")
    parser.add_argument("--training", action="store_true", help="only notebooks that train a network, run anew and not kept")
    parser.add_argument("--jobs", type=int, default=2, help="notebooks at a time (2)")
    args = parser.parse_intermixed_args()
    if args.check == "sync": sync()
    else: notebooks(args.names, args.training, args.jobs)
