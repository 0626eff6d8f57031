# make demo: install into .venv, simulate two devices, train everything, synthesise, retrain, evaluate, write the report
# make test: install into .venv, lint, type-check, run the tests
# make test-street: install into .venv-street, compare with diffusers and transformers
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUTPUT ?= runs/demo
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: install demo test test-full test-street lint clean

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

# Stable Diffusion against diffusers, CLIP by transformers: packages that nothing else needs, in an environment of their own.
STREET = .venv-street
$(STREET)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(STREET)
	$(STREET)/bin/python -m pip install --quiet "torch==$$(sed -n 's/^torch==//p' requirements.txt)"
	$(STREET)/bin/python -m pip install --quiet -r requirements.txt
	$(STREET)/bin/python -m pip install --quiet -e ".[street-dev]"
	touch $@

test-street: $(STREET)/.installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(STREET)/bin/python -m pytest tests/test_stable_diffusion.py tests/test_prompts.py

clean:
	rm -rf $(VENV) $(STREET) runs build *.egg-info
