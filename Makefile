# Every target works on a fresh clone: it makes .venv with the versions in requirements.lock, and later ones reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --progress-bar off -c requirements.lock
# uv installs the same wheels sooner; where it cannot reach them (a mirror that only pip is told of), pip does.
INSTALL = install() { $(BIN)/uv pip install --python $(BIN)/python -c requirements.lock "$$@" || $(PIP) "$$@"; }; install

.PHONY: help quickstart demo tiny test test-fast bench gpu-check lint format lock clean
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "error: Python 3.11 or 3.12 is needed, $(PYTHON) is another; write make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@# A failed call leaves a python without pip, e.g. on a Debian without python3-venv.
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing the versions of requirements.lock into $(VENV) (about 6 GB with PyTorch; once)"
	$(PIP) -q uv
	@$(INSTALL) -e '.[quickstart]'
	touch $@

$(VENV)/installed-demo: $(VENV)/installed
	@$(INSTALL) -e '.[demo,quickstart,lora,int8]'
	touch $@

$(VENV)/installed-dev: $(VENV)/installed-demo
	@$(INSTALL) -e '.[dev]'
	touch $@

quickstart: $(VENV)/installed  ## train both stages on the small model and write output/quickstart/report.html
	$(BIN)/minigpt4 quickstart

demo: $(VENV)/installed-demo  ## open the chat with the small model, or with a projection of yours: make demo CKPT=FILE
	$(BIN)/minigpt4 weights
	$(BIN)/python demo.py --cfg-path eval_configs/tiny_eval.yaml $(if $(CKPT),--options model.ckpt=$(CKPT))

tiny: $(VENV)/installed-dev  ## train the small model that ships: make tiny PHOTOS=/path/to/photos.jsonl
	@test -n "$(PHOTOS)" || { echo "error: write make tiny PHOTOS=/path/to/photos.jsonl; checkpoints/tiny/README.md says what it holds" >&2; exit 1; }
	$(BIN)/minigpt4 tiny --photos "$(PHOTOS)"

test: $(VENV)/installed-dev  ## run all tests (unit, golden, end to end)
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
	  echo "note: no Chromium here and it cannot be installed; the browser test will be skipped"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/golden -n 2 --dist loadfile
	$(BIN)/python -m pytest tests/e2e

test-fast: $(VENV)/installed-dev  ## run the unit and golden tests only
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/unit tests/golden -n 2 --dist loadfile

bench: $(VENV)/installed-dev  ## on two idle cores, 15 minutes: speed and memory beside peers (docs/performance.md)
	$(BIN)/minigpt4 weights
	$(BIN)/python -m bench

gpu-check: $(VENV)/installed-dev  ## on a GPU of 80 GB, 8 minutes: the numbers, speed and memory (docs/gpu.md)
	$(BIN)/python -m tests.gpu

lint: $(VENV)/installed-dev  ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed-dev  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(VENV)/installed-dev  ## write requirements.lock from what is installed in .venv
	$(BIN)/python -m pip freeze --exclude minigpt4 > requirements.lock
	touch $(VENV)/installed $(VENV)/installed-demo $(VENV)/installed-dev

clean:  ## remove the environment, weights, made data and outputs
	rm -rf $(VENV) weights data output
