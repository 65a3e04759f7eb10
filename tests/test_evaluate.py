"The shipped model keeps its word; rows, curves, commands and refusals."
import dataclasses
import hashlib
import math
import shutil

import pandas as pd
import pytest
import torch

from liresnet_nb import report
from liresnet_nb.core import InputError, full_precision
from liresnet_nb.evaluate import certify, evaluate, load_pretrained, nearest_neighbour, vra_curve, wilson
from liresnet_nb.figures import extremes, plot_constants, plot_history, plot_images, plot_vra
from liresnet_nb.layers import Householder


@pytest.fixture(scope="module")
def shipped():
    return load_pretrained("digits")


@pytest.fixture(scope="module")
def result(shipped, digits):
    return evaluate(shipped, digits, [0.1, 0.3, 0.5], progress=False)


def test_the_shipped_model_is_certified_again(result, digits):
    assert result.vra(0.3) >= 0.85 and result.clean_acc >= 0.97
    assert result.vra(0.3) <= result.vra_est(0.3) <= result.clean_acc
    assert (result.table.radius <= result.table.radius_est).all()
    line = vra_curve(nearest_neighbour(digits.train, digits.test), [0.3]).vra[0]
    assert line == pytest.approx(0.718, abs=0.001) and result.vra(0.3) > line


def test_rows_are_enough_for_every_curve(result, shipped, digits):
    assert list(result.table.columns[:5]) == ["index", "label", "pred", "margin", "radius"] and result.table["index"].tolist() == list(range(450))
    curve = vra_curve(result.table, [0, 0.1, 0.3, 5])
    assert curve.vra.tolist() == result.vra([0, 0.1, 0.3, 5]) and curve.vra.is_monotonic_decreasing and curve.vra.iloc[-1] == 0
    own = certify(shipped.model, digits.test.images(), 0.3, batch=100)
    torch.testing.assert_close(torch.tensor(own.radius.to_numpy()), torch.tensor(result.table.radius.to_numpy()), rtol=1e-4, atol=1e-6)
    assert (own.certified == (own.radius > 0.3)).all() and (own.pred == result.table.pred).all()


def test_no_point_inside_a_certified_ball_changes_the_prediction(result, shipped, digits):
    "In float64, towards the nearest images of other classes, along the gradient, and at random: as far as the radius goes."
    model = load_pretrained("digits").model.double()
    x = digits.test.images().double()
    radius, pred = torch.tensor(result.table.radius.to_numpy()), torch.tensor(result.table.pred.to_numpy())
    known = digits.train.images().double()
    d = torch.cdist(x.flatten(1), known.flatten(1)).masked_fill(digits.train.labels == pred[:, None], torch.inf)
    directions = [known[d.argmin(1)]-x, torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)]
    z = x.clone().requires_grad_()
    f = model(z)
    second = f.masked_fill(torch.nn.functional.one_hot(pred, 10).bool(), -torch.inf).argmax(1)
    (f.gather(1, second[:, None])-f.gather(1, pred[:, None])).sum().backward()
    directions.append(z.grad)
    for v in directions:
        moved = x+v/v.flatten(1).norm(dim=1)[:, None, None, None]*radius[:, None, None, None]
        with torch.no_grad(): assert (model(moved).argmax(1) == pred).all()


def test_constants_are_a_row_a_layer(result, shipped):
    assert len(result.constants) == len(shipped.model.body) and (result.constants.estimate <= result.constants.bound*(1+1e-6)).all()
    assert result.constants.bound.prod() == pytest.approx(result.pair_bound.sub_lipschitz.value, rel=1e-6)
    assert result.constants.residual.max() < 0.05


def test_wilson_against_its_formula():
    for k, n in ((0, 10), (7, 10), (450, 450), (388, 450)):
        z, p = 1.959963984540054, k/n
        centre, half = (p+z*z/(2*n))/(1+z*z/n), z/(1+z*z/n)*math.sqrt(p*(1-p)/n+z*z/(4*n*n))
        assert wilson(p, n) == pytest.approx((max(0, centre-half), min(1, centre+half)), abs=1e-9)


def test_nearest_neighbour_radius_by_hand(digits):
    table = nearest_neighbour(digits.train, digits.test.subset(slice(0, 5)))
    for r in table.itertuples():
        d = (digits.train.images()-digits.test.images(slice(r.index, r.index+1))).flatten(1).double().norm(dim=1)
        label = digits.train.labels[d.argmin()]
        assert r.pred == label and r.radius == pytest.approx(((d[digits.train.labels != label].min()-d[digits.train.labels == label].min())/2).item())


def test_what_certify_refuses(shipped, digits):
    good = digits.test.images(slice(0, 3))
    for images, epsilon, words in [(good*255, .3, "pixels from"), ((good*255).byte(), .3, "uint8"), (good/0, .3, "NaN or infinity"), (good[0], .3, r"wanted \[B,C,H,W\]"), (good.expand(3, 3, 8, 8), .3, "made for"),
                                   (torch.rand(1, 1, 16, 16), .3, "made for"), (good.numpy(), .3, "ndarray"), (good, 0, "epsilon is 0"), (good, -1, "epsilon is -1"), (good, float("nan"), "epsilon is nan"), (good, "x", "cannot read")]:
        with pytest.raises(InputError, match=words): certify(shipped.model, images, epsilon)
    with pytest.raises(InputError, match="wanted a GloroNet"): certify(shipped, good, .3)
    with pytest.raises(InputError, match="batch is 0"): certify(shipped.model, good, .3, batch=0)
    with pytest.raises(InputError, match="PairBound"): certify(shipped.model, good, .3, pair_bound=torch.rand(10, 10)+1)
    broken = load_pretrained("digits").model
    broken.head.bias.data[0] = math.nan
    with pytest.raises(InputError, match="NaN"): certify(broken, good, .3)
    assert len(certify(shipped.model, good[:0], .3)) == 0
    broken = load_pretrained("digits").model
    broken.body[1].weight.data[0] = math.inf
    with pytest.raises(InputError, match="layer 1 .Conv.*infinity"): certify(broken, good, .3)


def test_a_task_that_does_not_fit_is_refused(shipped):
    from liresnet_nb.data import load_task
    with pytest.raises(InputError, match="the task has"): evaluate(shipped, load_task("glyphs"), progress=False)


def test_constants_are_proved_for_the_weights_of_the_moment(shipped, digits):
    model, images = load_pretrained("digits").model, digits.test.images(slice(0, 20))
    before = certify(model, images, .3).radius
    model.body[1].weight.data *= 2
    for layer in model.body[3:]:
        if hasattr(layer, "bias"): layer.bias.data *= 0
    assert model.pair_bound().sub_lipschitz.value == pytest.approx(2*shipped.model.pair_bound().sub_lipschitz.value, rel=1e-6)
    assert not (certify(model, images, .3).radius == before).all()


def test_constants_of_other_weights_are_refused(digits):
    model, images = load_pretrained("digits").model, digits.test.images(slice(0, 5))
    proved = model.pair_bound()
    model.power_step(3)                                   # power vectors decide no logit
    assert (certify(model, images, .3, pair_bound=proved).pred == certify(model, images, .3).pred).all()
    with pytest.raises(InputError, match="other model|no more"): certify(load_pretrained("digits").model.double(), images, .3, pair_bound=proved)
    def bias(m): m.head.bias.data[0] += 1e-3
    def attribute(m): m.body[3].scale = 5.
    def buffer(m): m.body[3].delta.mul_(4)
    def layer(m): m.body[2] = Householder(m.body[1].out_shape[0])
    for change in (bias, attribute, buffer, layer):
        model = load_pretrained("digits").model
        change(model)
        with pytest.raises(InputError, match="weights it has no more"): certify(model, images, .3, pair_bound=proved)


def test_full_precision_whatever_is_switched_on(shipped, digits):
    images = digits.test.images(slice(0, 50))
    usual = certify(shipped.model, images, .3)
    with torch.autocast("cpu", torch.bfloat16): again = certify(shipped.model, images, .3)
    pd.testing.assert_frame_equal(usual, again)
    before = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = "tf32", "bf16"
        pd.testing.assert_frame_equal(usual, certify(shipped.model, images, .3))
        with full_precision():
            assert {s.fp32_precision for s in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)} == {"ieee"}
        assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision) == ("tf32", "bf16")
    finally: torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision = before


def test_float64_images_are_certified_as_the_model_sees_them(shipped, digits):
    images = digits.test.images(slice(0, 5))
    pd.testing.assert_frame_equal(certify(shipped.model, images.double(), .3), certify(shipped.model, images, .3))


def test_a_network_that_is_constant_has_no_nan(digits):
    run = load_pretrained("digits")
    run.model.body[14].weight.data.zero_()
    result = evaluate(run, digits, 0.1, progress=False)
    assert not result.table.radius_est.isna().any() and result.vra_est(0.1) >= result.vra(0.1)


def test_a_run_on_a_task_of_ones_own_wants_the_task(shipped):
    run = dataclasses.replace(shipped, config=dataclasses.replace(shipped.config, task="mine"))
    with pytest.raises(InputError, match="give it, evaluate.run, task."): evaluate(run)
    with pytest.raises(InputError, match="task of your own"): run.config.command()


def test_load_pretrained_from_a_file_and_with_a_hash(tmp_path):
    from importlib.resources import files
    source = files("liresnet_nb")/"pretrained"/"digits.safetensors"
    copy = shutil.copy(source, tmp_path/"mine.safetensors")
    digest = hashlib.sha256((tmp_path/"mine.safetensors").read_bytes()).hexdigest()
    assert load_pretrained(copy, sha256=digest).config.task == "digits"
    with pytest.raises(InputError, match="has SHA-256"): load_pretrained(copy, sha256="0"*64)
    with pytest.raises(InputError, match="no pretrained model"): load_pretrained("cifar")
    with pytest.raises(InputError, match="only with its sha256"): load_pretrained("https://example.invalid/x.safetensors")


def test_load_pretrained_from_a_url(tmp_path, monkeypatch):
    from importlib.resources import files
    monkeypatch.setenv("LIRESNET_DATA", str(tmp_path))
    source = files("liresnet_nb")/"pretrained"/"digits.safetensors"
    digest, url = hashlib.sha256(source.read_bytes()).hexdigest(), f"file://{source}"
    with pytest.raises(InputError, match="has SHA-256"): load_pretrained(url, sha256="1"*64)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert load_pretrained(url, sha256=digest).config.model
    with pytest.raises(InputError, match="cannot download"): load_pretrained("file:///nowhere/x", sha256="2"*64)


def test_the_report_is_one_self_contained_page(tmp_path, capsys):
    assert report.main(["digits", "--out", str(tmp_path/"r.html"), "--device", "cpu"]) == 0
    page = (tmp_path/"r.html").read_text(encoding="utf-8")
    assert "1-NN certificate" in capsys.readouterr().out
    assert page.count('class="plotly-graph-div"') == 4 and '<script src="http' not in page and "<link" not in page
    assert "Claimed: the network over the real numbers" in page and [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_the_report_command_refuses_in_one_line_before_it_works(capsys):
    for bad in (["digits", "--out", "/no/dir/r.html"], ["digits", "--out", "/"], ["nowhere"], ["digits", "--epsilon", "0"]):
        assert report.main(bad) == 2
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and not captured.out


def test_figures_draw_what_the_tables_say(result, shipped, digits):
    curve = vra_curve(result.table, [0, .3])
    fig = plot_vra({"proved": curve, "estimate, no certificate": curve}, 0.3)
    lines = [t for t in fig.data if t.name]
    assert list(lines[0].y) == (100*curve.vra).tolist() and [t.line.dash for t in lines] == ["solid", "dash"]
    history = plot_history(shipped.history)
    assert len(history.data[0].y) == len(shipped.history)
    bars = plot_constants(result.constants)
    assert bars.data[0].y[-1] == pytest.approx(result.pair_bound.sub_lipschitz.value, rel=1e-6)
    least, most = extremes(result.table, 3)
    assert most.radius.tolist() == sorted(result.table.radius[result.table.pred == result.table.label], reverse=True)[:3]
    assert len(plot_images(digits.test.images(slice(0, 12)), [str(i) for i in range(12)]).data) == 12
