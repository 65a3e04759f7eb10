"Where a recorded figure comes from: commit, hardware, versions."
import platform
import subprocess
from pathlib import Path

import torch

import liresnet_nb

ROOT = Path(__file__).resolve().parents[1]


def commit():
    "The commit of the code, marked where the library was changed since."
    git = lambda *words: subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (git("rev-parse", "HEAD") or "unknown")+(" and changes" if git("status", "--porcelain", "liresnet_nb", "tools") else "")


def hardware():
    "The CPU's name, as the system tells it, and how many threads torch uses."
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"


def provenance():
    versions = dict(liresnet_nb=liresnet_nb.__version__, torch=torch.__version__, python=platform.python_version())
    return dict(commit=commit(), hardware=hardware(), versions=versions)
