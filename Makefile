# Every target sets itself up: Python 3.11+ and make are all a machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
STAMP := $(VENV)/.installed
DEMO := demo-run
FINETUNE := .venv-finetune
CLUSTER := .venv-cluster
FLOORS := .venv-floors
NEWEST := .venv-newest

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1
export HF_HUB_DISABLE_TELEMETRY := 1
# Where this is set, every command that a test starts would compile the whole package anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test floors newest test-durations test-random test-coverage words live slow browser finetune cluster evaluate docs docs-serve bench planted chaos ui lock wheel clean
help: ## show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 10

setup: $(STAMP) ## make .venv with the locked versions
$(STAMP): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("refed-dspy needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r $(LOCK)
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## a real model on this machine makes 6 samples; downloads 1.1 GB once
	$(BIN)/refed teacher fetch
	$(BIN)/refed synth --config examples/demo.yaml --run-dir $(DEMO)
	$(BIN)/refed export $(DEMO) --format jsonl --out $(DEMO)/samples.jsonl --force
	@$(BIN)/refed show $(DEMO)
	@$(BIN)/refed report $(DEMO)
	@echo "All of them on a page: open $(DEMO)/report.html in a browser, or: $(BIN)/refed report $(DEMO) --open"

test: setup ## lint, types, contracts, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test-durations: setup ## the same tests, and the thirty that take longest
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --durations 30 --durations-min 0

test-random: setup ## the same tests in an order drawn anew; SEED=1234 repeats one
	$(BIN)/python -m pytest -p randomly $(if $(SEED),--randomly-seed $(SEED)) -n auto --maxprocesses 4

test-coverage: setup ## the same tests, and the lines of the package that none of them runs
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal --cov refed_dspy --cov-report term:skip-covered

# The fast tests with the package's dependencies as uv resolves them anew. They outweigh what tools ask for: the
# newest of all must not wait for a client that only lends its types.
define tests_resolved
	$(BIN)/uv venv -q --clear --python $(BIN)/python $(2)
	$(BIN)/uv pip compile -q --no-header --no-annotate --resolution $(1) --python $(2) --extra local --extra mipro \
	  pyproject.toml -o $(2)/versions.txt
	$(BIN)/uv pip install -q --python $(2) --override $(2)/versions.txt -r $(2)/versions.txt -e ".[dev,local,mipro]"
	$(2)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal
endef

floors: setup ## the same tests with the oldest version that pyproject.toml allows of each dependency
	$(call tests_resolved,lowest-direct,$(FLOORS))

newest: setup ## the same tests with the newest versions that the index has, whatever is locked
	$(call tests_resolved,highest,$(NEWEST))

words: setup ## write tests/**/__snapshots__ anew after a text was made better; read the difference
	$(BIN)/python -m pytest -n 0 --snapshot-update -m "not live and not browser and not finetune and not cluster and not evaluate"

live: setup ## tests on the tiny real model; downloads 93 MB once
	$(BIN)/refed teacher fetch embedded-smoke
	$(BIN)/python -m pytest -m live tests/live tests/test_docs.py

slow: setup ## tests that take seconds each: kills, servers, whole compiles
	$(BIN)/python -m pytest -m slow -n auto --maxprocesses 4 --dist worksteal

browser: setup ## the report in a real browser; needs Chromium (apt-get install chromium, or REFED_CHROMIUM)
	$(BIN)/python -m pytest -m browser tests/browser

$(FINETUNE)/.installed: examples/finetune/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(FINETUNE)
	$(FINETUNE)/bin/python -m pip install -q -r examples/finetune/requirements.txt -e ".[dev]"
	@touch $@

finetune: $(FINETUNE)/.installed ## the training recipe on a tiny model; installs torch, 6 GB with CUDA
	$(FINETUNE)/bin/python -m pytest -m finetune tests/finetune

$(CLUSTER)/.installed: $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install -q --require-hashes -r $(LOCK)
	$(CLUSTER)/bin/python -m pip install -q -e ".[cluster]"
	@touch $@

cluster: $(CLUSTER)/.installed ## runs on a Ray cluster on this machine, whose nodes are killed; installs Ray, 300 MB
	$(CLUSTER)/bin/python -m pytest -m cluster -n 2 --dist worksteal tests/plugins/cluster/ray

evaluate: setup ## official benchmarks' code; makes environments of 2.7 GB, once; ARENA_HARD_CLONE names a clone
	$(BIN)/python -m pytest -m evaluate tests/plugins/evaluate/official

docs: setup ## the documentation as a site, in site/
	$(BIN)/python docs/site/hooks.py
	$(BIN)/zensical build --strict

docs-serve: setup ## the same on 127.0.0.1:8000, made anew as pages change
	$(BIN)/zensical serve

ui: setup ## MLflow's pages over the store in the user's data folder (or MLFLOW_TRACKING_URI), without its job workers
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --backend-store-uri \
	  "$$($(BIN)/python -c 'from refed_dspy.programs.mlflow_address import tracking_uri; print(tracking_uri())')"

bench: setup ## the figures of benchmarks/README.md, two hours
	$(BIN)/python -m benchmarks.calls
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.batch_kills
	$(BIN)/python -m benchmarks.economy
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.bad_luck
	$(BIN)/python -m benchmarks.balance
	$(BIN)/python -m benchmarks.in_flight
	$(BIN)/python -m benchmarks.long
	$(BIN)/python -m benchmarks.faults
	$(BIN)/python -m benchmarks.damage
	$(BIN)/python -m benchmarks.damage flips
	$(BIN)/python -m benchmarks.endpoints
	$(BIN)/python -m benchmarks.endpoints lies
	$(BIN)/python -m benchmarks.unasked
	$(BIN)/python -m benchmarks.unreachable
	$(BIN)/python -m benchmarks.drips
	$(BIN)/python -m benchmarks.drips_endpoints
	$(BIN)/python -m benchmarks.nonsense
	$(BIN)/python -m benchmarks.odd_lines
	$(BIN)/python -m benchmarks.long_answers
	$(BIN)/python -m benchmarks.estimates
	$(BIN)/python -m benchmarks.forecasts
	$(BIN)/python -m benchmarks.caps
	$(BIN)/python -m benchmarks.claims
	$(BIN)/python -m benchmarks.promotion
	$(BIN)/python -m benchmarks.topics
	$(BIN)/python -m benchmarks.null_compiles
	$(BIN)/python -m benchmarks.optimization
	$(BIN)/python -m benchmarks.compile_costs
	$(BIN)/python -m benchmarks.judge_training
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.stopping
	$(BIN)/python -m benchmarks.rouge
	$(BIN)/python -m benchmarks.duplicates
	$(BIN)/python -m benchmarks.filters
	$(BIN)/python -m benchmarks.guards
	$(BIN)/python -m benchmarks.alpaca
	$(BIN)/python -m benchmarks.collections
	$(BIN)/python -m benchmarks.report

planted: setup ## a hundred and twenty faults planted, an equal share in each room
	$(BIN)/python -m benchmarks.planted 1

chaos: setup ## kills, stops, full disks and a hostile endpoint at random; ten minutes, or CHAOS_MINUTES; CHAOS_SEED repeats
	$(BIN)/python -m benchmarks.chaos

lock: setup ## write requirements/dev.txt anew from pyproject.toml
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra dev --extra docs --extra local pyproject.toml -o $(LOCK) --upgrade
	printf 'alpaca-eval==0.6.6\ndatasets<4\nsetuptools<81\n' | $(BIN)/uv pip compile --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade \
	  -o refed_dspy/plugins/evaluate/alpaca_eval/requirements.txt -
	printf '%s\n' boto3 numpy 'openai>=2,<3' pandas pyyaml requests shortuuid tqdm \
	  filelock fsspec jinja2 networkx setuptools sympy typing-extensions | $(BIN)/uv pip compile --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade \
	  -o refed_dspy/plugins/evaluate/arena_hard/requirements.txt -
	printf 'lm-eval[ifeval]==0.4.13\n' | $(BIN)/uv pip compile --universal \
	  --python-version 3.11 --generate-hashes --no-header --no-annotate --upgrade \
	  -o refed_dspy/plugins/evaluate/ifeval/requirements.txt -

wheel: setup ## the wheel in an empty environment: packages, sizes, start-up; installs from the package index
	$(BIN)/python -m benchmarks.install

clean: ## remove what the targets made
	rm -rf $(VENV) $(FINETUNE) $(CLUSTER) $(FLOORS) $(NEWEST) $(DEMO) site build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
