# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each creates .venv by itself, installs from constraints.txt, and is quick when nothing changed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# A machine with an NVIDIA driver gets the GPU build of FAISS.
FAISS  ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
WHEEL_VENV := .venv-wheel
# Tests run in as many processes as there are cores, with a thread each. nproc itself would take OMP_NUM_THREADS for the number of cores.
WORKERS ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: demo test lint wheel bench format clean
.DEFAULT_GOAL := demo

$(BIN)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip setuptools
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[$(FAISS),offline,dev]'
	touch $@

demo: $(BIN)/.installed   ## the whole path on real data; report in demo/report.html
	$(BIN)/retrieval demo --output demo --overwrite

test: $(BIN)/.installed   ## everything that CI checks
	$(MAKE) --no-print-directory lint wheel
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The wheel, built from the sdist, in an environment of its own: what a user gets, without this tree.
wheel: $(BIN)/.installed
	rm -rf dist build
	$(BIN)/python -m build --no-isolation -o dist . > /dev/null
	test -x $(WHEEL_VENV)/bin/python || $(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install -q --upgrade pip
	$(WHEEL_VENV)/bin/python -m pip install -q --no-compile -c constraints.txt "$$(ls dist/*.whl)[cpu,offline]"
	$(WHEEL_VENV)/bin/python -m pip install -q --no-deps --force-reinstall dist/*.whl
	cd dist && ../$(WHEEL_VENV)/bin/retrieval --version && ../$(WHEEL_VENV)/bin/retrieval doctor

bench: $(BIN)/.installed
	$(BIN)/python benchmarks/loss.py
	$(BIN)/python benchmarks/banking77.py
	$(BIN)/python benchmarks/fashion.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/faults.py

format: $(BIN)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/make_reference.py

clean:
	rm -rf $(VENV) $(WHEEL_VENV) build dist demo *.egg-info
