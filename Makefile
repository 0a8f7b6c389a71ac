# `make demo` and `make test` work in a fresh clone with Python >= 3.10 (with venv), g++ and make; the rest comes from PyPI.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
NATIVE := $(wildcard setup.py) $(shell find csrc/base csrc/bindings csrc/runtime -type f)
# Two workers: enough for two cores, and compiling tests stay within memory.
JOBS   ?= 2

.DELETE_ON_ERROR:
.PHONY: demo test lint types imports unit wheel sanitize fuzz clean

demo: $(VENV)/installed
	$(PY) examples/digits/demo.py

test: lint types imports unit wheel

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .

types: $(VENV)/installed-dev
	$(VENV)/bin/mypy -p opcel_compiler

imports: $(VENV)/installed-dev
	$(VENV)/bin/lint-imports

unit: $(VENV)/installed-dev
	$(PY) -m pytest -q -n $(JOBS)

wheel: $(VENV)/installed-dev
	$(PY) .ci/check_wheel.py

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "opcel needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(PY) pyproject.toml $(NATIVE)
	$(PY) -m pip install -q --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(PY) pyproject.toml $(NATIVE)
	$(PY) -m pip install -q --disable-pip-version-check -e '.[dev,zig]'
	touch $(VENV)/installed $@

# Runtime and kernels between guard pages and under sanitizers; SECONDS is how long each model is run by eight threads.
SECONDS ?= 60
sanitize: $(VENV)/installed-dev
	$(PY) -m tests.sanitize plain --seconds $(SECONDS)
	$(PY) -m tests.sanitize address --seconds $(SECONDS)
	$(PY) -m tests.sanitize thread --seconds $(SECONDS)

# Guided by coverage; a million executions of each target.
RUNS ?= 1000000
fuzz: $(VENV)/installed-dev
	for t in importer text artifact target run; do nice -n 19 $(PY) -m tests.fuzz $$t --runs $(RUNS) || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find opcel_compiler -name '*.so' -delete
