# make demo: install into .venv, simulate two devices, train everything, synthesise, retrain, evaluate, write the report
# make test: install into .venv, lint, type-check, run the tests
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUTPUT ?= runs/demo
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: install demo test test-full lint bench clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' requirements.txt)"
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

demo: install
	$(BIN)/unicorn-monai demo --preset quick --output $(OUTPUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# One thread per process: tiny networks gain nothing from more, and waiting threads slow each other down.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: lint
	$(PYTEST) -m "not slow"

test-full: lint
	$(PYTEST)

# Nothing is judged: tables of seconds and ratios (docs/benchmarks.md), about half an hour on 2 cores.
bench: install
	$(BIN)/python -m benchmarks.sampling
	$(BIN)/python -m benchmarks.training
	@echo "The time of the whole evaluation: $(BIN)/python -m benchmarks.evaluation --count 1000 --size 256"

clean:
	rm -rf $(VENV) runs build *.egg-info
