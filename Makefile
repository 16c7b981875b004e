# The front door. `make` alone lists what it can do; CI runs the same targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
E ?= rabbitmq-redis
COMPOSE = docker compose --env-file .env $(if $(wildcard secrets.env),--env-file secrets.env) --env-file docker/env/$(E).env $(if $(wildcard docker-compose.gpus.yml),-f docker-compose.yml -f docker-compose.gpus.yml)

.PHONY: help venv lock lint format test demo gpu up down secrets acceptance examples bench-document bench-overhead bench-growth bench-video bench-batching gpu-check bench-features bench-gauges faults faults-red docs clean

help: ## List the targets
	@grep -hE '^[a-z][a-z-]*:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1|\2/' | \
	while IFS='|' read -r name what; do printf '  make %-16s %s\n' "$$name" "$$what"; done

venv: $(VENV)/.installed ## Make the environment in .venv from the hash-locked requirements

# uv takes the package index from pip's settings, so that a site with its own index needs no second file.
# It installs exactly what is locked and asks no resolver: overrides.txt corrects a wrong requirement in there.
$(VENV)/.installed: requirements/dev.txt requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Gristmill needs Python 3.11 or newer; say which: make PYTHON=python3.12 ...")'
	@echo "Making the environment in $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@index=$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/python -m pip config get global.index-url 2>/dev/null || true)}}; \
	if test -n "$$index"; then export UV_DEFAULT_INDEX="$$index"; fi; \
	export UV_LINK_MODE=copy VIRTUAL_ENV=$(VENV); \
	$(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements/dev.txt requirements/uv.txt; \
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

lock: $(VENV)/.installed ## Write the requirements' locks anew (UPGRADE=1 takes newer versions)
	$(BIN)/python requirements/lock.py $(if $(UPGRADE),--upgrade)

lint: $(VENV)/.installed ## Check style, types, the arrows between packages, and that no lock is stale
	$(BIN)/python requirements/lock.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(VENV)/.installed ## Run every test against real servers; T=path narrows them
ifdef T
	$(BIN)/python -m pytest $(T)
else
	@status=0; set -x; \
	$(BIN)/python -m pytest -m alone || status=$$?; \
	$(BIN)/python -m pytest -m "not alone" -n 2 --dist loadscope --no-loadscope-reorder || status=$$?; \
	exit $$status
endif

demo: $(VENV)/.installed ## See a real video go through the whole pipeline on this machine
	@$(BIN)/python -m gristmill.demo

gpu: $(VENV)/.installed ## Write docker-compose.gpus.yml: one inference service for each GPU or MIG slice of this machine
	$(BIN)/python -m celery_worker.gpus

up: ## Start the stack in containers and wait until it is healthy; E=rabbitmq-postgres or redis-postgres
	$(COMPOSE) up -d --build --wait

down: ## Stop the stack; records and files stay in their volumes
	$(COMPOSE) down

secrets: ## Write random passwords to secrets.env, for `make up` outside dev
	@$(PYTHON) docker/write_secrets.py

# Not in the whole: T=tests/compose/check_messages.py, which brings about the messages of docs/operating.md in some minutes
# more, and check_gpu_image.py, which fetches CUDA's libraries.
acceptance: $(VENV)/.installed ## Prove the stack on real containers, from outside; needs a Docker engine; T=path narrows it
	$(BIN)/python -m pytest $(or $(T),tests/compose $(addprefix --ignore=tests/compose/check_,messages.py gpu_image.py)) -o python_files='check_*.py' --timeout 900 --session-timeout 3000

examples: $(VENV)/.installed ## Run every pipeline's example through HTTP and compare with its stored answer; T=name narrows them
	$(BIN)/python -m bench.examples $(T)

bench-document: $(VENV)/.installed ## How well `document` tells sentiment, entities and categories, on what it was not fitted to
	$(BIN)/python -m bench.document

bench-overhead: $(VENV)/.installed ## What a job costs beside FastAPI and a Celery chain, and how fast jobs are accepted
	$(BIN)/python -m bench.overhead

bench-growth: $(VENV)/.installed ## What a backlog of 100,000 jobs and a history of 1,000,000 cost
	$(BIN)/python -m bench.growth

bench-video: $(VENV)/.installed ## Frames per second beside a hand-written loop
	$(BIN)/python -m bench.video

bench-batching: $(VENV)/.installed ## What several jobs in one call of a model are worth, and what they cost
	$(BIN)/python -m bench.batching

gpu-check: $(VENV)/.installed ## Compare a GPU with the CPU, and see how busy it is kept; fails where there is no GPU
	$(BIN)/python -m bench.gpu_check

bench-gauges: $(VENV)/.installed ## What metrics, logs and traces cost: submit rate and video, on against off
	$(BIN)/python -m bench.gauges

bench-features: $(VENV)/.installed ## Map features beside a hand-written loop, seams, crowns, memory
	$(BIN)/python -m bench.features

CASE ?=
STORE ?=
BROKER ?=
MATRIX ?=
WITHOUT ?=

faults: $(VENV)/.installed ## Break it on purpose and account for every job; CASE=6 STORE=postgres BROKER=quorum narrow, MATRIX=full widens
	$(BIN)/python -m tests.faults --case "$(CASE)" --store "$(STORE)" --broker "$(BROKER)" --matrix "$(MATRIX)"

faults-red: $(VENV)/.installed ## Switch each protection off in turn and see what falls; WITHOUT=fence narrows
	$(BIN)/python -m tests.faults.red --without "$(WITHOUT)"

docs: $(VENV)/.installed ## Check what can be checked in README and docs/
	$(BIN)/python -m pytest tests/unit/test_house.py

clean: ## Remove what make and the tests left, but no data of yours (.gristmill stays)
	rm -rf $(VENV) .gristmill-demo demo-output build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
