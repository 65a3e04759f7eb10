"Every live figure in a real JupyterLab: its notebook is run, each of its controls moved, and the data in the page must change."
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import MINUTES, free_port, needs_browser, settles, watched

ROOT = Path(__file__).resolve().parents[1]


def live(path):
    "Does a cell of this notebook (not of the library) show an explorer?"
    cells = ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    return any(re.search(r"\bexplore\(", s) and not s.startswith("#| export") for s in cells)


DEMOS = [p for p in sorted((ROOT/"nbs").glob("1*.ipynb")) if live(p)]
CLICKED = "18a_demo_moons"
TRAINER = ROOT/"nbs"/"18d_demo_flips.ipynb"
PLOT = ".js-plotly-plot"
NUDGES = int(os.environ.get("LIRESNET_NUDGES", 1))   # of each control; more of them to measure
# In the page itself: asking it all the time what it shows would slow it down.
WATCH = """e => { if (e.watched) return
  e.watched = true; e.moved = e.drawn = 0
  for (const k of ['keydown', 'input']) addEventListener(k, () => { e.moved = performance.now(); e.drawn = 0 }, true)
  e.on('plotly_afterplot', () => { e.drawn ||= performance.now() }) }"""
DATA = "e => JSON.stringify(e.data)+JSON.stringify(e.layout?.annotations ?? null)"
FAILED = """() => jupyterapp.shell.currentWidget.content.widgets.filter(w => w.model.type === 'code')
  .flatMap(w => w.model.outputs.toJSON()).filter(o => o.output_type === 'error').map(o => `${o.ename}: ${o.evalue}`)"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "One JupyterLab over copies of the notebooks; its settings and its state stay in a temporary folder."
    at = tmp_path_factory.mktemp("lab")
    (at/"root").mkdir()
    for p in DEMOS: shutil.copy(p, at/"root")
    whole = at/"settings"/"@jupyterlab"/"notebook-extension"      # cells outside of the window are on the page, too
    whole.mkdir(parents=True)
    (whole/"tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    port = free_port()
    env = {**os.environ, **{f"JUPYTER_{k}_DIR": str(at/k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")}, "OMP_NUM_THREADS": "1",
           "JUPYTERLAB_SETTINGS_DIR": str(at/"settings"), "JUPYTERLAB_WORKSPACES_DIR": str(at/"workspaces"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1",
               f"--ServerApp.port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={at/'root'}", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(at/"log", "w") as log: server = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(6000):
            assert server.poll() is None, (at/"log").read_text()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(url+"/api/status", timeout=60)
                break
            time.sleep(.1)
        yield url
    finally:
        server.terminate()
        try: server.wait(10)
        except subprocess.TimeoutExpired: server.kill()


def nudge(page, handle):
    "Move a control by one position: a slider by the keyboard, a menu by its next option."
    if handle.evaluate("e => e.tagName") == "SELECT":
        at, n = handle.evaluate("e => [e.selectedIndex, e.options.length]")
        return handle.select_option(index=(at+1) % n)
    at, last = (float(handle.get_attribute(f"aria-value{k}")) for k in ("now", "max"))
    handle.focus()
    page.keyboard.press("ArrowLeft" if at == last else "ArrowRight")


@contextlib.contextmanager
def run_all(browser, url, path):
    "The page of a notebook whose cells have all been run, without an error then or later."
    with watched(browser, url, viewport=dict(width=1200, height=1400)) as page:
        page.set_default_timeout(10*MINUTES)
        page.goto(f"{url}/doc/tree/{path.name}")
        page.wait_for_function("() => globalThis.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
        page.evaluate("async () => { await jupyterapp.commands.execute('notebook:run-all-cells') }")
        assert page.evaluate(FAILED) == []
        yield page
        assert not page.errors and not page.outside
        page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")


@needs_browser
@pytest.mark.parametrize("path", DEMOS, ids=lambda p: p.stem)
def test_a_control_moves_its_figure(browser, lab, path):
    with run_all(browser, lab, path) as page:
        outputs = page.locator(".jp-OutputArea-output").filter(has=page.locator(PLOT)).filter(has=page.locator(".noUi-handle, select"),
                                                                                                has_not=page.get_by_role("button", name="Train"))
        outputs.first.wait_for()
        assert outputs.count() >= 1
        for output in outputs.all():
            output.scroll_into_view_if_needed()
            plot = output.locator(PLOT).first
            settles(page, lambda: plot.evaluate("e => e.data?.length"), 600)        # JupyterLab may put another element in its place
            page.wait_for_timeout(500)                             # the widgets have arrived, their listeners may not
            for handle in output.locator(".noUi-handle, select").all():
                before, took = plot.evaluate(DATA), []
                for _ in range(max(3, NUDGES)):
                    plot.evaluate(WATCH)
                    nudge(page, handle)
                    if settles(page, lambda: plot.evaluate("e => e.drawn"), 20): took.append(plot.evaluate("e => e.drawn-e.moved"))
                    if took and plot.evaluate(DATA) != before and len(took) >= NUDGES: break
                label = handle.evaluate("e => e.closest('.widget-inline-hbox').querySelector('.widget-label').innerText")
                assert plot.evaluate(DATA) != before, f"{path.stem}: {label!r} was moved, the figure was not"
                if took: print(f"{path.stem}, {label}: {statistics.median(took):.0f} ms from the move to the new figure (median of {len(took)})")
            if path.stem == CLICKED and output.locator(".widget-readout").count() == 3: picks(page, output)


def picks(page, output):
    "Click into the plane of the moons: the two sliders of the picked point have to follow."
    places = [output.locator(".widget-readout").nth(k) for k in (1, 2)]     # after ε: first pixel, second pixel
    before, plane = [p.inner_text() for p in places], output.locator(".nsewdrag").first.bounding_box()
    for _ in range(3):
        page.mouse.move(plane["x"], plane["y"])
        page.mouse.move(plane["x"]+.7*plane["width"], plane["y"]+.7*plane["height"], steps=5)
        page.wait_for_timeout(300)                                          # plotly looks what lies below the pointer
        page.mouse.down(); page.mouse.up()
        if settles(page, lambda: all(p.inner_text() != b for p, b in zip(places, before)), 20): return
    raise AssertionError(f"a point was clicked, the sliders stayed at {before}")


@needs_browser
def test_a_training_grows_its_curve_until_it_is_stopped(browser, lab):
    with run_all(browser, lab, TRAINER) as page:
        output = page.locator(".jp-OutputArea-output").filter(has=page.get_by_role("button", name="Train"))
        plot = output.locator(PLOT).first
        plot.wait_for()
        page.wait_for_timeout(500)
        before = plot.evaluate(DATA)
        output.get_by_role("button", name="Train").click()
        assert settles(page, lambda: plot.evaluate(DATA) != before, 600), "a run was started, its curve did not grow"
        output.get_by_role("button", name="Stop").click()
        output.get_by_text("stopped after").wait_for()


def test_explorers_are_found():
    assert [p.stem[:3] for p in DEMOS] == ["16_", "18a", "18b", "18c", "18d", "18e", "18f"]
