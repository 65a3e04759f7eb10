"""Do the checks hold on other processors? The tests and notebooks that train, or depend on a kernel's last digits, under
the kernels that other processors would take. About 75 minutes on two cores, a variant 11 (added up from parts that were
measured one at a time; two threads take 22); `make test` and CI do not run it.

    python tools/portable.py                                  every variant
    python tools/portable.py --variant avx2 -k train 10 20    one variant, tests by pytest's -k, notebooks by name
"""
import argparse, os, subprocess, sys, time
from pathlib import Path

root = Path(__file__).resolve().parents[1]
VARIANTS = {
    "as it is": {},
    "default": dict(ATEN_CPU_CAPABILITY="default"),                              # torch's own kernels, without vectors
    "avx2": dict(ATEN_CPU_CAPABILITY="avx2", ONEDNN_MAX_CPU_ISA="AVX2"),
    "avx512": dict(ONEDNN_MAX_CPU_ISA="AVX512_CORE"),                            # no bfloat16, no AMX
    "compatible": dict(MKL_CBWR="COMPATIBLE"),                                   # MKL's kernels for any processor
    "two threads": dict(OMP_NUM_THREADS="2", MKL_NUM_THREADS="2"),
}
SAID = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), 'thread(s)', torch.__version__)"

def run(name, words):
    "Whether a command succeeds under a variant."
    usual = dict(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    return subprocess.run([sys.executable, *words], cwd=root, env=os.environ | usual | VARIANTS[name]).returncode == 0

def checks(name, expression, notebooks, only, jobs=None):
    "What a variant runs: name -> command. No more at a time than there are cores for, if `jobs` does not say it."
    jobs = jobs or max(1, (os.cpu_count() or 1)//int(VARIANTS[name].get("OMP_NUM_THREADS", 1)))
    tests = ["-m", "pytest", "-q", "-m", "training", "-n", str(jobs), "--dist", "loadfile", *(["-k", expression] if expression else [])]
    found = dict(tests=tests, notebooks=["tools/check.py", "notebooks", "--training", "--jobs", str(jobs), *notebooks])
    return {k: v for k, v in found.items() if only in (None, k)}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", metavar="NAME", help="notebooks whose names begin so; all that train if not given")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="only this one; may be given several times")
    parser.add_argument("--only", choices=("tests", "notebooks"), help="only one of the two")
    parser.add_argument("-k", metavar="EXPRESSION", help="pytest's: which of the tests")
    parser.add_argument("--jobs", type=int, metavar="N", help="tests or notebooks at a time; one a core if not given")
    args = parser.parse_intermixed_args()
    failed, rows = [], []
    for name in args.variant or VARIANTS:
        print(f"== {name}: {VARIANTS[name]}", flush=True)
        run(name, ["-c", SAID])                        # what torch makes of it: a name that it does not know changes nothing
        for what, words in checks(name, args.k, args.notebooks, args.only, args.jobs).items():
            began = time.time()
            passed = run(name, words)
            rows.append(f"{name:12} {what:10} {'passed' if passed else 'FAILED':7} {(time.time()-began)/60:5.1f} minutes")
            if not passed: failed.append(f"{name}, {what}")
    print("", *rows, sep="\n")
    if failed: sys.exit(f"failed: {'; '.join(failed)}")

if __name__ == "__main__": main()
