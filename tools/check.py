"Checks of the notebooks: `sync` (clean and in agreement with the library and README), `notebooks` (each runs top to bottom in time)."
import hashlib, os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent
LIMIT = 90   # seconds a notebook may take

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

def run(path):
    "One notebook, top to bottom, in its own process and on one thread: several run side by side."
    began = time.time()
    done = subprocess.run([bin/"nbdev_test", "--path", path, "--n_workers", "0", "--do_print"], cwd=root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return path.name, time.time()-began, done

def notebooks():
    times = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for name, seconds, done in pool.map(run, sorted((root/"nbs").glob("*.ipynb"))):
            times[name] = seconds
            print(f"{seconds:6.1f} s  {name}", flush=True)
            if done.returncode: sys.exit(f"{name} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    slow = [n for n, t in times.items() if t > LIMIT]
    if slow: sys.exit(f"slower than {LIMIT} s: {', '.join(slow)}")
    print(f"{len(times)} passed, 0 failed: every notebook, {sum(times.values())/len(times):.1f} s on average")

if __name__ == "__main__": {"sync": sync, "notebooks": notebooks}[sys.argv[1]]()
