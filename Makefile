# Every target installs what it needs by itself. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: help setup demo test soak check lint bench fib25 fib25-arguments
.DEFAULT_GOAL := help

help:
	@echo "make setup    install everything into $(VENV)"
	@echo "make demo     synthetic volume to scored segmentation and an HTML report"
	@echo "make fib25    the same road on real FIB-SEM: DATA=<fib25.zarr> BACKBONE=<folder or id> OUT=<folder>"
	@echo "make test     the whole test suite"
	@echo "make soak     memory for large volumes; preprocessing killed 60 times, a training 100 times, blockwise runs 60 times; ten epochs of loading by 8 processes and by 8 threads: two hours"
	@echo "make check    linter, formatter, type checker and fast tests"
	@echo "make lint     make check without the tests"
	@echo "make bench    time and memory of every step, into bench/results.json (DATA=, BACKBONE= as for fib25)"

setup: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, but '$(PYTHON)' is missing or older: install one and run 'make $(or $(MAKECMDGOALS),setup) PYTHON=python3.11'." >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed: install Python's venv module (Debian and Ubuntu: apt-get install python3-venv)." >&2; \
		exit 1; }
	@echo "Installing into $(VENV); the first time takes a few minutes."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup
	cd bundle && $(BIN)/python -m scripts.demo

test: setup
	$(BIN)/python -m pytest $(PARALLEL)

soak: setup
	$(BIN)/python -m tests.soak

check: lint
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m bench.run $(if $(DATA),--data "$(DATA)") $(if $(BACKBONE),--backbone "$(BACKBONE)")

# A relative path becomes absolute, because the recipe changes into bundle/.
absolute = $$(case "$(1)" in /*) echo "$(1)";; *) echo "$(CURDIR)/$(1)";; esac)

fib25: fib25-arguments setup
	cd bundle && $(BIN)/python -m scripts.fib25 \
		--data "$(call absolute,$(DATA))" \
		--backbone "$$(if [ -e "$(CURDIR)/$(BACKBONE)" ]; then echo "$(CURDIR)/$(BACKBONE)"; else echo "$(BACKBONE)"; fi)" \
		--out "$(call absolute,$(OUT))"

fib25-arguments:
	@test -n "$(DATA)" || { echo "make fib25 needs DATA=<fib25.zarr>: 'make setup && cd bundle && ../.venv/bin/python -m scripts.samples fib25 ../data' downloads the public data and builds it." >&2; exit 2; }
	@test -n "$(BACKBONE)" || { echo "make fib25 needs BACKBONE=<id or folder>: the Hugging Face id facebook/dinov2-small, or a local folder with config.json and model.safetensors of a ViT-S/14." >&2; exit 2; }
	@test -n "$(OUT)" || { echo "make fib25 needs OUT=<folder>: any folder with a few gigabytes free, to hold the feature cache, the model and the segmentation." >&2; exit 2; }
