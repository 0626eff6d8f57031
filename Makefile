# make demo: install into .venv, simulate two devices, train everything, synthesise, retrain, evaluate, write the report
# make test: install into .venv, lint, type-check, run the tests
# make test-legacy: compare with monai-generative 0.2.3 itself, in .venv-legacy
# make test-label: install MONAI Label into .venv-label, drive a real server through a whole cycle
# make test-street: install into .venv-street, compare with diffusers and transformers, run the street commands
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
OUTPUT ?= runs/demo
# Where torch comes from, where the default index would give another build; without a GPU, PyTorch's index for the CPU:
# make install-label TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "torch==$$(sed -n 's/^torch==//p' requirements.txt)"
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

VENV_LABEL ?= .venv-label
BIN_LABEL   = $(VENV_LABEL)/bin

.PHONY: install install-label demo test test-full test-label test-legacy test-street bench lint clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@

# MONAI Label wants other versions than the rest (pydicom 2), so it has an environment of its own.
install-label: $(VENV_LABEL)/.installed

$(VENV_LABEL)/.installed: requirements.txt requirements-label.txt pyproject.toml
	$(PYTHON) -m venv $(VENV_LABEL)
	grep -v "^pydicom==" requirements.txt > $(VENV_LABEL)/constraints.txt
	$(BIN_LABEL)/python -m pip install --quiet $(TORCH)
	$(BIN_LABEL)/python -m pip install --quiet -c $(VENV_LABEL)/constraints.txt -e ".[label]" "pytest>=8"
	$(BIN_LABEL)/python -m pip install --quiet --no-deps -r requirements-label.txt
	touch $@

demo: install
	$(BIN)/unicorn-monai demo --preset quick --output $(OUTPUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports --no-cache

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
	$(BIN)/python -m benchmarks.memory
	@echo "Large batches at 256 x 256 (long on a CPU): $(BIN)/python -m benchmarks.sampling --size 256 --batch 8 32 --steps 2 --rounds 3"
	@echo "Quality against denoising steps (with 1000, long everywhere): $(BIN)/python -m benchmarks.steps $(OUTPUT) --output $(OUTPUT)_steps"
	@echo "The time of the whole evaluation (minutes): $(BIN)/python -m benchmarks.evaluation --count 1000 --size 256"

# Weights of monai-generative: its networks answer in an environment of their own, today's MONAI must answer the same.
LEGACY ?= .venv-legacy

$(LEGACY)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(LEGACY)
	$(LEGACY)/bin/python -m pip install --quiet $$(sed -n '/^torch==/p;/^monai==/p;/^numpy==/p;/^einops==/p' requirements.txt)
	$(LEGACY)/bin/python -m pip install --quiet $$(sed -n 's/^legacy = \["\(.*\)"\].*/\1/p' pyproject.toml)
	touch $@

test-legacy: install $(LEGACY)/.installed
	UNICORN_LEGACY_PYTHON=$(LEGACY)/bin/python $(BIN)/python -m pytest tests/backbones/test_legacy.py

test-label: install-label
	OMP_NUM_THREADS=1 $(BIN_LABEL)/python -m pytest tests/monailabel

# Stable Diffusion against diffusers, CLIP by transformers: packages that nothing else needs, in an environment of their own.
STREET = .venv-street
$(STREET)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(STREET)
	$(STREET)/bin/python -m pip install --quiet $(TORCH)
	$(STREET)/bin/python -m pip install --quiet -r requirements.txt
	$(STREET)/bin/python -m pip install --quiet -e ".[street-dev]"
	touch $@

test-street: $(STREET)/.installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(STREET)/bin/python -m pytest tests/backbones/test_stable_diffusion.py tests/diffusion/test_text.py \
		tests/segmentation/test_segformer.py tests/bundle/test_rgb_stable_diffusion.py tests/experiment/test_street_commands.py

clean:
	rm -rf $(VENV) $(LEGACY) $(VENV_LABEL) $(STREET) runs build *.egg-info
