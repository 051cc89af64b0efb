# make demo   simulate data, run a notebook on this machine, say where its report is
# make test   run every test
# make terramind  run those of TerraMind, in .venv-terramind: terratorch brings 120 packages
# make floors whole runs over seeds, a sweep and an ablation, their reports kept under benchmarks/results (hours)
PYTHON ?= python3
STAGE ?= perceptual-unet
BIN := .venv/bin
# Real samples that tests use if they are there; the notebooks' perceptual term then has trained weights offline too.
export NBHELPERS_REAL_DATA ?= $(abspath ../shared/data)
WEIGHTS := $(wildcard $(NBHELPERS_REAL_DATA)/weights/squeezenet1_1_caffe_features.pth)

.PHONY: demo test terramind floors lint notebooks stamp clean

demo: .venv/installed
	$(BIN)/python notebooks/execute.py $(STAGE)

test: .venv/installed
	@# The notebooks first and alone: each has a minute, kernel start included.
	NBHELPERS_PROFILE=smoke NBHELPERS_HOME=$$(mktemp -d) NBHELPERS_BACKBONE_WEIGHTS=$(or $(WEIGHTS),random) \
		$(BIN)/python -m pytest --nbmake --timeout=60 notebooks
	@# One thread a worker: two workers on two cores would otherwise fight over them.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests

terramind: .venv-terramind/installed
	.venv-terramind/bin/python -m pytest tests/test_sar_terramind.py tests/test_sar_terramind_runs.py

floors: .venv/installed
	$(BIN)/python benchmarks/floors.py
	$(BIN)/python benchmarks/sweep.py
	@# Whatever floor is missed, the demonstration is made; both go on where an earlier call stopped.
	$(BIN)/python benchmarks/rainfall.py --work build/rainfall; floors=$$?; \
		$(BIN)/python benchmarks/rain_augmentation.py build/rainfall/runs/simulated-quick-seed0 \
		--work build/rainfall/augmentation && exit $$floors
	$(BIN)/python benchmarks/turbulence.py
	$(BIN)/python benchmarks/super_resolution.py
	$(BIN)/python benchmarks/grounding.py

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
	@echo "Installing into .venv: about two minutes and 6 GB, most of it torch."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

# On top of .venv: torch's 6 GB lie on the disk once, and what terratorch wants in another version comes before it.
.venv-terramind/installed: .venv/installed
	$(BIN)/python -m venv --without-pip .venv-terramind
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" \
		> $$(.venv-terramind/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beneath.pth
	.venv-terramind/bin/python -m pip install --quiet -e '.[terramind]'
	touch $@

clean:
	rm -rf .venv .venv-terramind demo build
