"""What the proofs cost: `make proofs`.

Prints, for networks of the paper, seconds of each proof and how far it lies above the converged estimate (Lanczos to 1e-8 on the
zero-padded operator). Weights are random, from a seed, or those of a run (--run). L18W588 is measured on a part of its
frequencies and extrapolated, and marked so."""
import argparse
import platform
import statistics
import time

import torch

from liresnet_nb import bounds
from liresnet_nb.core import seeded
from liresnet_nb.evaluate import load_pretrained
from liresnet_nb.layers import LinearOperator, LinearResidual
from liresnet_nb.model import build_model
from liresnet_nb.proofs import _prove, top_value


def timed(f, *given):
    began = time.perf_counter()
    result = f(*given)
    return result, time.perf_counter()-began


def prove(op, proof): return _prove(bounds.check_weights(op.kernel().detach()), op.in_shape, op.stride, op.padding, proof, None, lambda: None)


def whole_model(name, model, proof="auto"):
    print(f"\n{name}: every linear operator, proof={proof!r}\n  {'operator':22} {'estimate':>9} {'bound':>9} {'above':>9} {'seconds':>8}  proof")
    total, estimates, proved = 0., 1., 1.
    for k, op in enumerate(model.body):
        if not isinstance(op, LinearOperator): continue
        top = top_value(op.kernel().detach().double(), op.in_shape, op.stride, op.padding)
        bound, seconds = timed(prove, op, proof)
        total, estimates, proved = total+seconds, estimates*top, proved*bound.value
        print(f"  {f'{k} {type(op).__name__}':22} {top:9.5f} {bound.value:9.5f} {bound.value/top-1:9.2e} {seconds:8.2f}  {bound.proof}", flush=True)
    print(f"  {'product':22} {estimates:9.5f} {proved:9.5f} {proved/estimates-1:9.2e} {total:8.2f}")


def block(channels, size=16, depth=18):
    "A residual block with random weights of the size that training leaves them."
    with seeded("block", channels): op = LinearResidual((channels, size, size), depth)
    with seeded("weights", channels): op.weight.data = torch.randn(op.weight.shape)/(3*channels)
    return op


def one_block(channels, proof, repeats=1):
    op = block(channels)
    top, found = timed(top_value, op.kernel().detach().double(), op.in_shape, 1, 1)
    runs = [timed(prove, op, proof) for _ in range(repeats)]
    seconds = [s for _, s in runs]
    if proof == "tight": seconds = [s-found for s in seconds]     # the estimate that suggests the claim is told apart
    spread = f" ({min(seconds):.1f} to {max(seconds):.1f}, {repeats} runs)" if repeats > 1 else ""
    print(f"  {proof:7} {channels} channels: {statistics.median(seconds):6.1f} s{spread}, {runs[0][0].value/top-1:.1e} above the estimate (found in {found:.1f} s); {runs[0][0].proof}", flush=True)


def extrapolated(channels, cells=24):
    "Seconds for one block by its symbol, from a few frequencies."
    kernel = block(channels).kernel().detach().double()
    grid, p = 14, torch.arange(cells)
    some = torch.stack([p % 28, p % 8], 1)
    _, one = timed(bounds._all_below, kernel, some, grid, 10.)
    _, top = timed(bounds._tops, kernel, some[:8], grid)
    most = 224*top/8+(224+9*224)*one/cells
    print(f"  symbol  {channels} channels: {most:6.0f} s a block, EXTRAPOLATED from {cells} of at most 2,240 frequencies; 18 blocks {18*most/60:.0f} min")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", metavar="RUN", help="a trained run whose operators are proved, instead of L6W128 with random weights")
    parser.add_argument("--wide", action="store_true", help="also one tight block of 256 channels (minutes, 4 GB)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads")
    if args.run: whole_model(args.run, load_pretrained(args.run, device="cpu").model)
    else: whole_model("L6W128 at 32×32, fresh weights, seed 0", build_model("L6W128", (3, 32, 32), 10))
    print("\none block at 16×16, random weights")
    one_block(128, "tight", repeats=3)
    one_block(128, "symbol", repeats=3)
    one_block(256, "symbol")
    if args.wide: one_block(256, "tight")
    extrapolated(588)


if __name__ == "__main__": main()
