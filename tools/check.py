"Checks of the notebooks: `sync` (clean and in agreement with the library, README and llms.txt), `notebooks` (each runs top to bottom in time)."
import hashlib, re, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parents[1]
bin = Path(sys.executable).parent

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

def run(path):
    "A notebook's run and what went wrong, if anything did."
    from liresnet_nb.docs import executed
    try: return path.name, executed(path), None
    except Exception as e: return path.name, None, re.sub(r"\x1b\[[0-9;]*m", "", str(e))

def notebooks():
    "Two at a time, each on one thread (the Makefile says so); the pages use the same runs."
    from liresnet_nb.docs import LIMIT
    times, solutions, failed = {}, 0, []
    with ThreadPoolExecutor(2) as pool:
        for name, done, error in pool.map(run, sorted((root/"nbs").glob("*.ipynb"), reverse=True)):
            if error: failed.append(name); print(f"{name} failed:\n{error}", flush=True); continue
            times[name] = done["seconds"]; solutions += done["solutions"]
            print(f"{done['seconds']:6.1f} s  {name}", flush=True)
    if failed: sys.exit(f"failed: {', '.join(failed)}")
    slow = [n for n, t in times.items() if t > LIMIT]
    if slow: sys.exit(f"slower than {LIMIT} s: {', '.join(slow)}")
    print(f"{len(times)} passed, 0 failed: every notebook, {sum(times.values())/len(times):.1f} s on average, and {solutions} solutions")

if __name__ == "__main__": {"sync": sync, "notebooks": notebooks}[sys.argv[1]]()
