# Two commands from clone to result: `make demo`, `make test`. Each target says its plain command in README.md.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo
BENCH ?=
REPRODUCE ?=
PORTABLE ?=
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test docs open lab readme prepare bench gpu soak portable cross proofs clean notebooks
help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.library: settings.ini setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	@touch $@

.venv/.development: .venv/.library
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.library  ## train a LiResNet on the embedded digits, certify it, write a report (about two minutes)
	$(BIN)/liresnet-train --task digits --out $(RUN)
	$(BIN)/liresnet-report $(RUN)

test: .venv/.development  ## every check: notebooks and library agree, lint, tests, every notebook runs
	$(BIN)/python tools/check.py sync
	$(BIN)/ruff check
	$(MAKE) docs
	$(ONE) $(BIN)/python -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder

notebooks: .venv/.development  ## run every notebook and every solution (kept by content: again only if something changed)
	$(ONE) $(BIN)/python tools/check.py notebooks

docs: notebooks  ## the site in _docs, built without network
	$(ONE) $(BIN)/python docs/build.py

open: docs  ## the site at http://localhost:8000
	$(BIN)/python -m http.server -d _docs 8000

bench: .venv/.library  ## what a training step costs here, beside the textbook's (BENCH="--levers": each idea alone)
	$(BIN)/python -m liresnet_nb.bench $(BENCH)

gpu: .venv/.library  ## what a GPU makes of it: bench with everything, then CIFAR-10 at the paper's scale (hours)
	$(BIN)/python -m liresnet_nb.bench --device cuda --levers --scaling --accuracy digits glyphs $(BENCH)
	$(BIN)/liresnet-reproduce cifar10 --scale paper --device cuda $(REPRODUCE)

soak: .venv/.development  ## the property tests at ten thousand cases each
	$(BIN)/python -m pytest -q -m property --hypothesis-profile=soak

portable: .venv/.development  ## what trains, under other processors' kernels (PORTABLE="--variant avx2": one of them)
	$(BIN)/python tools/portable.py $(PORTABLE)

proofs: .venv/.library  ## what the proofs cost for the paper's networks (about three minutes)
	$(BIN)/python tools/proofs.py

cross: .venv/.development  ## our Auto-PGD beside torchattacks (which pins an old requests: installed without it)
	$(BIN)/python -m pip install -q --no-deps torchattacks==3.5.1
	$(BIN)/python tests/cross_torchattacks.py

lab: .venv/.development  ## JupyterLab on the notebooks
	$(BIN)/jupyter lab nbs

readme: .venv/.development  ## README.md from nbs/index.ipynb, llms.txt from the titles of all notebooks
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/llms.py

prepare: .venv/.development readme  ## clean the notebooks and export the library from them
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export

clean:  ## remove what was built; runs and .venv stay
	rm -rf _proc _docs _build build *.egg-info .pytest_cache .ruff_cache .hypothesis
