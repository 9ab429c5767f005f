# make demo     set up, then run the main job on the embedded model (about 6 minutes)
# make test     set up, then run the tests
# make fast     set up, then run only the fast tests (a minute)
# make lint     ruff and mypy
# make bench    compare PPO with TRL 1.12's (20 minutes; makes an environment for TRL)
# make pictures make the pictures of the documents (needs chromium; runs the demo if it has not run)
# make demo-model   make the embedded model again from scratch (about 11 minutes)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2  # number of test processes
# The environment is made again only if its requirements have changed.
PINS := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
READY := $(VENV)/.ready-$(PINS)
LAUNCH := $(BIN)/accelerate launch --quiet --config_file recipes/accelerate/one_process.yaml

.PHONY: demo test fast lint bench pictures demo-model
.DELETE_ON_ERROR:

demo: $(READY)
	$(LAUNCH) recipes/demo.py $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "" $(ARGS)

fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/ppo_vs_trl.py $(ARGS)

pictures: $(READY)
	$(BIN)/python docs/pictures/make.py $(ARGS)

demo-model: $(READY)
	$(LAUNCH) recipes/demo_model.py --overwrite $(ARGS)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev,label]" -c constraints.txt
	@rm -f $(VENV)/.ready-*
	@touch $@
