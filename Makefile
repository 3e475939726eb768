# The front door. `make help` explains every target.

SHELL := /bin/bash
BIN := .venv/bin
STAMP := .venv/.posttrain-installed
SOURCES := posttrain judges curricula rollouts configs tests

# A preset's name (configs/NAME.yaml) or the path of a YAML file.
CONFIG ?= tiny
# The run directory, shared by the stages of one run.
RUN ?= runs/$(patsubst %.yaml,%,$(notdir $(CONFIG)))
# For sft, rl and dpo: `auto` or a checkpoint directory continues a stage that was stopped.
RESUME ?=
# For eval: any checkpoint directory.
CHECKPOINT ?= $(RUN)/export
# For tiny: a new directory.
OUT ?= runs/world
# For bench: the names of benchmarks in tests/benchmarks; without one all but the long ones.
NAME ?=
# More arguments for the command, such as overrides of the config: ARGS="rl.max_staleness=0".
ARGS ?=

# Exported only when set on the command line, for .ci/install.sh.
export PYTHON EXTRA

.DEFAULT_GOAL := help
.PHONY: help install demo doctor run prune sft rl dpo passk eval tiny bench test test-fast chaos lint format typecheck \
	contract clean

help: ## explain every target
	@echo 'usage: make TARGET [CONFIG=tiny] [RUN=runs/NAME] [RESUME=auto] [ARGS="rl.max_staleness=0"]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'CONFIG is the name of a preset in configs/ or the path of a YAML file. RUN is the run directory that the'
	@echo 'stages share (default: runs/CONFIG). What a target needs is installed first, into .venv.'

install: $(STAMP) ## create .venv and install everything in it, pinned by .ci/constraints-cpu.txt (GPU: found by itself)

$(STAMP): pyproject.toml .ci/constraints-cpu.txt .ci/install.sh
	@.ci/install.sh

demo: RUN = runs/demo
demo: $(STAMP) ## watch a tiny model get better in three stages, on two CPU cores, in minutes
	$(BIN)/posttrain run tiny --run $(RUN) $(ARGS)

doctor: $(STAMP) ## try out what a long RL run of CONFIG depends on; a check that fails names its cause
	$(BIN)/posttrain doctor $(CONFIG) --run $(RUN) $(ARGS)

run: $(STAMP) ## all stages of CONFIG; continues where RUN stands
	$(BIN)/posttrain run $(CONFIG) --run $(RUN) $(ARGS)

prune: $(STAMP) ## judge every demonstration and drop the easy ones
	$(BIN)/posttrain prune $(CONFIG) --run $(RUN) $(ARGS)

sft: $(STAMP) ## supervised fine-tuning on the demonstrations that prune kept
sft: stage = sft
rl: $(STAMP) ## asynchronous online reinforcement learning, from RUN's newest SFT checkpoint
rl: stage = rl
dpo: $(STAMP) ## light DPO on mined corner cases, from RUN's newest RL checkpoint
dpo: stage = dpo
sft rl dpo:
	$(BIN)/posttrain $(stage) $(CONFIG) --run $(RUN) $(if $(RESUME),--resume $(RESUME)) $(ARGS)

passk: $(STAMP) ## pass rates of the RL prompts of CONFIG by the newest checkpoint of RUN
	$(BIN)/posttrain passk $(CONFIG) --run $(RUN) $(ARGS)

eval: $(STAMP) ## measure CHECKPOINT (default: RUN/export): pass@1, pass@k and corner cases, with intervals
	$(BIN)/posttrain eval $(CHECKPOINT) --config $(CONFIG) $(ARGS)

tiny: $(STAMP) ## build the tiny world again from its seed (the committed one is what demo uses)
	$(BIN)/posttrain tiny build $(OUT) $(ARGS)

bench: $(STAMP) ## measure speed against stated targets; NAME=overlap one of them, ARGS=--quick to see that they run
	$(BIN)/python -m tests.benchmarks $(NAME) $(ARGS)

test: $(STAMP) ## all tests, the real engines included (some 20 minutes on two cores)
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-fast: $(STAMP) ## the tests that start no engine
	$(BIN)/pytest -m "not integration and not slow and not gpu" $(ARGS)

chaos: $(STAMP) ## kill RL runs at random moments and continue them; every draw must be accounted for (an hour)
	$(BIN)/python -m tests.chaos $(ARGS)

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(STAMP) ## let ruff fix and format the code
	$(BIN)/ruff check --fix-only $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

typecheck: $(STAMP) ## mypy over the four packages
	$(BIN)/mypy

contract: $(STAMP) ## import-linter: imports point down, type files load no engine
	$(BIN)/lint-imports

clean: ## remove caches and built packages; runs/ and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
