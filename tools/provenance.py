"Where a recorded figure comes from: commit, hardware, versions."
from pathlib import Path

from liresnet_nb.experiments import provenance

ROOT = Path(__file__).resolve().parents[1]
__all__ = ["ROOT", "provenance"]
