"""Our Auto-PGD beside torchattacks 3.5.1 on all digits test images: `make cross`.

Robust accuracy per loss and radius, mean of three seeds; exit status 1 where the two differ by more than half a point.
Both start at random, each by its own generator, so the figures agree without being equal."""
import sys

import torch
import torchattacks

from liresnet_nb.attack import apgd
from liresnet_nb.data import load_task
from liresnet_nb.evaluate import load_pretrained

LIMIT, SEEDS = 0.5, range(3)     # points of accuracy
STEPS = dict(ce=100, dlr=100, targeted=30)      # nine targets, one after the other


def main():
    model, test = load_pretrained("digits").model, load_task("digits").test
    images, labels = test.images(), test.labels

    def ours(epsilon, loss, seed):
        return apgd(model, images, labels, epsilon, loss, steps=STEPS[loss], seed=seed, progress=False)

    def theirs(epsilon, loss, seed):
        how = dict(norm="L2", eps=epsilon, steps=STEPS[loss], n_restarts=1, seed=seed)
        if loss == "targeted": return torchattacks.APGDT(model, n_classes=10, **how)(images, labels)
        return torchattacks.APGD(model, loss=loss, **how)(images, labels)

    def robust(attack, *how):
        with torch.no_grad(): right = [(model(attack(*how, seed)).argmax(1) == labels).double().mean() for seed in SEEDS]
        return 100*sum(right).item()/len(right)
    widest = 0.
    print(f"{'epsilon':>7}  {'loss':>8}  {'ours %':>7}  {'theirs %':>8}  {'difference':>10}")
    for epsilon in (0.3, 1.0):
        for loss in STEPS:
            a, b = robust(ours, epsilon, loss), robust(theirs, epsilon, loss)
            widest = max(widest, abs(a-b))
            print(f"{epsilon:7.2f}  {loss:>8}  {a:7.2f}  {b:8.2f}  {a-b:10.2f}", flush=True)
    sys.exit(f"a difference of {widest:.2f} points: wanted {LIMIT} at most" if widest > LIMIT else 0)


if __name__ == "__main__": main()
