# Two commands: `make demo` runs it for real, `make test` proves it. Both install what they need into .venv first.

PYTHON ?= python3
BIN := .venv/bin
# For two cores: a test waits for its processes now and then.
JOBS ?= 4
FAILURE_JOBS ?= 3
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := .venv/installed
export PYTHONUNBUFFERED := 1
# The tests start hundreds of processes of ours: each would compile all modules again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help venv demo up lint format test test-long mutations test-gpu screens coverage bench migration constraints clean

help: ## What can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)$$/make \1|\2/p' Makefile | while IFS='|' read -r name what; do printf '%-18s %s\n' "$$name" "$$what"; done

venv: $(INSTALLED) ## Install everything into .venv (again only when pyproject.toml or constraints.txt changed)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Penstock needs Python 3.11 or newer, and '$(PYTHON)' isn't: make venv PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "==> making .venv"; $(PYTHON) -m venv .venv; }
	@echo "==> installing torch (the largest part: some minutes at the first time)"
	@$(PIP) install --quiet -c constraints.txt torch==2.13.0
	@echo "==> installing Penstock and its development tools"
	@$(PIP) install --quiet -c constraints.txt -e '.[dev,bench]'
	@touch $@
	@echo "==> installed"

demo: venv ## Start everything, run 20 real prompts through it, show what happened
	@$(BIN)/penstock demo

up: venv ## Start everything and stay: API, worker, Postgres, Redis, until Ctrl-C
	@$(BIN)/penstock up

lint: venv ## Check style, types and the directions of imports
	@echo "==> ruff check"; $(BIN)/ruff check .
	@echo "==> ruff format --check"; $(BIN)/ruff format --check .
	@echo "==> mypy"; $(BIN)/mypy
	@echo "==> lint-imports"; $(BIN)/lint-imports

format: venv ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

test: lint ## Lint, then all tests but the long matrix and the GPU's
	@echo "==> pytest, $(JOBS) at a time"; $(BIN)/pytest -m "not long and not gpu" --ignore tests/failure -n $(JOBS) --dist worksteal
	@echo "==> pytest tests/failure, $(FAILURE_JOBS) at a time"; $(BIN)/pytest -m "not long and not gpu" tests/failure -n $(FAILURE_JOBS) --dist worksteal

test-long: venv ## The long matrix, and new random examples for the property tests
	@$(BIN)/pytest -m "(long or hypothesis) and not gpu" --hypothesis-profile explore

mutations: venv ## Take out each guard of the protocol and see a test fail: make mutations NAME=fence-finish, or all
	@$(BIN)/python -m tests.mutations $(NAME)

test-gpu: venv ## What needs a CUDA device
	@$(BIN)/pytest -m gpu || { status=$$?; test $$status -eq 5 && echo "no test is marked gpu yet" || exit $$status; }

screens: venv ## Photograph the dashboard's pages in a browser, into build/screens
	@SCREENS=build/screens $(BIN)/pytest -m "not long and not gpu" tests/browser

coverage: venv ## The tests of `make test` with branch coverage
	@$(BIN)/pytest -m "not long and not gpu" --cov --cov-report=term-missing:skip-covered

bench: venv ## Run a benchmark: make bench NAME=claims, NAME="engine --case mixed64"
	@$(BIN)/python -m benchmarks $(NAME)

migration: venv ## Write a migration from what changed in the tables: make migration m="what it does"
	@$(BIN)/python -m migrations "$(m)"

constraints: venv ## Pin what is installed in .venv now (to refresh: pip install --upgrade what you want first)
	@{ sed -n '/#/p' constraints.txt; $(PIP) freeze --exclude-editable | sed 's/+.*$$//'; } > constraints.new
	@mv constraints.new constraints.txt && touch $(INSTALLED)

clean: ## Remove caches and build leftovers; .venv and your data in .penstock stay
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.*
	@find app workers migrations tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
