"Shared by all tests: hypothesis profiles, and a run that several tests look at."
import pytest
import torch
from hypothesis import HealthCheck, settings

common = dict(deadline=None, derandomize=True, print_blob=True, suppress_health_check=list(HealthCheck))
settings.register_profile("default", max_examples=300, **common)
settings.register_profile("soak", max_examples=10_000, **{**common, "derandomize": False})
settings.load_profile("default")

# Modules that neither train nor depend on kernels; all others are marked `training`, for `make portable`.
ELSEWHERE = {"test_docs", "test_explore", "test_lab", "test_package", "test_paper", "test_site", "test_tools"}
TINY = dict(model="L1W8", epochs=3, batch=256, shift=1, save_seconds=0., device="cpu", progress=False)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem not in ELSEWHERE: item.add_marker("training")


@pytest.fixture(autouse=True)
def seeded():
    "What a test draws without a generator of its own is the same each time."
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    from liresnet_nb.train import fit
    return fit("digits", **TINY, out=tmp_path_factory.mktemp("runs")/"tiny")


@pytest.fixture(scope="session")
def browser():
    "Debian's chromium: one in a process, since playwright refuses a second beside it."
    from browser import CHROMIUM, FLAGS
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def digits():
    from liresnet_nb.data import load_task
    return load_task("digits")


def weights(model):
    return torch.cat([v.flatten() for v in model.state_dict().values()])
