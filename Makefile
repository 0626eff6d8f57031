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

# Tables of seconds and ratios (docs/benchmarks.md); one thread, since that is what processor time can be told for.
bench: export OMP_NUM_THREADS = 1
bench: install
	$(BIN)/python -m benchmarks.sampling --size 64
	$(BIN)/python -m benchmarks.sampling --size 256 --batch 1 --steps 2 --rounds 3
	$(BIN)/python -m benchmarks.training --size 64
	$(BIN)/python -m benchmarks.training --size 256 --images 32 --batch-size 2 --iterations 1 --rounds 3
	@echo "The time of the whole evaluation (minutes): $(BIN)/python -m benchmarks.evaluation --count 1000 --size 256"

clean:
	rm -rf $(VENV) runs build *.egg-info
