# demo, test, lint and bench each make or refresh .venv first. Needs Python 3.11, g++ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.complete
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow test-long test-fuzz test-oracle lint bench clean

demo: $(STAMP)
	$(BIN)/r2kg demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not fuzz and not oracle"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not long"

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

test-fuzz: $(STAMP)
	$(BIN)/python -m pytest -m fuzz

test-oracle: $(STAMP)
	test -x .venv-medspacy/bin/python || $(PYTHON) -m venv .venv-medspacy
	.venv-medspacy/bin/python -m pip install --quiet --disable-pip-version-check medspacy
	R2KG_MEDSPACY=.venv-medspacy/bin/python $(BIN)/python -m pytest -s -m oracle

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m bench.ingest
	$(BIN)/python -m bench.overhead
	$(BIN)/python -m bench.write

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(BIN)/python -c "from r2kg.training.engine import build_extension; build_extension()"
	touch $@

clean:
	rm -rf $(VENV) .venv-medspacy build *.egg-info
