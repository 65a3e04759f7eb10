"Each page of the built site in a real browser: figures draw and move, math is set, nothing is fetched from elsewhere, no link is dead."
import functools
import http.server
import json
import re
import threading
from html import unescape
from pathlib import Path

import pytest
from browser import MINUTES, needs_browser, settles, watched

from liresnet_nb.docs import FIGURE

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT/"_docs"
PAGES = [re.sub(r"^\d+[a-z]?_", "", p.stem) for p in sorted((ROOT/"nbs").glob("*.ipynb"))]+["contributing", "changelog", "log"]
WIDE, PHONE = dict(width=1280, height=900), dict(width=390, height=844)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture(scope="session")
def built():
    "The site as `make docs` left it; `make test` calls that first."
    assert (SITE/"index.html").exists(), "there is no site in _docs: make docs"
    return SITE


@pytest.fixture(scope="session")
def address(built):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=built)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


DRAWN = """box => { const div = box.querySelector('.js-plotly-plot'); const at = div.getBoundingClientRect();
  return at.width > 200 && at.height > 100 && div.querySelectorAll(
    '.mlayer :is(path, image, rect, text), .gl-container canvas, :is(.polarlayer, .pielayer, .ternarylayer) path').length > 0 }"""
STATE = "box => { const d = box.querySelector('.js-plotly-plot'); return JSON.stringify(d.data)+d.querySelector('.cartesianlayer').innerHTML+(d._fullLayout.title?.text ?? '') }"
WIDTH = "document.documentElement.scrollWidth"
INK = "box => box.querySelector('.js-plotly-plot')._fullLayout.font.color"
PALE = """() => { const rgba = c => c.match(/[\\d.]+/g).map(Number);
  const light = c => { const [r, g, b] = rgba(c).map(v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4); return .2126*r+.7152*g+.0722*b };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; const v = rgba(c); if (v.length < 4 || v[3] > .5) return c } return 'rgb(255,255,255)' };
  const low = [];
  for (const e of document.querySelectorAll('article :is(p, li, td, th, summary, h1, h2, h3, pre)')) {
    if (!e.innerText?.trim() || e.closest('.js-plotly-plot')) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y-x);
    if ((a+.05)/(b+.05) < 4) low.push(e.innerText.slice(0, 60)) }
  return low }"""


def move(page, box):
    "Click the other end of a figure's slider; what it shows must change."
    before = box.evaluate(STATE)
    rail, grip = box.locator(".slider-rail-touch-rect").first, box.locator(".slider-grip-rect").first
    rail.scroll_into_view_if_needed()
    r, g = rail.bounding_box(), grip.bounding_box()
    left = g["x"]+g["width"]/2 > r["x"]+r["width"]/2
    page.mouse.click(r["x"]+r["width"]*(.15 if left else .85), r["y"]+r["height"]/2)
    return settles(page, lambda: box.evaluate(STATE) != before)


@pytest.fixture(scope="session", params=PAGES)
def visit(request, browser, address):
    "One visit of a page; the tests below look at what was seen."
    seen = dict(name=request.param)
    with watched(browser, address, viewport=WIDE, color_scheme="light") as page:
        page.set_default_timeout(10*MINUTES)
        sizes = []
        page.on("response", lambda r: sizes.append((r.url, int(r.headers.get("content-length", 0)))))
        page.goto(f"{address}/{request.param}.html", wait_until="load")
        seen["first"] = sum(n for url, n in sizes if not url.endswith("plotly.min.js"))
        seen["raw math"] = page.locator(".math").count()
        if seen["raw math"]:
            page.wait_for_function("window.MathJax?.startup?.promise")
            page.evaluate("async () => { await MathJax.startup.promise }")
        seen["set math"], seen["math errors"] = page.locator(".math mjx-container").count(), page.locator("mjx-merror, [data-mjx-error]").count()
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        boxes = page.locator("div.figure").all()
        for box in boxes:
            box.scroll_into_view_if_needed()
            box.locator("xpath=self::*[@data-drawn]").wait_for()
        seen["drawn"] = [box.evaluate(DRAWN) for box in boxes]
        seen["moved"] = [move(page, box) for box in boxes if box.locator(".slider-rail-touch-rect").count()]
        light = [box.evaluate(INK) for box in boxes]
        for _ in range(3):
            if page.evaluate("document.body.dataset.theme") != "dark": page.locator("button.theme-toggle:visible").first.click()
        page.wait_for_timeout(300)
        settles(page, lambda: all(box.evaluate(INK) != a for a, box in zip(light, boxes)))
        seen["ink"] = [(a, box.evaluate(INK)) for a, box in zip(light, boxes)]
        seen["pale"] = page.evaluate(PALE)
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(300)
        settles(page, lambda: page.evaluate(WIDTH) <= PHONE["width"])
        seen["phone"] = page.evaluate(WIDTH)
        seen["errors"], seen["outside"] = page.errors, page.outside
    return seen


def figures(name):
    "The figures that the notebook of this page showed when it was run, outside of cells marked `#| hide`."
    run = [p for p in (ROOT/"_build"/"outputs").glob("*.json") if re.fullmatch(rf"(\d+[a-z]?_)?{name}-\w{{16}}", p.stem)]
    if not run: return []
    notebook = json.loads((ROOT/"nbs"/f"{run[0].stem[:-17]}.ipynb").read_text(encoding="utf-8"))
    hidden = {c["id"] for c in notebook["cells"] if "".join(c["source"]).startswith("#| hide")}
    shown = [o for id, outputs in json.loads(run[0].read_text())["outputs"].items() if id not in hidden for o in outputs]
    return [o["data"][FIGURE] for o in shown if FIGURE in o.get("data", {})]


@needs_browser
def test_every_figure_draws(visit):
    assert all(visit["drawn"]) and len(visit["drawn"]) == len(figures(visit["name"]))


@needs_browser
def test_every_slider_moves_its_figure(visit):
    sliders = [f for f in figures(visit["name"]) if f["layout"].get("sliders")]
    assert all(visit["moved"]) and len(visit["moved"]) == len(sliders)


def test_the_demos_have_figures_to_draw():
    assert all(any(f.get("frames") for f in figures(name)) for name in PAGES if name.startswith("demo_"))


@needs_browser
def test_math_is_set(visit):
    assert visit["set math"] == visit["raw math"] and not visit["math errors"]


@needs_browser
def test_nothing_leaves_and_nothing_fails(visit):
    assert not visit["outside"] and not visit["errors"]


@needs_browser
def test_dark_pages_are_readable(visit):
    assert all(dark != light for light, dark in visit["ink"]) and not visit["pale"]


@needs_browser
def test_a_phone_needs_no_sideways_scrolling(visit):
    assert visit["phone"] <= PHONE["width"]


@needs_browser
def test_the_first_page_is_light(visit):
    if visit["name"] == "index": assert 50_000 < visit["first"] < 1_500_000


@needs_browser
def test_search_finds_a_name(browser, address):
    with watched(browser, address) as page:
        page.goto(f"{address}/search.html?q=certified_radius")
        page.locator("#search-results li a").first.wait_for()
        assert page.locator("#search-results li a[href*='margins.html']").count() and not page.outside and not page.errors


def links(text):
    "Where the links and pictures of a page lead, without other hosts"
    found = re.findall(r'<(?:a|img|script|link)\b[^>]*?\b(?:href|src)="([^"]*)"', text)
    return [unescape(u) for u in found if not re.match(r"https?:|data:|mailto:", u)]


def dead_links(site):
    "Links between pages (and their anchors) that lead nowhere"
    texts = {p: p.read_text(encoding="utf-8") for p in site.glob("*.html")}
    ids = {p: set(re.findall(r'\bid="([^"]+)"', t)) for p, t in texts.items()}
    for p, text in texts.items():
        for link in links(text):
            file, _, anchor = link.split("?")[0].partition("#")
            target = (site/file).resolve() if file else p
            if not target.exists() or (anchor and target in ids and anchor not in ids[target]): yield f"{p.name}: {link}"


def test_no_link_is_dead(built):
    assert not list(dead_links(built))


def test_a_dead_link_is_found(tmp_path):
    (tmp_path/"a.html").write_text('<a href="b.html">1</a> <a href="#x">2</a> <p id="y"><a href="#y">3</a> <a href="a.html?q=1#y">4</a>')
    assert list(dead_links(tmp_path)) == ["a.html: b.html", "a.html: #x"]


def test_the_site_is_small_and_whole(built):
    assert sum(p.stat().st_size for p in built.rglob("*") if p.is_file()) < 40e6
    assert {p.stem for p in built.glob("*.html")} >= set(PAGES)
    assert len(list((built/"notebooks").glob("*.ipynb"))) == len(list((built/"colab").glob("*.ipynb"))) == len(list((ROOT/"nbs").glob("*.ipynb")))
    assert (built/"llms.txt").exists() and "#| hide" not in (built/"index.html").read_text(encoding="utf-8")
