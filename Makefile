# make demo   set up .venv, run the demo suite, say where its report is
# make test   set up .venv, run the tests
# make lint   style, formatting and types
# make bench  measure speed into reports/benchmarks.html; what needs more is named by options, all of them in
#             python -m fcn bench --help: make bench BENCH="--peer DIR --weights FILE --data DIR --demo DIR"
# make setup  only set up .venv, once, and again when a lock changes
# make clean  remove .venv and caches; data/, results/ and reports/ stay
# Needed: make and Python 3.11 or newer (another one than python3: make demo PYTHON=/path/to/python3.12).
PYTHON ?= python3
CORES ?= all
BENCH ?=
BIN := .venv/bin
READY := .venv/.ready
SNAKEMAKE := env -u PYTHONDONTWRITEBYTECODE PATH="$(CURDIR)/$(BIN):$$PATH" snakemake
# The tests' own threads would stall each other beside two test processes.
PYTEST := env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

.PHONY: demo test lint bench setup clean

demo: setup
	$(SNAKEMAKE) --cores $(CORES) --config suite=demo device=cpu
	@echo "The report: $(CURDIR)/reports/tables.html"

test: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m fcn bench $(BENCH)

setup: $(READY)

$(READY): requirements.lock requirements-uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "error: $(PYTHON) cannot make virtual environments (Debian, Ubuntu: apt install python3-venv);" \
	       "or name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt || { \
	  echo "error: uv could not be installed (above: why); it comes from the package registry that pip uses," \
	       "as a wheel for this machine's system" >&2; exit 1; }
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.lock
	@touch $@

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fcn tests -name __pycache__ -type d -prune -exec rm -rf {} +
