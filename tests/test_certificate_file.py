"Certificates as files, as their enemy writes them: what is refused, what is found false, what is valid; and old ones."
import dataclasses
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from liresnet_nb import certificate
from liresnet_nb.certificate import (FORMAT, Untrue, check_certificate, claimed_rows, judged_on, judged_task, read_certificate, read_claims, read_rows,
                                     table_text, write_certificate)
from liresnet_nb.core import InputError
from liresnet_nb.data import StreamSet, load_task, write_imagenet
from liresnet_nb.evaluate import certify, evaluate, load_pretrained
from liresnet_nb.layers import Dense, Flatten, NormalizedHead
from liresnet_nb.model import GloroNet
from liresnet_nb.train import load_run

OLD = Path(__file__).parent/"old"/"format1"
SMALL = OLD/"checkpoint.safetensors"      # L1W8, trained: four operators, quickly proved


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    "The folder of an honest certificate: c.json and c.csv, two radii, of the small run."
    folder = tmp_path_factory.mktemp("honest")
    assert certificate.main([str(SMALL), "--epsilon", "0.1", "0.3", "--device", "cpu", "--table", str(folder/"c.csv"), "--certificate", str(folder/"c.json")]) == 0
    return folder


def check(file, capsys, run=SMALL):
    "Exit status and the one line that `liresnet-certify --check` answers with."
    capsys.readouterr()
    status = certificate.main(["--check", str(file), "--run", str(run), "--device", "cpu"])
    out, err = capsys.readouterr()
    line = (err if status == 2 else out).split("\r")[-1]         # behind what a progress bar wrote
    assert line.count("\n") == 1 and line.endswith("\n") and "Traceback" not in out+err and (status == 2 or "liresnet-certify:" not in err)
    if status < 2: assert line.startswith(("valid: ", "NOT valid: ")[status])
    else: assert line.startswith("liresnet-certify: ") and not out
    return status, line


def forged(honest, tmp_path, change=lambda said: None, rewrite=lambda lines: lines):
    "The honest certificate with its table rewritten, the table's hash made to fit, and then a change of its fields."
    said, lines = json.loads((honest/"c.json").read_text()), (honest/"c.csv").read_text().split("\n")
    text = rewrite(lines)
    data = text if isinstance(text, bytes) else "\n".join(text).encode()
    said["table"]["sha256"] = hashlib.sha256(data).hexdigest()
    change(said)
    (tmp_path/"c.csv").write_bytes(data)
    (tmp_path/"c.json").write_text(json.dumps(said))
    return tmp_path/"c.json"


def test_an_honest_certificate_is_valid_and_says_what_it_claims(honest, capsys):
    said = json.loads((honest/"c.json").read_text())
    right = [round(450*r["vra"]) for r in said["results"]]
    status, line = check(honest/"c.json", capsys)
    assert status == 0 and line.startswith(
        f"valid: of 450 test images of digits (10 classes), {right[0]} ({right[0]/4.5:.1f} %) are answered rightly and keep their answer under every change of l2 length up to 0.1, "
        f"{right[1]} ({right[1]/4.5:.1f} %) up to 0.3. Claimed: the network over the real numbers")
    assert line.endswith("Verified: 4 constants proved, 450 rows recomputed.\n")
    assert said["format"] == FORMAT == 2 and said["split"] == "test" and said["classes"] == list("0123456789") and sum(said["counts"]) == 450 and said["drawing"] is None


# One field changed

def put(value, *where):
    "A change of one field, possibly inside others; `value` may be a function of what is there."
    def change(said):
        entry = said
        for w in where[:-1]: entry = entry[w]
        entry[where[-1]] = value(entry[where[-1]]) if callable(value) else value
    return change


def everything_smaller(said):
    for o in said["operators"]: o["bound"] *= .9
    said["sub_lipschitz"] *= .9**4


def swapped(field): return lambda said: said.__setitem__(field, [said[field][1], said[field][0], *said[field][2:]])


def twice(field, **changes): return lambda said: said[field].insert(0, said[field][0] | changes)


FALSE = dict(      # understood, and does not hold: status 1
    smaller=(put(lambda b: b*(1-1e-6), "operators", 2, "bound"), "layer 5 .Conv.: ‖A‖ ≤ .* is not proved"), all_smaller=(everything_smaller, "is not proved"),
    nothing=(put(0, "operators", 2, "bound"), "is not proved"), zero=(put("zero", "operators", 2, "proof"), "operators says"), larger=(put(lambda b: b*1.01, "operators", 0, "bound"), "row 0 says"), huge=(put(1e300, "operators", 2, "bound"), "row 0 says .* radius 0$"),
    unproved=(put("symbol", "operators", 1, "proof"), "is not proved"), method=(put("tight", "operators", 1, "proof"), "operators says"),
    extra=(lambda said: said["operators"].append(dict(operator="99", bound=1e-9, proof="explicit")), "operators says"), order=(swapped("operators"), "operators says"),
    many=(lambda said: said["operators"].extend(dict(operator=f"9.{k}", bound=1, proof="tight") for k in range(5000)), "operators says 5004 entries, found 4 entries"),
    missing=(lambda said: said["operators"].pop(), "operators says 3 entries, found 4"), renamed=(put("5.0", "operators", 2, "operator"), "operators says '5.0', found '5'"),
    layer=(put(1e-9, "layers", 1, "bound"), "layers says"), layer_name=(put(77, "layers", 1, "layer"), "layers says"), fewer_layers=(lambda said: said["layers"].pop(), "layers says 9 entries"),
    sub_lipschitz=(put(lambda b: b*(1-1e-12), "sub_lipschitz"), "sub_lipschitz says"), clean=(put(1, "clean_accuracy"), "clean_accuracy says 1, found 0.9"),
    vra=(put(1., "results", 1, "vra"), "results says"), certified=(put(450, "results", 1, "certified"), "results says"), elsewhere=(put(.2, "results", 1, "epsilon"), "results says"),
    claim=(put("every attack whatsoever fails", "claim"), "claim says"), stronger=(put("float32", "arithmetic"), "row 0 says"), precise=(put("float64", "arithmetic"), "the weights are torch.float32"),
    model=(put("0"*64, "model"), "another model"), data=(put("0"*64, "data"), "other images"), images=(put(449, "images"), "images says 449, found 450"), million=(put(10**6, "images"), "images says 1000000"),
    valid_split=(put("valid", "split"), "trained with held_out='test', so it learned from the validation images"), train_split=(put("train", "split"), "says"),
    classes=(swapped("classes"), "class 0 is '1' in the certificate, '0' in the data"), one_class=(put("three", "classes", 3), "class 3 is 'three' in the certificate, '3' in the data"),
    fewer_classes=(lambda said: (said["classes"].pop(), said["counts"].pop()), "the certificate has 9 classes, the data has 10"), counts=(swapped("counts"), "counts says 46, found 45"),
    table=(put("0"*64, "table", "sha256"), "c.csv was changed after the certificate was written"))


@pytest.mark.parametrize("name", FALSE)
def test_what_does_not_hold_is_not_valid(honest, tmp_path, capsys, name):
    change, words = FALSE[name]
    status, line = check(forged(honest, tmp_path, change), capsys)
    assert status == 1 and re.search(words, line), line


def add(*where): return put(.99, *where, "vra_at_1.0")


def without(*where):
    def change(said):
        for w in where[:-1]: said = said[w]
        del said[where[-1]]
    return change


STRANGE = dict(    # not understood: status 2
    extra=(add(), "a field 'vra_at_1.0', which this version does not know"), extra_operator=(add("operators", 0), r"a field 'operators\[0\].vra_at_1.0'"), extra_layer=(add("layers", 2), r"'layers\[2\].vra_at_1.0'"),
    extra_result=(add("results", 1), r"'results\[1\].vra_at_1.0'"), extra_table=(add("table"), "'table.vra_at_1.0'"), extra_making=(add("made_with"), "'made_with.vra_at_1.0'"),
    line_end=(put(1, "a\nvalid: all of it"), r"a field 'a\\nvalid: all of it'"), long=(put(1, "x"*10**5), "a field 'xxx"),
    true=(put(True, "images"), "field images is True: wanted a whole number"), word=(put("450", "images"), "field images is '450'"), point=(put(450., "images"), "field images is 450.0"),
    large=(put(2**60, "images"), "field images"), list_of=(put([450], "images"), "field images"), nothing=(put(None, "claim"), "field claim is None: wanted a text"), counted=(put({}, "counts"), "field counts is {}: wanted a list"),
    true_bound=(put(True, "operators", 0, "bound"), r"operators\[0\].bound is True: wanted a finite number"), text_bound=(put("1.0", "operators", 0, "bound"), r"operators\[0\].bound"),
    negative=(put(-1., "operators", 2, "bound"), r"operators\[2\].bound is -1.0"), minus_zero=(put(-0., "operators", 2, "bound"), r"operators\[2\].bound is -0.0"),
    absurd=(put(1e308, "operators", 2, "bound"), "claimed to be 1e.308"), digits=(put(10**400, "operators", 2, "bound"), r"operators\[2\].bound"),
    guess=(put("guess", "operators", 1, "proof"), "'guess': this version knows explicit, symbol, tight, zero"), auto=(put("auto", "operators", 1, "proof"), "'auto': this version knows"),
    listed=(put(["explicit"], "operators", 1, "proof"), r"operators\[1\].proof"), twice=(twice("operators", bound=1e-9), "operators has the operator '1' twice"), layers=(twice("layers"), "layers has the layer 0 twice"),
    epsilon_twice=(twice("results"), "results has the epsilon 0.1 twice"), int_twice=(lambda said: said["results"].extend([dict(epsilon=e, certified=0, vra=0.) for e in (1, 1.)]), "epsilon 1 twice"),
    epsilon_negative=(put(-.1, "results", 0, "epsilon"), r"results\[0\].epsilon"), epsilon_word=(put("0.1", "results", 0, "epsilon"), r"results\[0\].epsilon"),
    none=(put([], "results"), "0 radii"), radii=(put([dict(epsilon=e, certified=0, vra=0.) for e in range(2000)], "results"), "2000 radii: wanted 1 to 1000"),
    split=(put("all", "split"), "'all': this version knows test, valid, train"), norm=(put("linf", "norm"), "field norm is 'linf': this version knows l2"), pixels=(put("[0,255]", "pixels"), "field pixels"),
    arithmetic=(put("bf16", "arithmetic"), "'bf16': this version knows real, float32, float64"), classes=(lambda said: said["classes"].pop(), "9 classes and 10 counts"),
    surrogate=(put("\ud800", "classes", 0), r"classes\[0\] is '\\ud800'"), drawing=(put(7, "drawing"), "drawing 7 of digits, this version has None"), drawn=(put([], "drawing"), "field drawing"),
    seed=(put("0", "made_with", "seed"), "made_with.seed"), maker=(put([], "made_with"), r"made_with is \[\]: wanted fields"),
    newer=(put(3, "format"), "has format 3, this version reads 2: install a newer liresnet_nb"), older=(put(1, "format"), "has format 1, whose fingerprint named the files of the code: issue it again with `liresnet-certify RUN`"),
    true_format=(put(True, "format"), "field format is True"), no_format=(put(0, "format"), "field format is 0"), half=(put(2., "format"), "field format is 2.0"),
    **{f"file {name!r}": (put(name, "table", "file"), "wanted the plain name of a file beside it") for name in ("../c.csv", "/etc/passwd", "", ".", "..", "x/c.csv", "x\\c.csv", "C:c.csv", "c\0.csv", "c\n.csv")},
    nowhere=(put("nowhere.csv", "table", "file"), "no table of rows .*nowhere.csv"))


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_understood_is_not_checked(honest, tmp_path, capsys, name):
    change, words = STRANGE[name]
    status, line = check(forged(honest, tmp_path, change), capsys)
    assert status == 2 and re.search(words, line) and len(line) < 500, line


def test_no_field_may_be_missing(honest, tmp_path):
    said = json.loads((honest/"c.json").read_text())
    places = [(k,) for k in said if k != "format"]
    places += [(k, i, key) for k, i in (("operators", 3), ("layers", 0), ("results", 1)) for key in said[k][i]]
    places += [(k, key) for k in ("table", "made_with") for key in said[k]]
    assert len(places) == 35
    for place in places:
        with pytest.raises(InputError, match=f"{place[-1]} is missing"): read_claims(forged(honest, tmp_path, without(*place)))
    with pytest.raises(InputError, match="format is missing"): read_claims(forged(honest, tmp_path, without("format")))


def test_who_made_it_is_for_people(honest, tmp_path, capsys):
    assert check(forged(honest, tmp_path, put("a pocket calculator", "made_with", "machine")), capsys)[0] == 0


TEXTS = dict(      # of the JSON file: all status 2
    empty=("", "no certificate that can be checked"), array=("[]", r"the whole is \[\]: wanted fields"), no_fields=("{}", "field format is missing"), number=("5", "the whole is 5: wanted fields"), open=('{"format": 2', "no certificate that can be checked"),
    deep=("["*10**5, "no certificate that can be checked"), deep_field=('{"format": 2, "claim": '+'{"x":'*10**5, "no certificate that can be checked"), behind=(lambda t: t+"{}", "Extra data"), mark=(lambda t: "\ufeff"+t, "no certificate that can be checked"),
    again=(lambda t: t.replace('"images": 450', '"images": 450, "images": 451'), "there twice"), inside=(lambda t: t.replace('"proof": "explicit"', '"proof": "explicit", "proof": "explicit"', 1), "there twice"),
    nan=(lambda t: t.replace('"epsilon": 0.1', '"epsilon": NaN'), "NaN is no number"), infinity=(lambda t: t.replace('"epsilon": 0.1', '"epsilon": Infinity'), "Infinity is no number"),
    overflow=(lambda t: t.replace('"epsilon": 0.1', '"epsilon": 1e400'), r"results\[0\].epsilon is inf"), minus=(lambda t: t.replace('"epsilon": 0.1', '"epsilon": -0'), "results|epsilon"),
    digits=(lambda t: t.replace('"epsilon": 0.1', f'"epsilon": 1{"0"*5000}'), "certificate"), bytes=(lambda t: t.encode().replace(b'"three"', b'"\xff"').replace(b"digits", b"\xff"), "no certificate that can be checked"),
    large=(lambda t: t+" "*2**22, "too large for a certificate"))


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_no_certificates(honest, tmp_path, capsys, name):
    change, words = TEXTS[name]
    text = change((honest/"c.json").read_text()) if callable(change) else change
    (tmp_path/"c.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    (tmp_path/"c.csv").write_bytes((honest/"c.csv").read_bytes())
    status, line = check(tmp_path/"c.json", capsys)
    if name == "minus": assert (status, line[:9]) == (1, "NOT valid")       # JSON's -0 is the whole number 0: another radius
    else: assert status == 2 and re.search(words, line) and len(line) < 500, line


def test_however_deep_a_file_is_nested_it_is_one_line(honest, tmp_path, capsys):
    "At some depth it can be read and not shown."
    for depth in range(300, 1000, 10):
        (tmp_path/"c.json").write_text('{"format": 2, "claim": '+"["*depth+"]"*depth+"}")
        assert check(tmp_path/"c.json", capsys)[0] == 2


# One line of the table changed, its hash made to fit

def line(k, change):
    "Change line k (0 is the header)."
    return lambda lines: [*lines[:k], change(lines[k]), *lines[k+1:]]


def field(n, change, k=8):
    "Change field n of line k: index, label, pred, margin, radius."
    def inside(text):
        parts = text.split(",")
        parts[n] = change(parts[n]) if callable(change) else change
        return ",".join(parts)
    return line(k, inside)


def hidden(lines): return [lines[0], *(f"{k},{l}" for k, l in enumerate(lines[1:-1])), ""]      # pandas takes the first column for its own index


LINES = dict(
    hidden_column=(hidden, 2, "line 2: '0,0,2,3,.* is no row"), sixth=(line(8, lambda l: l+",1"), 2, "line 9"), sixth_everywhere=(lambda ls: [f"{l},1" if l else l for l in ls], 2, "line 1"), fifth=(line(8, lambda l: l.rpartition(",")[0]), 2, "line 9"),
    comma=(line(8, lambda l: l+","), 2, "line 9"), blank_line=(line(8, lambda l: l+"\n"), 2, "line 10"), end=(lambda ls: [*ls, ""], 2, "line 452: '' is no row"), no_end=(lambda ls: ls[:-1], 2, "line 451: .*wanted a line end"),
    nothing=(lambda ls: [""], 2, "line 1"), header=(line(0, lambda l: l.replace("label", "lable")), 2, "line 1: .* wanted index,label,pred,margin,radius"), header_order=(line(0, lambda l: "index,pred,label,margin,radius"), 2, "line 1"),
    header_quoted=(line(0, lambda l: l.replace("index", '"index"')), 2, "line 1"), header_blank=(line(0, lambda l: l+" "), 2, "line 1"), header_twice=(line(0, lambda l: l+"\n"+l), 2, "line 2"), comment=(line(8, lambda l: l+"\n# "), 2, "line 10"),
    mark=(line(0, lambda l: "\ufeff"+l), 2, "line 1: .* wanted ASCII"), windows=(lambda ls: "\r\n".join(ls).encode(), 2, "line 1"), one_return=(line(8, lambda l: l+"\r"), 2, "line 9"), two_lines=(line(8, lambda l: l+"\r"+l), 2, "line 9"),
    latin=(lambda ls: "\n".join(ls).encode().replace(b"0.", b"\xb2.", 1), 2, "line .* wanted ASCII"), zero_byte=(line(8, lambda l: l+"\0"), 2, "line 9"), wide=(field(1, "４"), 2, "line 9: .* wanted ASCII"), arabic=(field(1, "٤"), 2, "wanted ASCII"),
    **{f"radius {text!r}": (field(4, text), 2, "line 9: .* is no row, wanted 7,label,pred,margin,radius") for text in
       ("+0.5", "0x1p3", "1_0.5", " 0.5", "0.5 ", "nan", "NaN", "-0", "-0.0", "-0.5", "-inf", "Infinity", "infinity", "1e400", "0.50", "00.5", ".5", "5", "5.", "1e5", "1e-5", "1E-05", '"0.5"', "", "0,5", "0.1000000000000000055", "1/2", "None")},
    **{f"margin {text!r}": (field(3, text), 2, "line 9") for text in ("inf", "nan", "-0.5", "+0.5", "5")}, **{f"pred {text!r}": (field(2, text), 2, "line 9") for text in ("+4", "04", " 4", "4.0", "4e0", "-4", "0x4", "1_0", "True", "9"*30, "9"*5000)},
    **{f"as {name}": (field(n, spell), 2, "line 9") for name, n, spell in           # the very number, spelled otherwise
       (("plus", 4, "+{}".format), ("blank", 4, " {}".format), ("zero", 4, "{}0".format), ("quoted", 4, '"{}"'.format), ("exponent", 4, "{}e0".format), ("two zeros", 4, "0{}".format), ("plus margin", 3, "+{}".format),
        ("wide digits", 1, lambda y: "".join(chr(ord(c)+0xFEE0) for c in y)), ("plus label", 1, "+{}".format), ("decimal label", 1, "{}.0".format))},
    index=(field(0, "8"), 2, "line 9"), index_wide=(field(0, "07"), 2, "line 9"), index_negative=(field(0, "-7"), 2, "line 9"), order=(lambda ls: [*ls[:8], ls[9], ls[8], *ls[10:]], 2, "line 9"), again=(line(8, lambda l: l+"\n"+l), 2, "line 10"),
    one_more=(lambda ls: [*ls[:-1], "450"+ls[-2][3:], ""], 1, "the table has 451 rows, there are 450 images"), one_less=(lambda ls: [*ls[:-2], ""], 1, "449 rows"), no_rows=(lambda ls: [ls[0], ""], 1, "0 rows"),
    many=(lambda ls: [*ls[:-1], *(f"{k},0,0,1.0,1.0" for k in range(450, 10**6)), ""], 2, "bytes: too large for a table of rows"),
    raised=(field(4, lambda r: repr(1.1*float(r))), 1, "row 7 says"), hair=(field(4, lambda r: repr(float(r)*(1+5e-9)+5e-9)), 1, "row 7"), shrunk=(field(4, lambda r: repr(.99*float(r)+1e-3)), 1, "row 7"), infinite=(field(4, "inf"), 1, "radius inf"),
    tiny=(field(4, "1e-05"), 1, "row 7"), label=(field(1, lambda y: str((int(y)+1) % 10)), 1, "row 7"), pred=(field(2, lambda y: str((int(y)+1) % 10)), 1, "row 7"), no_class=(field(2, "10"), 1, "row 7"), margin=(field(3, lambda m: repr(2*float(m))), 1, "row 7"),
    everywhere=(lambda ls: [ls[0], *(field(4, lambda r: repr(float(r)*(1+1e-8)+1e-8), 0)([l])[0] for l in ls[1:-1]), ""], 1, "row 0"))


@pytest.mark.parametrize("name", LINES)
def test_tables_as_their_enemy_writes_them(honest, tmp_path, capsys, name):
    rewrite, wanted, words = LINES[name]
    status, said = check(forged(honest, tmp_path, rewrite=rewrite), capsys)
    assert status == wanted and re.search(words, said) and len(said) < 600, said


def test_a_table_that_was_changed_is_not_valid_and_one_that_is_gone_not_checked(honest, tmp_path, capsys):
    file = forged(honest, tmp_path)
    text = (tmp_path/"c.csv").read_text()
    (tmp_path/"c.csv").write_text(text.replace("0.", "1.", 1))
    assert check(file, capsys) == (1, f"NOT valid: {tmp_path/'c.csv'} was changed after the certificate was written\n")
    with pytest.raises(Untrue, match="was changed"): read_certificate(file)
    (tmp_path/"c.csv").unlink()
    for kind in ("gone", "folder", "fifo", "link", "sparse"):
        if kind == "folder": (tmp_path/"c.csv").mkdir()
        if kind == "fifo": os.mkfifo(tmp_path/"c.csv")
        if kind == "link": (tmp_path/"c.csv").symlink_to("/dev/zero")
        if kind == "sparse":
            with open(tmp_path/"c.csv", "wb") as f: f.truncate(2**40)
        status, said = check(file, capsys)
        assert status == 2 and ("too large for a table" if kind == "sparse" else "no table of rows") in said, said
        if kind != "gone": (tmp_path/"c.csv").rmdir() if kind == "folder" else (tmp_path/"c.csv").unlink()
    with open(tmp_path/"big.json", "wb") as f: f.truncate(2**40)
    os.mkfifo(tmp_path/"fifo.json")
    for name in ("big.json", "fifo.json", "", "nowhere.json"): assert check(tmp_path/name, capsys)[0] == 2
    put(10**12, "images")(claims := read_claims(file))
    with open(tmp_path/"c.csv", "wb") as f: f.truncate(2**31)
    with pytest.raises(InputError, match="at most 1,073,741,824"): read_rows(file, claims)


def test_a_proof_that_would_not_fit_is_no_verdict(honest, tmp_path, capsys, monkeypatch):
    from liresnet_nb import proofs
    monkeypatch.setattr(proofs, "HELD", 1000)
    status, said = check(honest/"c.json", capsys)
    assert status == 2 and "layer 3 (LinearResidual): an explicit proof, of a matrix 128 × 128, would hold" in said


def test_what_comes_first(honest, monkeypatch):
    "Another model, other images, a foreign table are named before anything is proved or evaluated."
    run, task = load_run(SMALL), load_task("digits")
    monkeypatch.setattr(GloroNet, "pair_bound", lambda *a, **k: pytest.fail("proved something before comparing hashes"))
    other = load_run(SMALL)
    other.model.head.bias.data[0] += 1e-3
    assert "another model" in str(check_certificate(honest/"c.json", other, task, progress=False))
    moved = dataclasses.replace(task, test=dataclasses.replace(task.test, raw=task.test.raw.flip(3)))
    assert "other images" in str(check_certificate(honest/"c.json", run, moved, progress=False))
    fewer = dataclasses.replace(task, test=task.test.subset(slice(1, 450)))
    assert "images says 450, found 449" in str(check_certificate(honest/"c.json", run, fewer, progress=False))
    renamed = dataclasses.replace(run, classes=tuple("0123456798"))
    assert "class 8 is '8' in the certificate, '9' in the run" in str(check_certificate(honest/"c.json", renamed, task, progress=False))


# What is written

def test_a_file_claims_no_more_than_was_proved_and_is_written_as_it_is_read(tmp_path):
    run, task = load_run(SMALL), load_task("digits")
    task = dataclasses.replace(task, test=task.test.subset(slice(0, 60)))
    for arithmetic in ("real", "float32"):
        result = evaluate(run, task, [.3, .1, .3], progress=False, arithmetic=arithmetic)
        said = write_certificate(tmp_path/"c.json", tmp_path/"c.csv", result, run, task)
        read, rows = read_certificate(tmp_path/"c.json")
        assert read == said and [r["epsilon"] for r in said["results"]] == [.3, .1] and rows.equals(claimed_rows(result))
        proved, less = result.table.radius, certificate.TOLERANCE[arithmetic]
        assert ((rows.radius < proved) | (proved == 0)).all() and (rows.radius >= proved*(1-less)-1.01*less).all()
        assert (tmp_path/"c.csv").read_bytes().count(b"\r") == 0 and (tmp_path/"c.csv").read_text() == table_text(rows)
        verdict = check_certificate(tmp_path/"c.json", run, task, progress=False)
        assert verdict and verdict.valid and verdict.claimed in str(verdict) and f"{arithmetic} run" in verdict.reason or arithmetic == "real"
        result.table.loc[3, "radius"] = math.inf
        assert claimed_rows(result).radius[3] == math.inf and (claimed_rows(result).radius >= 0).all()


def test_what_is_not_written(tmp_path):
    run, task = load_run(SMALL), load_task("digits")
    task = dataclasses.replace(task, test=task.test.subset(slice(0, 60)))
    result = evaluate(run, task, .3, progress=False)
    def refused(words, result=result, run=run, task=task, path=tmp_path/"c.json", table=tmp_path/"c.csv"):
        with pytest.raises(InputError, match=words): write_certificate(path, table, result, run, task)
    (tmp_path/"sub").mkdir()
    refused("two names", table=tmp_path/"c.json"); refused("wanted one folder", table=tmp_path/"sub"/"c.csv"); refused("plain name", table=tmp_path/"c\n.csv")
    refused("not those of the 59 test images", task=dataclasses.replace(task, test=task.test.subset(slice(1, 60))))
    refused("not those of", result=dataclasses.replace(result, table=result.table.drop(index=5)))
    refused("class 0 is '0' in the run, '1' in the task", task=dataclasses.replace(task, classes=tuple("1023456789")))
    refused("0 radii", result=dataclasses.replace(result, epsilons=()))
    odd = tuple("012345678")+("\udcff",)
    refused(r"\\udcff|utf-8", run=dataclasses.replace(run, classes=odd), task=dataclasses.replace(task, classes=odd))
    refused("learned from the validation images", task=dataclasses.replace(task, held_out="valid"))
    assert [p.name for p in tmp_path.iterdir()] == ["sub"]


def test_numbers_of_all_sizes_are_read_back(tmp_path):
    values = [5e-324, 1e-5, 1e-4, .1, 1/3, 1., 1e15, 1e16, 123456789.125, math.pi*1e22, 1.7976931348623157e308]
    rows = pd.DataFrame(dict(index=range(len(values)), label=0, pred=10**9, margin=values, radius=values[:-1]+[math.inf]))
    assert certificate._rows(table_text(rows).encode(), "x").equals(rows.astype(dict(index="int64", label="int64", pred="int64")))


def test_a_network_without_operators_and_a_constant_one(tmp_path):
    task = load_task("digits")
    task = dataclasses.replace(task, test=task.test.subset(slice(0, 10)))
    constant = load_run(SMALL)
    constant.model.body[5].weight.data.zero_()
    torch.manual_seed(1)
    flat = dataclasses.replace(constant, model=GloroNet([Flatten()], NormalizedHead(64, 10), (1, 8, 8)))
    for run in (constant, flat):
        write_certificate(tmp_path/"c.json", tmp_path/"c.csv", evaluate(run, task, .3, progress=False), run, task)
        assert check_certificate(tmp_path/"c.json", run, task, progress=False)


# Which images

def test_the_images_that_a_certificate_speaks_of(tmp_path):
    run = load_run(SMALL)
    task, valid = load_task("digits"), load_task("digits", held_out="valid")
    assert judged_on(task, "test") is task and judged_on(task, "train").test is task.train and judged_on(valid, "train").held_out == "train"
    with pytest.raises(InputError, match="its valid images are not there"): judged_on(task, "valid")
    with pytest.raises(InputError, match="split 'exam'"): judged_on(task, "exam")
    chooser = dataclasses.replace(run, config=dataclasses.replace(run.config, held_out="valid"))
    assert judged_task(chooser).held_out == "valid" and len(judged_task(chooser).test) == len(valid.test)
    assert judged_task(chooser, split="test").test.fingerprint() == task.test.fingerprint()      # no run learns from those
    assert judged_task(chooser, split="train").test.fingerprint() == valid.train.fingerprint()
    for words, given in (("trained with held_out='test'", (run, None, "valid")), ("trained with held_out='test'", (run, valid)), ("what it trained on is not what is left", (run, valid, "train")),
                         ("what it trained on is not what is left", (chooser, task, "train")), ("its test images are not there", (chooser, valid, "test"))):
        with pytest.raises(InputError, match=words): judged_task(*given)
    small = dataclasses.replace(valid, train=valid.train.subset(slice(0, 20)), test=valid.test.subset(slice(0, 20)))
    for split in ("valid", "train"):
        part = judged_on(small, split)
        write_certificate(tmp_path/"c.json", tmp_path/"c.csv", evaluate(chooser, part, .1, progress=False), chooser, part)
        assert f"of 20 {dict(valid='validation', train='training')[split]} images" in str(check_certificate(tmp_path/"c.json", chooser, small, progress=False))
    with pytest.raises(InputError, match="what it trained on is not what is left"): check_certificate(tmp_path/"c.json", chooser, task, progress=False)


def test_a_stream_of_files_is_certified_on_what_it_was_trained_on(tmp_path):
    write_imagenet(tmp_path, n_classes=3, train=2, val=1, size=32)
    task = load_task("imagenet", data_dir=str(tmp_path), size=32)
    run = load_run(SMALL)
    torch.manual_seed(0)
    model = GloroNet([Flatten(), Dense(3*32*32, 8)], NormalizedHead(8, 3), (3, 32, 32))
    run = dataclasses.replace(run, model=model, classes=task.classes)
    part = judged_on(task, "train")
    assert isinstance(part.test, StreamSet)
    write_certificate(tmp_path/"c.json", tmp_path/"c.csv", evaluate(run, part, .1, progress=False), run, part)
    assert "of 6 training images of imagenet (3 classes)" in str(check_certificate(tmp_path/"c.json", run, task, progress=False))
    (tmp_path/"train"/task.classes[1]/"train_0001.JPEG").unlink()
    again = load_task("imagenet", data_dir=str(tmp_path), size=32)
    assert "counts says 2, found 1" in str(check_certificate(tmp_path/"c.json", run, again, progress=False)) or "images says 6" in str(check_certificate(tmp_path/"c.json", run, again, progress=False))


# The command

def test_the_command_writes_checks_and_answers(tiny_run, tmp_path, capsys):
    folder = str(tiny_run.path)
    assert certificate.main([folder, "--epsilon", "0.3", "36/255", "--device", "cpu", "--arithmetic", "float32"]) == 0
    out = capsys.readouterr().out
    assert "float32 run of model.plain" in out and "0.1412" in out and "VRA (proved)" in out and "product" in out and "450 test images" in out
    rows, file = pd.read_csv(tiny_run.path/"certified.csv"), tiny_run.path/"certificate.json"
    assert len(rows) == 450 and list(rows.columns) == ["index", "label", "pred", "margin", "radius"]
    assert check(file, capsys, folder)[0] == 0
    assert check(file, capsys, "digits") == (1, "NOT valid: the certificate is about another model, or other weights\n")
    for bad in (["--check", str(file)], ["--check", "nowhere", "--run", folder], [], [folder, "--run", folder], [folder, "--arithmetic", "bf16"], [folder, "--proof", "guess"],
                [folder, "--certificate", "/no/dir/x.json"], [folder, "--certificate", "/proc/x.json"], [folder, "--table", str(tmp_path/"x"), "--certificate", str(tmp_path/"x")],
                ["digits", "--table", str(tmp_path/"x.json")], ["--check", str(file), "--run", folder, "--epsilon", "5", "--arithmetic", "real"], ["--check", str(file), "--run", folder, "--split", "test"],
                ["--check", str(tiny_run.path), "--run", folder], [folder, "--table", "/no/dir/x.csv"], [folder, "--table", "/"], [folder, "--epsilon", "nan"], ["nowhere"], [folder, "--epsilon", "-1"],
                [folder, "--device", "abacus"], [folder, "--split", "valid"], [folder, "--split", "exam"], [folder, "--table", str(tmp_path/"t.csv"), "--certificate", str(tiny_run.path/"t.json")]):
        assert certificate.main(bad) == 2 and capsys.readouterr().err.count("\n") == 1, bad
    assert certificate.main([folder, "--device", "cpu", "--proof", "tight", "--table", str(tmp_path/"t.csv")]) == 0
    assert certificate.main(["--check", str(tmp_path/"t.json"), "--run", folder, "--device", "cpu"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.json"]


def test_the_command_certifies_the_training_images_beside_the_others(tiny_run, capsys):
    folder, before = str(tiny_run.path), {p.name for p in tiny_run.path.iterdir()}
    assert certificate.main([folder, "--split", "train", "--device", "cpu"]) == 0
    assert "(1347 train images)" in capsys.readouterr().out
    status, said = check(tiny_run.path/"certificate-train.json", capsys, folder)
    assert status == 0 and "of 1347 training images of digits (10 classes)" in said
    assert {p.name for p in tiny_run.path.iterdir()} == before | {"certificate-train.json", "certified-train.csv"}


def test_data_that_are_missing_are_no_verdict(honest, tmp_path, capsys):
    from liresnet_nb.train import read_checkpoint, save_checkpoint
    tensors, meta = read_checkpoint(SMALL)
    meta = {k: v for k, v in meta.items() if k not in ("format", "version", "torch", "model", "sha256")} | dict(config=meta["config"] | dict(task="folder", data_dir=str(tmp_path/"gone")))
    save_checkpoint(tmp_path/"moved.safetensors", load_run(SMALL).model, meta)
    status, said = check(honest/"c.json", capsys, tmp_path/"moved.safetensors")
    assert status == 2 and "folder not found" in said


def test_an_error_of_ours_never_looks_like_not_valid(honest, capsys, monkeypatch):
    def broken(*a, **k): raise ZeroDivisionError
    monkeypatch.setattr(certificate, "check_certificate", broken)
    assert certificate.main(["--check", str(honest/"c.json"), "--run", str(SMALL)]) == 2
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_nobody_has_to_read_the_answer(honest):
    "A broken pipe is never 1: it has the status that a shell gives it."
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "liresnet_nb.certificate", "--check", honest/"c.json", "--run", SMALL, "--device", "cpu"]
    assert subprocess.run(words, stdout=writing, stderr=subprocess.DEVNULL).returncode == 141
    os.close(writing)


# What earlier versions wrote

def test_a_checkpoint_of_old_loads_and_answers_as_it_did(digits):
    run, rows = load_run(OLD/"checkpoint.safetensors"), pd.read_csv(OLD/"certified.csv")
    found = certify(run.model, digits.test.images(), .3)
    clear = rows.margin > 1e-3
    assert clear.sum() > 440 and (found.pred[clear] == rows.pred[clear]).all() and (found.radius[clear] >= rows.radius[clear]*(1-1e-4)).all()
    assert run.classes == tuple("0123456789") and len(run.history) == 8 and run.config.model == "L1W8"
    assert load_pretrained("digits").config.epochs == 120


def test_a_certificate_of_old_says_that_it_has_to_be_issued_again(capsys):
    status, said = check(OLD/"certificate.json", capsys)
    assert status == 2 and said == f"liresnet-certify: {OLD/'certificate.json'} has format 1, whose fingerprint named the files of the code: issue it again with `liresnet-certify RUN`\n"
