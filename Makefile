# make demo               Label Studio, opened on pictures that already carry masks; Ctrl-C stops all of it
# make demo CHECK=1       the round trip unattended: pre-label, correct, learn, serve the better version
# make test               lint, type check, tests, tests on a real Label Studio
#
# Needs Python 3.11 or newer and make. Environments are made on first use and reused after.
# Ports of the demo: DEMO_PORT (Label Studio), BACKEND_PORT. Its data: DEMO_DIR.

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-e2e lint format soak bench venv venv-label-studio env demo-checkpoint pictures clean

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
VENV ?= .venv
LABEL_STUDIO_VENV ?= .venv-label-studio
BIN := $(VENV)/bin
DEMO_PORT ?= 8080
BACKEND_PORT ?= 9090
DEMO_DIR ?=
PYTEST_ARGS ?=
SOAK_MINUTES ?= 10
SOAK_TASKS ?= 10000
SOAK_KILLS ?= 50

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

venv: ## create or reuse .venv, the project's environment
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) tools/environment.py $(VENV) -- --editable '.[dev]' --constraint constraints.txt

venv-label-studio: ## create or reuse .venv-label-studio, Label Studio's own environment
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found. Install one, or: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) tools/environment.py $(LABEL_STUDIO_VENV) -- --requirement requirements-label-studio.txt

env: ## docker/.env with random secrets, for docker compose; make env NAME=VALUE sets what docker/.env.example names
	@sh docker/make-env.sh $(MAKEOVERRIDES)

demo: venv venv-label-studio ## Label Studio with pre-labelled pictures; CHECK=1 for the unattended round trip
	@exec $(BIN)/vlm demo --label-studio $(LABEL_STUDIO_VENV)/bin/label-studio \
		--port $(DEMO_PORT) --backend-port $(BACKEND_PORT) \
		$(if $(DEMO_DIR),--data-dir $(DEMO_DIR)) $(if $(filter-out 0,$(CHECK)),--check)

lint: venv ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

format: venv ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## everything: lint, fast tests, then the real Label Studio
	@$(MAKE) --no-print-directory test-fast
	@$(MAKE) --no-print-directory test-e2e

# Processes beside each other, each with one thread: two threads of each of two would wait for one another. They take
# half a gigabyte each, so more than four are not started by themselves.
test-fast: venv ## tests that need no Label Studio
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not e2e" -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-e2e: venv venv-label-studio ## tests on a real Label Studio, a real Redis and a worker
	VLM_TEST_LABEL_STUDIO=$(abspath $(LABEL_STUDIO_VENV))/bin/label-studio $(BIN)/pytest -m e2e $(PYTEST_ARGS)

soak: venv venv-label-studio ## SOAK_MINUTES of predictions, SOAK_TASKS pre-labelled and trainings with kills; writes benchmarks/PRELABEL.md and KILLS.md
	$(BIN)/python benchmarks/soak.py --minutes $(SOAK_MINUTES)
	$(BIN)/python benchmarks/prelabel_soak.py --tasks $(SOAK_TASKS) \
		--label-studio $(LABEL_STUDIO_VENV)/bin/label-studio --write
	$(BIN)/python -m benchmarks.training_kills --kills $(SOAK_KILLS) --write

bench: venv ## the engine against its references, on an idle machine; writes benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks.bench

pictures: venv venv-label-studio ## all pictures of the documents anew; needs Chromium, and some ten minutes
	$(BIN)/python -m vlm_core.demo.gallery --out docs/pictures
	$(BIN)/python -m vlm_core.demo.controls --out docs/pictures/controls
	$(BIN)/python benchmarks/tiles.py --scenes 0
	$(BIN)/python benchmarks/exemplars.py --learn 400
	VLM_PICTURES=$(abspath docs/pictures) VLM_TEST_LABEL_STUDIO=$(abspath $(LABEL_STUDIO_VENV))/bin/label-studio \
		$(BIN)/pytest tests/demo/test_report_page.py tests/e2e/test_browser.py tests/e2e/test_status_page.py \
		tests/e2e/test_interactive.py tests/e2e/test_every_control.py

demo-checkpoint: venv ## train the demo checkpoint anew and put it into the package; goes on after an interruption
	$(BIN)/python -m vlm_core.demo.build --work runs/demo-checkpoint --resume --install

clean: ## what the tools left; environments and the demo's data stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find backend vlm_core training_jobs tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +
