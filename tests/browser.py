"What the tests in a browser share: Debian's chromium, and a page that keeps account of what went wrong."
import contextlib
import shutil
import socket

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
MINUTES = 60_000      # milliseconds; waits end when something is there, so they may be long
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here (Debian: apt-get install chromium)")


@contextlib.contextmanager
def watched(browser, base, **how):
    "A new page; its `errors` and its `outside` requests are lists."
    context = browser.new_context(**how)
    page = context.new_page()
    page.errors, page.outside = [], []
    page.on("console", lambda m: page.errors.append(f"{m.text} ({m.location.get('url')})") if m.type == "error" else None)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.on("request", lambda r: None if r.url.startswith((base, "data:", "blob:")) else page.outside.append(r.url))
    page.on("websocket", lambda w: None if w.url.startswith(base.replace("http", "ws")) else page.outside.append(w.url))
    yield page
    context.close()


def settles(page, done, seconds=60):
    "Whether `done()` becomes true; looked at until it does, or until only a fault can be the reason."
    for _ in range(20*seconds):
        if done(): return True
        page.wait_for_timeout(50)
    return False


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
