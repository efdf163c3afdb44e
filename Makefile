# make demo      run the pixel-similarity job on real images
# make test      run the tests, but for those that take long
# make test-all  run every test, as pytest without options does
# make lint      check format, lint and types
# make docs      build the documentation, in docs/_build/html
# make faults    kill, damage and fail it in every way, a thousand times: half an hour or more
# make bench     measure it beside the libraries that one would use instead
# make gpu       check the kernels of a GPU bit for bit, and measure them, with the Python that is there
# Each does the set-up that is still missing, in .venv; a second call does nothing of it again.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCH_READY := $(VENV)/.bench-ready
DOCS_READY := $(VENV)/.docs-ready
UV := uv==0.13.9
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
PYTHONS := python3 python3.14 python3.13 python3.12 python3.11 python

.PHONY: help setup demo test test-all faults bench gpu docs lint format lock which-python clean

help:
	@sed -n '/^$$/q;s/^# //p' Makefile

setup: $(READY)

# the first Python >= 3.11 found that can make virtual environments
define find_python
for name in $(PYTHONS); do \
  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue; \
  found=$$name; \
  "$$name" -c 'import venv, ensurepip' >/dev/null 2>&1 && { python=$$name; break; }; \
done; \
if [ -z "$$python" ] && [ -n "$$found" ]; then \
  echo "pixsim: $$found cannot make virtual environments; install its venv package (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; \
elif [ -z "$$python" ]; then \
  echo "pixsim: no Python 3.11 or newer found; install one (Debian, Ubuntu: apt install python3 python3-venv; else https://www.python.org/downloads)" >&2; exit 2; \
fi
endef

which-python:
	@$(find_python); echo "$$python"

$(READY): requirements.lock pyproject.toml
	@$(find_python); \
	echo "setting up $(VENV) with $$($$python --version), a few minutes the first time"; \
	{ [ -x $(BIN)/python ] || "$$python" -m venv $(VENV); } && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(UV)" && \
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes \
	  -r requirements.lock && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e . && \
	touch $(READY)

demo: $(READY)
	@$(BIN)/pixsim demo

test test-all faults: export PYTHONDONTWRITEBYTECODE = # or each process that a test starts compiles anew
test: $(READY) # what takes long has the mark `slow`
	@$(BIN)/python -m pytest --numprocesses 3 --dist worksteal -m "not slow"

test-all: $(READY)
	@$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

faults: $(READY) # make faults ARGS="--faults-seed 7 -k killed"
	@$(BIN)/python -m pytest tests/test_faults.py --faults full --verbose $(ARGS)

$(BENCH_READY): $(READY) # the peers, beside the pinned packages, which keep their versions
	@echo "installing what pixsim is measured against"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  --constraint requirements.lock --extra bench -r pyproject.toml
	@touch $(BENCH_READY)

bench: $(BENCH_READY) # make bench ARGS="--rows distances means --json bench.json"
	@PYTHONPATH=tests $(BIN)/python -m benchmarks $(ARGS)

$(DOCS_READY): $(READY)
	@echo "installing what builds the documentation"
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python \
	  --constraint requirements.lock --extra docs -r pyproject.toml
	@touch $(DOCS_READY)

docs: $(DOCS_READY) # warnings are errors; links inside are checked, those that lead out are listed
	@$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "documentation in docs/_build/html/index.html"

gpu: # needs no set-up; make gpu GPU_PYTHON=python3 ARGS="--json gpu.json"
	@PYTHONPATH=.:tests $(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

lint: $(READY)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# the pinned packages, for every platform and Python; run it after changing pyproject.toml
lock:
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev \
	  --generate-hashes --no-header --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache docs/_build
