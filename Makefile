# Every target makes .venv by itself when there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo board checkpoints baseline test exports check wheel docs release-check clean

install: .venv/installed

.venv/installed: pyproject.toml
	@echo "Setting up .venv with torch and the rest: once, some minutes, little is printed meanwhile."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Every method on the demo set and CLIP with random weights beside them, the board and one picture; no download.
demo: .venv/installed
	@echo "Running every method on the demo set: pictures are rendered and code is compiled the first time."
	rm -rf results/run
	ZSAD_CHECKPOINTS=results/boards/checkpoints $(BIN)/zsad run --method all --dataset demo --out results/run >/dev/null
	$(BIN)/zsad run --method clip --dataset demo --weights random --seeds 5 --out results/run >/dev/null
	$(BIN)/zsad compare results/run
	$(BIN)/zsad demo picture results/run/demo --out results/run/demo.png

# The committed board, rebuilt by `make demo` and compared: a value that fell by half a point fails.
board: demo
	$(BIN)/zsad compare results/run --baseline results/boards/demo.csv --tolerance 0.5 --no-write

# What the board and its checkpoints are made by. Run them on purpose: they replace what is committed. Where numbers
# are given, the authors' would take long, or move little on 540 pictures.
TRAIN = $(BIN)/zsad train --dataset demo-aux --method
checkpoints: .venv/installed
	rm -rf results/train results/boards/checkpoints
	$(TRAIN) clip-ad+ --out results/train/clip-ad+.safetensors
	$(TRAIN) april-gan --out results/train/april-gan.safetensors
	$(TRAIN) anomalyclip --out results/train/anomalyclip.safetensors
	$(TRAIN) crane --out results/train/crane.safetensors
	$(TRAIN) vcp-clip --epochs 3 --set lr=1e-3 --out results/train/vcp-clip.safetensors
	$(TRAIN) faprompt --epochs 3 --out results/train/faprompt.safetensors
	$(TRAIN) af-clip --set lr=1e-3 --out results/train/af-clip.safetensors
	$(TRAIN) aa-clip --epochs 4 --set text_epochs=1 --out results/train/aa-clip.safetensors
	$(TRAIN) adaclip --epochs 1 --out results/train/adaclip.safetensors
	$(TRAIN) bayes-pfl --epochs 4 --set class_epochs=4 --set lr=1e-3 --set class_lr=1e-3 \
		--out results/train/bayes-pfl.safetensors
	rm results/train/*-epoch*
	mv results/train results/boards/checkpoints

baseline: demo
	cp results/run/leaderboard.csv results/boards/demo.csv
	cp results/run/leaderboard.md results/boards/demo.md
	cp results/run/demo.png docs/demo.png

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

# Every method that can be exported, as a file of ONNX beside torch: both miniatures, and metrics of the demo.
exports: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m exports tests/deploy

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# The wheel is used outside the checkout with typer and rich alone: it is whole, and listing is light.
wheel: .venv/installed
	rm -rf build dist .wheelcheck
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(PYTHON) -m venv .wheelcheck
	.wheelcheck/bin/python -m pip install --quiet typer rich
	.wheelcheck/bin/python -m pip install --quiet --no-deps dist/zsadbench-*.whl
	cd / && $(CURDIR)/.wheelcheck/bin/zsad methods
	cd / && $(CURDIR)/.wheelcheck/bin/zsad datasets
	rm -rf .wheelcheck build

# The site in build/site. Pages are made in the build, commands whose outputs are shown are run (kept in .cache/docs).
docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	$(BIN)/python docs/_build/check.py build/site

.venv/docs-installed: .venv/installed
	PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install --quiet --editable ".[docs]"
	touch $@

# What must hold before a version goes out; needs network for build and twine.
release-check: wheel
	rm -rf .releasecheck
	$(PYTHON) -m venv .releasecheck
	.releasecheck/bin/python -m pip install --quiet build twine
	rm -rf dist
	.releasecheck/bin/python -m build --outdir dist .
	.releasecheck/bin/twine check --strict dist/*
	$(BIN)/python .ci/release.py dist
	rm -rf .releasecheck build

clean:
	rm -rf .venv .wheelcheck .releasecheck build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
