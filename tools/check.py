"Checks of the notebooks: `sync` (clean and in agreement with the library and README), `notebooks` (each runs top to bottom in time)."
import hashlib, subprocess, sys, time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent
LIMIT, MEAN = 90, 20   # seconds a notebook may take, and the average

def state():
    files = [*root.glob("nbs/*.ipynb"), *root.glob("liresnet_nb/*.py"), root/"README.md"]
    return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

def sync():
    before = state()
    subprocess.run([bin/"nbdev_clean"], check=True, cwd=root)
    subprocess.run([bin/"nbdev_export"], check=True, cwd=root)
    subprocess.run([sys.executable, root/"tools"/"readme.py"], check=True)
    after = state()
    changed = sorted(str(p.relative_to(root)) for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    if changed: sys.exit(f"notebooks, library and README did not agree (they do now; look at the difference and commit it): {', '.join(changed)}")
    print("notebooks, library and README agree")

def notebooks():
    times = {}
    for p in sorted((root/"nbs").glob("*.ipynb")):
        began = time.time()
        done = subprocess.run([bin/"nbdev_test", "--path", p, "--n_workers", "0", "--do_print"], cwd=root, capture_output=True, text=True)
        times[p.name] = time.time()-began
        print(f"{times[p.name]:6.1f} s  {p.name}", flush=True)
        if done.returncode: sys.exit(f"{p.name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    mean = sum(times.values())/len(times)
    print(f"{len(times)} notebooks passed, {mean:.1f} s on average")
    slow = [n for n, t in times.items() if t > LIMIT]
    if slow: sys.exit(f"slower than {LIMIT} s: {', '.join(slow)}")
    if mean > MEAN: print(f"note: slower than {MEAN} s on average")

if __name__ == "__main__": {"sync": sync, "notebooks": notebooks}[sys.argv[1]]()
