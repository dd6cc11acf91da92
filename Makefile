# make run PROMPT="..."   set up once, then answer the prompt with the default model
# make test               set up once, then run every test, those on the real weights included
# make test-fast          set up once, then run those that take less than a second and need no weights
# make docs               set up once, then build the pages of docs/ as a site: site/index.html

PYTHON ?= python3
PROMPT ?= Why is the sky blue?
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEFAULT_MODEL := $(or $(ENTROPIX_WEIGHTS),weights)/smollm2-135m-instruct/config.json
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# The prompt reaches the command letter by letter: make does not expand it, and the shell finds it in a variable.
export PROMPT_TEXT := $(value PROMPT)
unexport PROMPT

.PHONY: run test test-fast check format docs clean

run: $(VENV)/.run $(DEFAULT_MODEL)
	@$(BIN)/python -m entropix.main --prompt="$$PROMPT_TEXT" $(ARGS)

test: $(VENV)/.dev $(VENV)/.libtpu $(VENV)/.transformers $(VENV)/.vocabularies $(DEFAULT_MODEL)
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

test-fast: $(VENV)/.dev $(VENV)/.libtpu
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder -m "not real and not slow"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python scripts/build_site.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build/docs site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: entropix needs Python 3.11 or newer; set PYTHON=..." >&2; exit 1; }
	@echo "creating $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV) >&2

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing entropix" >&2
	@$(PIP_INSTALL) --editable . >&2
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing entropix and its development tools" >&2
	@$(PIP_INSTALL) --editable '.[dev]' >&2
	@touch $@ $(VENV)/.run

$(VENV)/.docs: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing what builds the site" >&2
	@$(PIP_INSTALL) --editable '.[docs]' >&2
	@touch $@ $(VENV)/.run

# The TPU compiler, for its tests, in a folder of its own: JAX, where it finds it, looks for a TPU at every start.
$(VENV)/.libtpu: constraints.txt | $(VENV)/.dev
	@echo "installing the TPU compiler" >&2
	@$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/libtpu libtpu >&2
	@touch $@

# What model families are compared with, in a folder of its own, which their test's own process sees alone. Without what
# these depend on: the environment has it all, in the versions that entropix runs with.
$(VENV)/.transformers: constraints.txt | $(VENV)/.dev
	@echo "installing transformers and torch" >&2
	@$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/transformers torch transformers sympy mpmath >&2
	@touch $@

# Packages that carry published vocabularies, which are compared with the libraries that they were written for.
$(VENV)/.vocabularies: constraints.txt | $(VENV)/.dev
	@echo "installing published vocabularies" >&2
	@$(PIP_INSTALL) --no-deps --upgrade --target $(VENV)/vocabularies dashscope llama-models mistral-common >&2
	@touch $@

$(DEFAULT_MODEL): | $(VENV)/.run
	@$(BIN)/python scripts/download_weights.py >&2
