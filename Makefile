# Every target sets up what it needs in .venv; delete .venv to start over.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-oldest test-soak test-cuda test-comfyui fuzz lint bench bench-download bench-start check-demo check-layouts train-demo clean

demo: $(READY)
	$(BIN)/candela generate \
	  "a large red star on a blue background" \
	  "a small yellow circle in the top left corner on a purple background" \
	  "a green cross on the right, white background" \
	  --seed 2 --out outputs
	@echo "The pictures are in $(CURDIR)/outputs"

# In parallel; a worker takes about 1 GB.
PARALLEL := -n auto --maxprocesses 8 --dist worksteal

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

# The same on the oldest versions that pyproject.toml allows, all at once, in an environment of its own (torch from the
# package index is a CUDA build there: 6 GB).
OLDEST := build/oldest
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' | sed 's/>=/==/' > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/oldest.txt -e '.[dev]'
	$(OLDEST)/bin/python -m pytest $(PARALLEL)

# What goes on for minutes: installers killed at random moments (SEED=... repeats them).
test-soak: $(READY)
	$(BIN)/python -m pytest -m soak -s

# On a machine with an NVIDIA card; says what it skips elsewhere.
test-cuda: $(READY)
	$(BIN)/python -m pytest -m cuda tests/cuda -rs

# Real ComfyUI servers and a real browser. Needs ComfyUI checkouts with a .venv each; see CONTRIBUTING.md.
test-comfyui: $(READY)
	@$(BIN)/python -c 'from tests.comfyui.server import cores; found = cores(); print("ComfyUI cores:", ", ".join(c.version for c in found) or "NONE FOUND: nothing below was tested. Put checkouts under ~/.cache/candela/comfyui or set COMFYUI_DIR; see CONTRIBUTING.md")'
	$(BIN)/python -m pytest -m comfyui tests/comfyui -rs

# Mutated headers, records and pictures, until one escapes the error tree. Guided by coverage after $(BIN)/pip install -e '.[fuzz]'.
RUNS ?= 200000
fuzz: $(READY)
	$(BIN)/python -m tests.attacks.fuzz safetensors $(RUNS)
	$(BIN)/python -m tests.attacks.fuzz gguf $(RUNS)
	$(BIN)/python -m tests.attacks.fuzz record $(RUNS)
	$(BIN)/python -m tests.attacks.fuzz picture $(RUNS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Candela beside the bare diffusers pipeline, on a model of middle size and on the demo.
bench: $(READY)
	$(BIN)/candela bench --suite cpu

# A verified download against curl's, from one server on this machine; then what `candela install` does beside
# huggingface_hub where something goes wrong. 5 GB of disk for some minutes.
bench-download: $(READY)
	$(BIN)/python -m benchmarks.download
	$(BIN)/python -m benchmarks.downloaders

# Loading a 2 GB folder against diffusers, and the way from the command to the picture; 5 GB of disk for minutes.
bench-start: $(READY)
	$(BIN)/python -m benchmarks.loading
	$(BIN)/python -m benchmarks.start

# The demo model's accuracy over prompts it was never trained on.
check-demo: $(READY)
	$(BIN)/python -m benchmarks.demo_accuracy

# The same for the demo in every layout and precision, and what GGUF saves in memory.
check-layouts: $(READY)
	$(BIN)/python -m benchmarks.layouts

# From nothing, seeded; see training/README.md for how long.
train-demo: $(READY)
	$(BIN)/python -m training.train_demo

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Candela needs Python 3.11 or newer (diffusers does); {sys.executable} is {v.major}.{v.minor}. Run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:
	rm -rf $(VENV) build outputs .pytest_cache .mypy_cache .ruff_cache
