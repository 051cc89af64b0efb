# make demo   simulate data, run a notebook on this machine, say where its report is
# make test   run every test
PYTHON ?= python3
STAGE ?= perceptual-unet
BIN := .venv/bin
# One thread a test worker: two workers on two cores would otherwise fight over them.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint notebooks stamp clean

demo: .venv/installed
	$(BIN)/python notebooks/execute.py $(STAGE)

test: .venv/installed
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadgroup tests

lint: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy nbhelpers

notebooks: .venv/installed
	$(BIN)/python notebooks/build.py

# make stamp URL=https://github.com/you/nbhelpers writes the repository's address wherever it stands.
stamp: .venv/installed
	$(BIN)/python notebooks/stamp.py $(URL)
	$(BIN)/python notebooks/build.py

.venv/installed: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip
	$(BIN)/python -m pip install -e '.[test]'
	touch $@

clean:
	rm -rf .venv demo build
