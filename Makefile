# Two commands for newcomers, each doing all its set-up: `make demo` and `make test`.
# The environment is made once, in .venv, and again only after pyproject.toml changes.

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
OUT ?= demo-out
DEMO_FLAGS ?=
TEST_FLAGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs
DOCS := build/docs

.PHONY: help demo test test-slow lint docs wheel install clean

help:
	@echo "make demo       compress a small trained network on this CPU; results in $(OUT)/ (report.html)"
	@echo "make test       the tests"
	@echo "make test-slow  the tests marked slow"
	@echo "make lint       ruff (format and rules), mypy --strict, import contracts"
	@echo "make docs       the documentation as a site; $(DOCS)/index.html"
	@echo "make wheel      the wheel, installed by itself and used; needs 6 GB for a while"
	@echo "make clean      remove $(VENV), $(OUT), $(DOCS) and caches"

demo: $(STAMP)
	$(BIN)/python -m layerfold demo -o $(OUT) $(DEMO_FLAGS)

# One thread per worker: two workers on two cores would otherwise fight for them.
TEST_ENV := OMP_NUM_THREADS=1

test: $(STAMP)
# A worker takes half of the tests, in order, so that what a file prepares is prepared once; who is done first helps.
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist worksteal $(TEST_FLAGS)

test-slow: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m slow $(TEST_FLAGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# All pages are read every time: a page taken from the last build would keep its warnings to itself.
docs: $(DOCS_STAMP)
	$(TEST_ENV) $(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going -c docs -d build/doctrees . $(DOCS)
	@echo "$(DOCS)/index.html"

# Needs nothing of $(VENV): it makes an environment of its own, in a temporary folder.
wheel:
	PYTHON="$(PYTHON)" PIP_FLAGS="$(PIP_FLAGS)" .ci/wheel

install: $(STAMP)

# The stamp is written last, so an install that was cut short is done again.
$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 to 3.13, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "error: $$($(PYTHON) --version) found, but layerfold needs Python 3.11 to 3.13; name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; install it (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@echo "Installing into $(VENV); the first time this downloads PyTorch and takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[demo,dev,openvino,readers,tensorrt]'
	@touch $@

# Only `make docs` needs these.
$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -e '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(OUT) $(DOCS) build/doctrees .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
