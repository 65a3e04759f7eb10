"Tasks, augmentation, folders made on the spot, and what happens when files are missing or broken."
import csv
import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from itertools import product
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from liresnet_nb import data
from liresnet_nb.core import InputError, generator
from liresnet_nb.data import (DRAWING, GLYPH_CLASSES, Augment, ImageSet, StreamSet, Task, class_subset, confusions, draw_glyphs, drawing_of, epoch_order, glyph_atlas, load_task,
                              portable_bytes, portable_noise, render_glyphs, split_valid, tell_drawing, write_imagenet, write_shards)
from liresnet_nb.demos.moons import moons_task


def make_folder(root, parts=("train", "test"), classes=("ant", "bee", "cow"), n=5, size=12, ext="png", inner=""):
    for part in parts:
        for k, c in enumerate(classes):
            (root/part/c/inner).mkdir(parents=True)
            for i in range(n): Image.new("RGB", (size, size), (40*k, 10*i, 100)).save(root/part/c/inner/f"{i}.{ext}")
    return root


def test_digits_are_the_split_that_is_documented(digits):
    assert (len(digits.train), len(digits.test), digits.image_shape, digits.n_classes, digits.epsilon) == (1347, 450, (1, 8, 8), 10, 0.3)
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    X, y = load_digits(return_X_y=True)
    _, x, _, t = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
    assert torch.equal(digits.test.images().flatten(1).double(), torch.from_numpy(x)/16) and torch.equal(digits.test.labels, torch.from_numpy(t))


def test_validation_comes_out_of_training_and_never_touches_the_test_set(digits):
    valid = load_task("digits", held_out="valid")
    assert len(valid.train)+len(valid.test) == 1347 and valid.held_out == "valid"
    seen = {bytes(r.numpy().tobytes()) for r in digits.train.raw}
    assert all(bytes(r.numpy().tobytes()) in seen for r in valid.test.raw)
    assert torch.bincount(valid.test.labels).min() >= 19


def test_images_are_floats_in_the_unit_interval(digits):
    for images, _, _ in digits.train.epoch(300, 0, 0, Augment(2, True)):
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1


@given(st.integers(0, 3), st.booleans(), st.integers(4, 9), st.integers(0, 2**31))
def test_augmentation_of_a_batch_is_that_of_each_image(shift, flip, size, seed):
    g = torch.Generator().manual_seed(seed)
    images, draws = torch.rand(5, 2, size, size, generator=g), torch.rand(5, 3, generator=g)
    out = Augment(shift, flip)(images, draws)
    for x, u, got in zip(images, draws, out):
        dy, dx = (int(v*(2*shift+1)) for v in u[:2])
        want = torch.nn.functional.pad(x, (shift,)*4)[:, dy:dy+size, dx:dx+size]
        assert torch.equal(got, want.flip(2) if flip and u[2] < 0.5 else want)


def test_augmentation_depends_on_seed_epoch_and_image_not_on_who_draws_it(digits):
    def seen(batch, world, epoch=2, seed=7):
        items = [(int(i), x) for r in range(world) for xb, _, index in digits.train.epoch(batch, seed, epoch, Augment(2), r, world) for x, i in zip(xb, index)]
        assert len(items) == 1347, "an image was seen twice, or not at all"
        return dict(items)
    one, three = seen(256, 1), seen(90, 3)
    assert one.keys() == three.keys() and len(one) == 1347
    assert all(torch.equal(one[i], three[i]) for i in one)
    assert any(not torch.equal(one[i], x) for i, x in seen(256, 1, epoch=3).items())
    assert any(not torch.equal(one[i], x) for i, x in seen(256, 1, seed=8).items())
    assert not torch.equal(epoch_order(50, 0, 0)[0], epoch_order(50, 0, 1)[0])


def test_fingerprint_tells_data_apart(digits):
    other = digits.train.subset(slice(None)).raw.clone()
    other[3, 0, 2, 2] += 1
    assert digits.train.fingerprint() == load_task("digits").train.fingerprint() != ImageSet(other, digits.train.labels, 16.).fingerprint()


def test_what_a_task_refuses(digits):
    bad = lambda **change: dataclasses.replace(digits, **change)
    labels = digits.test.labels
    for change, words in [(dict(test=dataclasses.replace(digits.test, labels=labels+5)), "labels run from 5 to 14: wanted 0 to 9"), (dict(classes=("a",)), "at least two"),
                          (dict(test=draw_glyphs(10, 2)), "wanted one shape"), (dict(test=digits.test.subset(slice(0, 0))), "empty part")]:
        with pytest.raises(InputError, match=words): bad(**change)
    with pytest.raises(InputError, match="labels are torch.uint8"): bad(test=dataclasses.replace(digits.test, labels=labels.to(torch.uint8)))
    with pytest.raises(InputError, match="labels run from -1"): bad(train=dataclasses.replace(digits.train, labels=digits.train.labels-1))


def test_what_a_set_of_images_refuses(digits):
    pixels, y = digits.test.images(slice(0, 4)), digits.test.labels[:4]
    assert torch.equal(ImageSet(pixels, y, 1.).images(), pixels)          # floats are welcome with scale 1
    for raw, labels, scale, words in [(pixels*2, y, 1., "pixels from"), (pixels/0, y, 1., "NaN"), (pixels, y, 255., "wanted uint8, or float with scale=1"), (pixels[0], y, 1., "wanted .N,C,H,W."),
                                      (pixels, y[:2], 1., "2 labels"), (pixels, y, 0., "scale is 0"), (pixels, y, float("nan"), "scale is nan"), (digits.test.raw[:4]*9, y, 16., "white is 16")]:
        with pytest.raises(InputError, match=words): ImageSet(raw, labels, scale)


MADE = {   # changed by a new drawing, and by nothing else
    "atlas": "5967270dd0aada07",
    "bytes": "5c54850a5bcc249a",
    "noise": "344a50488c8742fa",
    "glyphs, 16 pixels": "08cfc63bbaafb9d6",
    "glyphs, 32 pixels": "9b487da0a5119213",
    "task of glyphs": "8b3b463456c7df82",
    "moons": "44e484a7ac163f05",
    "digits": "008bf09cbacaa04d",
    "validation split of digits": "26a6d56299d0cee0",
    "order and draws": "4d6144f1b0ee266a",
    "class subset": "e3d68d7353171e88",
    "imagenet, pixels": "41d63ed8e340854c",
    "imagenet, files": "b811ad3df5276c91",
    "imagenet, shards": "ea0a8f0a24be266a",
}


def sha(*parts):
    "Of tensors, bytes and what can be printed"
    h = hashlib.sha256()
    for p in parts: h.update(p.contiguous().numpy().tobytes() if isinstance(p, torch.Tensor) else p if isinstance(p, bytes) else str(p).encode())
    return h.hexdigest()[:16]


def made_imagenet(folder):
    "Pixels before they become JPEG files, the files, and the order in which they are packed"
    pixels, save = [], Image.Image.save
    with mock.patch.object(Image.Image, "save", lambda image, *a, **k: (pixels.append(image.tobytes()), save(image, *a, **k))): write_imagenet(folder/"a", 202, 1, 1, 48)
    files = [p.read_bytes() for p in sorted(folder.rglob("*.JPEG"))]
    names = []
    for tar in write_shards(folder/"a"/"train", folder/"b", per_shard=90):
        with tarfile.open(tar) as t: names += t.getnames()
    return {"imagenet, pixels": sha(*pixels), "imagenet, files": sha(*files), "imagenet, shards": sha(names)}


def made():
    "A hash of everything that the package makes or draws lots for, small"
    digits, moons = load_task("digits"), moons_task()
    held = split_valid(digits.train)
    with tempfile.TemporaryDirectory() as folder: imagenet = made_imagenet(Path(folder))
    return {"atlas": sha(glyph_atlas()), "bytes": sha(portable_bytes("a", 1, n=1000)), "noise": sha(portable_noise("a", 1, shape=(50, 3, 4))),
            "glyphs, 16 pixels": sha(draw_glyphs(50, 6).raw), "glyphs, 32 pixels": sha(draw_glyphs(220, 2, 32, "test", 3).raw),
            "task of glyphs": sha(*(part.fingerprint() for task in (load_task("glyphs"), load_task("glyphs", 12, 32, held_out="valid")) for part in (task.train, task.test))),
            "moons": sha(moons.train.fingerprint(), moons.test.fingerprint()), "digits": sha(digits.train.fingerprint(), digits.test.fingerprint()),
            "validation split of digits": sha(held[0].fingerprint(), held[1].fingerprint()), "order and draws": sha(*epoch_order(1347, 3, 7), *epoch_order(10, 0, 0)),
            "class subset": sha(class_subset(1000, 100), class_subset(200, 7, seed=1)), **imagenet}


def test_what_is_made_is_what_was_recorded():
    "If only 'atlas' and what hangs on it differ, the sheet of glyphs was changed; if 'atlas' is alike, the drawing was. Either is a new `DRAWING`."
    assert made() == MADE and DRAWING == 2


def test_what_is_made_is_the_same_with_other_instructions():
    "Plain instructions, AVX2 on two threads, and MKL's and JPEG's slow paths: a process each, all at once"
    code = f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from test_data import made; print(json.dumps(made()))"
    ways = dict(ATEN_CPU_CAPABILITY="default", OMP_NUM_THREADS="1"), dict(ATEN_CPU_CAPABILITY="avx2", OMP_NUM_THREADS="2"), dict(MKL_CBWR="COMPATIBLE", JSIMD_FORCENONE="1", NPY_DISABLE_CPU_FEATURES="AVX2")
    how = dict(cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    asked = [(way, subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], env=os.environ | way, **how)) for way in ways]
    for way, process in asked:
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and json.loads(said) == MADE, way


def by_whole_numbers(glyph, pose, size):
    "What `_draw` computes, without a float"
    (rx, ry), (dx, dy), (sx, sy) = pose.tolist()
    k, total = 64//size, [[0]*size for _ in range(size)]
    at = lambda x, y: glyph[y][x] if 0 <= x < 64 and 0 <= y < 64 else 0
    place = lambda i, j, right, down, shift: (right*(2*j-63)+4096 >> 13)+(down*(2*i-63)+4096 >> 13)+(shift+2048 >> 12)+504
    for i, j in product(range(64), repeat=2):
        (x, u), (y, v) = divmod(place(i, j, rx, dx, sx), 16), divmod(place(i, j, ry, dy, sy), 16)
        total[i//k][j//k] += (16-u)*(16-v)*at(x, y)+u*(16-v)*at(x+1, y)+(16-u)*v*at(x, y+1)+u*v*at(x+1, y+1)
    return torch.tensor(total)*16//k**2


@pytest.mark.parametrize("size", [16, 32])
def test_drawing_rounds_nothing(size):
    words = torch.tensor([[0]*6, [65535]*6, [0, 65535]*3, portable_bytes("poses", n=6).tolist(), [32768]*6])
    glyphs, poses = glyph_atlas()[[7, 41, 90, 150, 219], [0, 3, 6, 10, 15]], data._poses(words)
    drawn = data._draw(glyphs, poses, size)
    for g, p, found in zip(glyphs, poses, drawn): assert torch.equal(by_whole_numbers(g.tolist(), p, size), found)


def test_a_pose_turns_shears_scales_and_shifts():
    "Against floats and a sine: the jitter is what its constants say."
    words = portable_bytes("poses", n=600).long().view(100, 6)*257
    u = 2*(words.double()/65535)-1
    angle = 2*(data.ROTATION*u[:, 0]).atan()
    assert abs(angle.abs().max()-np.pi/18) < 0.001
    cos, sin, shear, (wide, high) = angle.cos(), angle.sin(), data.SHEAR*u[:, 1], (1+data.SCALE*u[:, 2:4]).T
    wanted = torch.stack([torch.stack([cos, sin], 1)*wide[:, None], torch.stack([shear*cos-sin, shear*sin+cos], 1)*high[:, None], 64*data.SHIFT*u[:, 4:]], 1)
    assert (data._poses(words)/data.ONE-wanted).abs().max() < 1e-4


def test_noise_is_nearly_normal():
    noise = portable_noise("bell", shape=(40_000,)).double()/256
    for k, wanted in ((1, 0), (2, 1), (3, 0), (4, 3-1.2/12)): assert abs((noise**k).mean()-wanted) < 0.06      # over five standard errors
    assert torch.equal(portable_noise("bell", shape=(10, 2, 3))[:4], portable_noise("bell", shape=(4, 2, 3)))


def test_the_sheet_of_glyphs_is_that_of_the_fonts():
    "Another FreeType moves some grey levels; another font, class or order moves far more (two classes differ by 40 and more)."
    apart = (render_glyphs(GLYPH_CLASSES).int()-glyph_atlas()[..., 8:56, 8:56].int()).abs().float().mean((2, 3))
    assert apart.shape == (len(GLYPH_CLASSES), len(data.FONTS)) and apart.mean() < 1 and (apart < 8).float().mean() > 0.99
    assert not glyph_atlas()[:, :, [*range(8), *range(56, 64)]].any() and not glyph_atlas()[..., [*range(8), *range(56, 64)]].any()


def test_a_drawing_that_is_gone_is_one_line():
    assert load_task("glyphs", drawing=DRAWING).drawing == load_task("glyphs").drawing == moons_task().drawing == DRAWING and load_task("digits").drawing is None
    for name, drawing, words in (("glyphs", 1, "drawing is 1: it differed from processor to processor and is gone .*stay readable.*train again"), ("glyphs", 3, "drawing is 3: wanted 2"),
                                 ("digits", 2, "digits is not drawn: leave drawing out")):
        with pytest.raises(InputError, match=words) as e: load_task(name, drawing=drawing)
        assert "\n" not in str(e.value)
    assert [drawing_of("glyphs"), drawing_of("glyphs", 2), drawing_of("digits"), drawing_of("digits", 2)] == [1, 2, None, None]


def test_an_older_drawing_is_told_once(capsys):
    tell_drawing.cache_clear()
    for drawing in (None, DRAWING, 1, 1, None): tell_drawing(drawing)
    assert capsys.readouterr().out.count("drawing 1 of the glyphs") == 1


def test_glyphs_are_deterministic_nested_and_drawn_apart():
    a, b = draw_glyphs(20, 12), draw_glyphs(20, 12)
    assert torch.equal(a.raw, b.raw) and a.raw.dtype == torch.uint8 and len(a) == 240
    few = draw_glyphs(10, 12)
    assert torch.equal(few.raw.reshape(12, 10, -1), a.raw.reshape(12, 20, -1)[:, :10])
    assert torch.equal(draw_glyphs(20, 5).raw, a.raw[:100])
    assert not torch.equal(draw_glyphs(20, 12, split="test").raw, a.raw) and not torch.equal(draw_glyphs(20, 12, seed=1).raw, a.raw)
    assert draw_glyphs(3, 2, size=32).image_shape == (1, 32, 32)
    assert len(set(data.GLYPH_CLASSES)) == len(data.GLYPH_CLASSES) >= 200


def test_no_two_glyph_classes_look_alike():
    "Nearest neighbour over all classes: no pair is confused more often than one time in four (look-alikes: one in two)."
    m, n = 200, 25
    counts = confusions(draw_glyphs(m, 60), draw_glyphs(m, n, split="test"))
    wrong = counts-counts.diag().diag()
    worst = int((wrong+wrong.T).argmax())
    assert (wrong+wrong.T).max() <= 0.25*2*n, f"{data.GLYPH_CLASSES[worst//m]} and {data.GLYPH_CLASSES[worst % m]}"
    assert counts.diag().sum()/counts.sum() > 0.8


def test_a_look_alike_would_be_noticed(monkeypatch):
    monkeypatch.setattr(data, "GLYPH_CLASSES", "AΑBC")
    monkeypatch.setattr(data, "glyph_atlas", lambda: torch.nn.functional.pad(render_glyphs("AΑBC"), (8,)*4))
    wrong = (counts := confusions(draw_glyphs(4, 60), draw_glyphs(4, 25, split="test")))-counts.diag().diag()
    assert (wrong+wrong.T).max() > 0.25*50


def test_class_subsets_are_nested_and_depend_on_the_seed():
    assert class_subset(1000, 100) == class_subset(1000, 200)[:100] != class_subset(1000, 100, seed=2022)
    assert class_subset(5, None) == list(range(5))
    for bad in (1, 0, 6):
        with pytest.raises(InputError, match="wanted 2 to 5"): class_subset(5, bad)


def test_a_folder_is_a_task(tmp_path):
    task = load_task("folder", data_dir=make_folder(tmp_path))
    assert (len(task.train), task.image_shape, task.classes) == (15, (3, 12, 12), ("ant", "bee", "cow"))
    assert load_task("folder", data_dir=tmp_path, size=8).image_shape == (3, 8, 8)
    assert len(load_task("folder", data_dir=tmp_path, n_classes=2).classes) == 2


def test_tiny_imagenet_layout(tmp_path):
    make_folder(tmp_path, parts=("train",), size=64, ext="JPEG", inner="images", n=3)
    (tmp_path/"val"/"images").mkdir(parents=True)
    with open(tmp_path/"val"/"val_annotations.txt", "w", newline="") as f:
        w = csv.writer(f, delimiter="\t")
        for i, c in enumerate(["bee", "ant", "cow", "bee"]):
            Image.new("RGB", (64, 64), (9, 9, 9)).save(tmp_path/"val"/"images"/f"val_{i}.JPEG")
            w.writerow([f"val_{i}.JPEG", c, 0, 0, 62, 62])
    task = load_task("tiny-imagenet", data_dir=tmp_path)
    assert (len(task.train), task.image_shape, task.test.labels.tolist()) == (9, (3, 64, 64), [1, 0, 2, 1])


def test_imagenet_streams_with_the_same_interface(tmp_path):
    make_folder(tmp_path, parts=("train", "val"), size=40, ext="JPEG", n=8)
    task = load_task("imagenet", data_dir=tmp_path, size=32)
    assert isinstance(task.train, StreamSet) and task.image_shape == (3, 32, 32)
    got = [(x.shape, y.tolist(), i.tolist()) for x, y, i in task.test.batches(5)]
    assert sum((i for _, _, i in got), []) == list(range(24)) and got[0][0] == (5, 3, 32, 32)
    one = {int(i): x for xb, _, index in task.train.epoch(8, 0, 1, Augment(flip=True)) for x, i in zip(xb, index)}
    two = {int(i): x for r in (0, 1) for xb, _, index in task.train.epoch(8, 0, 1, Augment(flip=True), r, 2) for x, i in zip(xb, index)}
    assert one.keys() == two.keys() == set(range(24)) and all(torch.equal(one[i], two[i]) for i in one)
    valid = split_valid(task.train)
    assert len(valid[1]) == 4
    with pytest.raises(InputError, match="15 % of 6 images"): split_valid(task.train.subset([0, 1, 8, 9, 16, 17]))


def pack(root):
    "The same files in shards"
    for part in ("train", "val"): write_shards(root/"a"/part, root/"b"/part, per_shard=5)
    return [load_task("imagenet", data_dir=str(root/k), size=32) for k in "ab"]


def test_shards_are_the_folder_they_were_packed_from(tmp_path, monkeypatch):
    import webdataset
    write_imagenet(tmp_path/"a", 3, 4, 1, 40)
    folders, shards = pack(tmp_path)
    assert len(list((tmp_path/"b"/"train").glob("*.tar"))) == 3 and shards.classes == folders.classes
    assert shards.train.fingerprint() == folders.train.fingerprint() != shards.test.fingerprint()
    for a, b in zip(folders.train.epoch(5, 0, 1, Augment(flip=True)), shards.train.epoch(5, 0, 1, Augment(flip=True))):
        assert all(torch.equal(x, y) for x, y in zip(a, b))
    packed = [str(p) for p in sorted((tmp_path/"b"/"train").glob("*.tar"))]                # the library that the format is of
    seen = {r["__key__"]: (int(r["cls"]), r["jpeg"]) for r in webdataset.WebDataset(packed, shardshuffle=False)}
    assert seen == {f"{p.parent.name}/{p.stem}": (y, p.read_bytes()) for p, y in zip(folders.train.files, folders.train.labels.tolist())}
    assert list(seen) != sorted(seen)
    with pytest.raises(InputError, match="b/train is not empty"): write_shards(tmp_path/"a"/"train", tmp_path/"b"/"train")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.setattr(webdataset.ShardWriter, "write", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"): write_shards(tmp_path/"a"/"train", tmp_path/"c"/"train")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before and not list(tmp_path.glob("c/*")), "half a set of shards"


def test_shards_of_others_and_shards_that_change(tmp_path):
    jpeg = (write_imagenet(tmp_path/"a", 2, 1, 1, 32), (tmp_path/"a"/"train"/"n00000001"/"train_0000.JPEG").read_bytes())[1]

    def tar(path, **files):
        with tarfile.open(path, "w") as t:
            for name, content in files.items():
                info = tarfile.TarInfo(name.replace("_", "."))
                info.size = len(content)
                t.addfile(info, io.BytesIO(content))
    for part in ("train", "val"):
        (tmp_path/part).mkdir()
        tar(tmp_path/part/"0.tar", x_cls=b"7", x_jpg=jpeg, y_jpg=jpeg, y_cls=b"10")        # flat names, a label beside
    load = lambda: load_task("imagenet", data_dir=str(tmp_path), size=32)
    assert load().classes == ("10", "7") and load().train.labels.tolist() == [0, 1]
    tar(tmp_path/"train"/"1.tar", z_cls=b"7", z_jpg=jpeg)                                  # index.csv is old now
    os.utime(tmp_path/"train"/"1.tar", (1, 1))                                             # even if it does not look so
    assert load().train.labels.tolist() == [0, 1, 1] and torch.equal(load().train.images([2]), load().test.images([0]))
    tar(tmp_path/"train"/"2.tar", w_jpg=jpeg)
    with pytest.raises(InputError, match="2.tar does not tell the class of w.jpg"): load()
    (tmp_path/"train"/"2.tar").write_bytes(b"no tar")
    with pytest.raises(InputError, match="cannot read shard .*2.tar"): load()
    (tmp_path/"train"/"2.tar").unlink()
    tar(tmp_path/"val"/"0.tar", x_cls=b"7", x_jpg=jpeg)
    with pytest.raises(InputError, match="no class '10'"): load()


def test_a_made_imagenet_has_a_thousand_classes_that_differ(tmp_path, monkeypatch):
    write_imagenet(tmp_path, 402, 1, 1, 16)
    task = load_task("imagenet", data_dir=str(tmp_path), size=16)
    white, red, lime = task.train.images([1, 201, 401])
    assert len(task.classes) == 402 and red[0].max() > 0.5 > red[1].max() and lime[1].max() > 0.5 > lime[0].max()
    assert white.amax((1, 2)).min() > 0.5 and not torch.equal(task.train.images([1]), task.test.images([1]))
    with pytest.raises(InputError, match="2 to 1000"): write_imagenet(tmp_path, 1001)


def stream(root, **fields):
    write_imagenet(root, 2, 5, 1, 40)
    return dataclasses.replace(load_task("imagenet", data_dir=str(root), size=32).train, **fields)


def test_the_number_of_data_workers_changes_nothing(tmp_path):
    files = stream(tmp_path)
    passes = [list(dataclasses.replace(files, workers=n).epoch(4, 0, 1, Augment(flip=True))) for n in (0, 1, 3)]
    assert all(torch.equal(x, y) for other in passes[1:] for a, b in zip(passes[0], other, strict=True) for x, y in zip(a, b))
    assert [len(y) for _, y, _ in files.epoch(9, 0, 1, rank=1, world=2)] == [4, 0]        # the last step has one image


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_in_a_stream_is_named_and_left_out_only_if_asked(tmp_path, workers):
    files = stream(tmp_path, workers=workers)
    files.files[3].write_bytes(files.files[3].read_bytes()[:200])
    with pytest.raises(InputError, match=r"cannot read image .*n00000000/train_0003.JPEG.*skip_corrupt") as e: list(files.epoch(4, 0, 0))
    assert "\n" not in str(e.value)
    files.files[7].write_bytes(b"")
    with pytest.warns(UserWarning) as said: found = list(dataclasses.replace(files, skip_corrupt=True).epoch(4, 0, 0))
    assert sorted(i for _, _, index in found for i in index.tolist()) == [0, 1, 2, 4, 5, 6, 8, 9]
    assert sorted(str(w.message).rpartition("; ")[2] for w in said) == [f"left out, number {k} in this pass" for k in (1, 2)]


def test_a_dead_data_worker_is_one_line(tmp_path, monkeypatch):
    from liresnet_nb.train import fit
    files = stream(tmp_path, workers=1)

    def die(*a): os.kill(os.getpid(), signal.SIGKILL)
    monkeypatch.setattr(data, "read_image", die)
    with pytest.raises(InputError, match="a data worker died .*fewer workers") as e: fit(Task("dead", files, files, ("a", "b"), 1.), model="L1W8", dense=16, batch=4, device="cpu", progress=False)
    assert "\n" not in str(e.value)


def test_missing_and_broken_files_are_named(tmp_path):
    make_folder(tmp_path)
    for kwargs, words in [(dict(name="imagenet", data_dir=tmp_path/"no"), "no train in"), (dict(name="tiny-imagenet", data_dir=tmp_path), "val_annotations"),
                          (dict(name="folder"), "needs data_dir"), (dict(name="folder", data_dir=tmp_path/"train"), "wanted train/CLASS"),
                          (dict(name="digit"), "did you mean 'digits'"), (dict(name="glyphs", n_classes=1), "2 to"), (dict(name="glyphs", size=20), "16 or 32"),
                          (dict(name="digits", size=16), "own classes and size"), (dict(name="digits", held_out="val"), "did you mean 'valid'")]:
        with pytest.raises(InputError, match=words): load_task(**kwargs)
    (tmp_path/"train"/"bee"/"1.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match=r"cannot read image .*bee.1\.png"): load_task("folder", data_dir=tmp_path)
    Image.new("RGB", (7, 9)).save(tmp_path/"train"/"bee"/"1.png")
    with pytest.raises(InputError, match=r"1\.png is \(9, 7\) pixels.*give size"): load_task("folder", data_dir=tmp_path)
    (tmp_path/"train"/".ipynb_checkpoints").mkdir()                       # hidden folders are no classes
    (tmp_path/"test"/"cow").rename(tmp_path/"test"/"hen")
    with pytest.raises(InputError, match="a class 'hen' that .* lacks"): load_task("folder", data_dir=tmp_path, size=8)


@pytest.mark.parametrize("shape", [(37, 50), (50, 37), (32, 32), (300, 31)])
@pytest.mark.parametrize("grey", [False, True])
def test_an_image_is_resized_and_cropped_as_pillow_does_it(tmp_path, shape, grey):
    pixels = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator("resize")).numpy()
    Image.fromarray(pixels).save(tmp_path/"a.png")
    for size, resize, crop in ((16, 20, (0., 1.)), (16, 16, (.5, .5)), (24, 28, (1., 0.))):
        wanted, scale = Image.fromarray(pixels).convert("L" if grey else "RGB"), resize/min(shape)
        wanted = wanted.resize((round(scale*shape[1]), round(scale*shape[0])), Image.BILINEAR)
        left, top = (round(u*(n-size)) for u, n in zip((crop[1], crop[0]), wanted.size))
        wanted = torch.from_numpy(np.array(wanted.crop((left, top, left+size, top+size)))).reshape(size, size, -1).permute(2, 0, 1)
        found = data.read_image(tmp_path/"a.png", size, crop, resize, grey)
        assert found.shape == wanted.shape and found.dtype == torch.uint8 and found.is_contiguous()
        assert (found.int()-wanted.int()).abs().max() <= 1


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    data._torchvision()
    from torchvision.datasets import CIFAR10

    def refuse(self): raise OSError("network is down")
    monkeypatch.setattr(CIFAR10, "download", refuse)
    with pytest.raises(InputError, match=r"network is down.*cifar-10-python\.tar\.gz.*data_dir"): load_task("cifar10", data_dir=tmp_path/"new")
    assert not (tmp_path/"new").exists()


def test_cifar_is_read_from_its_unpacked_folder(tmp_path, monkeypatch):
    import pickle
    home = tmp_path/"cifar-10-batches-py"
    home.mkdir()
    entry = dict(data=torch.randint(0, 255, (4, 3072), dtype=torch.uint8).numpy(), labels=[0, 1, 2, 3])
    for name in [f"data_batch_{i}" for i in range(1, 6)]+["test_batch"]: (home/name).write_bytes(pickle.dumps(entry))
    (home/"batches.meta").write_bytes(pickle.dumps(dict(label_names=[str(i) for i in range(10)])))
    data._torchvision()
    from torchvision.datasets import CIFAR10
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    task = load_task("cifar10", data_dir=tmp_path)
    assert (len(task.train), len(task.test), task.image_shape, task.epsilon) == (20, 4, (3, 32, 32), 36/255)
    assert torch.equal(task.test.raw[0].flatten(), torch.from_numpy(entry["data"][0]))
