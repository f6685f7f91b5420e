# Every target sets up its own environment: all that the machine needs is Python 3.11 or newer, and make.
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CONFIG ?= configs/vae/digits.yaml
BIN := .venv/bin
READY := .venv/.ready
export UV_LINK_MODE := copy
export UV_NO_PROGRESS := 1

DOCKER ?= docker
IMAGE ?= vae-lightning
GPUS ?= all
ENV_FILE ?= .env

.PHONY: help setup train test test-slow check benchmark results format lock image image-train clean
help: ## Show this help
	@echo 'make TARGET; what stands in brackets is optional'
	@sed -n 's/^\([a-z-]*\):.*## /  \1	/p' Makefile

setup: $(READY) ## Create .venv with the locked versions; a second call does nothing, a changed lock installs anew

$(READY): requirements.lock pyproject.toml
	@set -e; for python in "$(PYTHON)" python3 python3.13 python3.12 python3.11 ''; do \
	  if [ -z "$$python" ]; then echo 'make: needs Python 3.11 or newer (PYTHON=/path/to/python3.11)' >&2; exit 2; fi; \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if uv=$$(command -v uv); then uv venv --quiet --allow-existing --python "$$python" .venv; \
	else "$$python" -m venv .venv || { echo 'make: no venv in this Python; on Debian: apt install python3-venv' >&2; exit 2; }; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check uv; uv=$(BIN)/uv; fi; \
	echo 'installing the locked versions into .venv (once; torch is large)'; \
	"$$uv" pip install --python $(BIN)/python --quiet --compile-bytecode --require-hashes -r requirements.lock; \
	"$$uv" pip install --python $(BIN)/python --quiet --no-deps -e .
	@touch $(READY)

train: $(READY) ## Train, test, draw  [CONFIG=configs/vae/mnist.yaml] [DATA_DIR=folder] [ARGS="--trainer.max_epochs=5"]
	@$(BIN)/vae-lightning train -c "$(CONFIG)" $(if $(DATA_DIR),--data.data_dir="$(DATA_DIR)") $(ARGS)

# A process more than there are cores, because some tests wait. Each has whole files, whose fixtures are made once.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) > 7 ? 8 : $$(getconf _NPROCESSORS_ONLN) + 1 )))
test test-slow: $(READY)
	@$(if $(DATA_DIR),VAE_LIGHTNING_DATA_DIR="$(DATA_DIR)") OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(WORKERS) --dist=loadfile --no-loadscope-reorder $(if $(filter test-slow,$@),-m slow) $(ARGS)

test: ## Run the tests  [DATA_DIR=folder with MNIST, for the tests on real data] [ARGS="-k elbo"]
test-slow: ## Run the tests that take longer: they train, or drive a browser or an exporter  [DATA_DIR=] [ARGS=]

check: $(READY) ## Lint, format check, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

benchmark: $(READY) ## Measure speed beside the peers; idle cores, an hour  [DATA_DIR=folder with MNIST] [ARGS="mnist --rounds 3"]
	@uv=$$(command -v uv || echo $(BIN)/uv); "$$uv" pip install --python $(BIN)/python --quiet -e '.[bench]'
	@$(BIN)/python -m benchmarks $(if $(DATA_DIR),--data-dir="$(DATA_DIR)") $(ARGS)

results: $(READY) ## Write docs/results.md from finished runs  [DATA_DIR=folder with MNIST] [ARGS="--run static-vae"]
	@$(BIN)/python -m benchmarks.papers $(if $(DATA_DIR),--data-dir="$(DATA_DIR)") $(ARGS)

format: $(READY) ## Format the code and mend what the linter can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## Resolve requirements.lock anew from pyproject.toml (needs uv)
	@uv=$$(command -v uv || echo $(BIN)/uv); "$$uv" pip compile --quiet --universal --generate-hashes --upgrade \
	  --no-emit-index-url --no-header --extra dev --python-version 3.11 pyproject.toml -o requirements.lock

image: ## Build the Docker image  [IMAGE=name] [ARGS="--build-arg BASE_IMAGE=..."]
	@$(DOCKER) build -t "$(IMAGE)" $(ARGS) .

# --init: signals arrive and nothing is left behind; --ipc=host: shared memory for NCCL; the key comes from the file
image-train: ## Train in the image  [CONFIG=] [DATA_DIR=] [ARGS=] [RUN_ID=name, to go on with] [GPUS=all, or none] [ENV_FILE=.env]
	@mkdir -p runs "$(or $(DATA_DIR),data)"
	@$(DOCKER) run --rm --init $(if $(filter none,$(GPUS)),,--gpus "$(GPUS)") --ipc=host --stop-timeout 60 \
	  --user "$$(id -u):$$(id -g)" $(if $(wildcard $(ENV_FILE)),--env-file "$(ENV_FILE)") \
	  $(if $(RUN_ID),--env VAE_LIGHTNING_RUN_ID="$(RUN_ID)") -v "$(CURDIR)/runs:/app/runs" \
	  -v "$(abspath $(or $(DATA_DIR),data)):/app/data" -v "$(CURDIR)/configs:/app/configs:ro" "$(IMAGE)" \
	  train -c "$(CONFIG)" $(if $(DATA_DIR),--data.data_dir=data) $(ARGS)

clean: ## Remove the environment and the caches; runs/ and data/ stay
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	@find vae_lightning tests -name __pycache__ -type d -prune -exec rm -rf {} +
