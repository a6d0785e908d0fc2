# Every target makes .venv by itself when there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo board test check wheel clean

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

# Every method on the demo set, the board and one picture; nothing is downloaded.
demo: .venv/installed
	rm -rf results/run
	ZSAD_CHECKPOINTS=results/boards/checkpoints $(BIN)/zsad run --method all --dataset demo --out results/run
	$(BIN)/zsad compare results/run
	$(BIN)/zsad demo picture results/run/demo --out results/run/demo.png

# The committed board, rebuilt by `make demo` and compared: a value that fell by half a point fails.
board: demo
	$(BIN)/zsad compare results/run --baseline results/boards/demo.csv --tolerance 0.5 --no-write

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

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

clean:
	rm -rf .venv .wheelcheck build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
