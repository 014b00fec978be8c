# `make quickstart` and `make test` work on a fresh clone: each makes its own .venv and reuses it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off

.PHONY: help quickstart tiny test test-fast gpu-check demo lint format clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "error: Python 3.11 or 3.12 is needed, $(PYTHON) is another; write make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@# A python without pip is what a failed call leaves, e.g. on a Debian without python3-venv.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned packages into $(VENV) (about 6 GB with PyTorch; once)"
	$(PIP) -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) -e '.[dev]'
	touch $@

quickstart: $(VENV)/installed  ## train both stages on a sample set and write output/quickstart/report.html
	$(BIN)/minigpt4 quickstart

tiny: $(VENV)/installed-dev  ## train the small model that ships: make tiny PHOTOS=/path/to/photos.jsonl
	@test -n "$(PHOTOS)" || { echo "error: write make tiny PHOTOS=/path/to/photos.jsonl; checkpoints/tiny/README.md says what it holds" >&2; exit 1; }
	$(BIN)/minigpt4 tiny --photos "$(PHOTOS)"

demo: $(VENV)/installed  ## open the chat with the small model on http://127.0.0.1:7860
	$(BIN)/minigpt4 weights
	$(BIN)/python demo.py --cfg-path eval_configs/tiny_eval.yaml

test: $(VENV)/installed-dev  ## run all tests (unit, golden, end to end)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  echo "note: no Chromium here and it cannot be installed; the browser test will be skipped"
	$(BIN)/python -m pytest

test-fast: $(VENV)/installed-dev  ## run the unit and golden tests only
	$(BIN)/python -m pytest tests/unit tests/golden

gpu-check: $(VENV)/installed-dev  ## on a GPU of 80 GB, 8 minutes: the numbers, speed and memory (docs/gpu.md)
	$(BIN)/python -m tests.gpu

lint: $(VENV)/installed-dev  ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment, weights, made data and outputs
	rm -rf $(VENV) weights data output
