# Every target sets up what it needs in .venv; only Python 3.11 or later, its pip and make have to be there.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# The tensors are small: more threads than one only get in each other's way.
export OMP_NUM_THREADS ?= 1

.PHONY: help quickstart test truth test-networks coverage paper-quick paper lint docs bench dist dev clean

help:
	@echo 'make quickstart   fit a model to real data, reduce it, save the figure quickstart.png'
	@echo 'make test         the tests and the examples of the docstrings, and what they cover'
	@echo 'make truth        published models against exact answers; build/truth.csv is the table'
	@echo 'make test-networks networks of torchvision, timm and transformers; build/networks.csv is the table: hours'
	@echo 'make paper-quick  the program of the paper'"'"'s experiments, on scikit-learn'"'"'s digits, in minutes'
	@echo 'make paper        the paper'"'"'s experiments: weeks on a small machine; what is done is not done again'
	@echo 'make lint         ruff and mypy'
	@echo 'make docs         the Sphinx site, in docs/_build/html'
	@echo 'make bench        the benchmarks'
	@echo 'make dist         wheel and sdist, checked, and tried in an environment of their own'
	@echo 'make dev          an environment with all of these'
	@echo 'make clean        remove what was built, the environment included'

quickstart: $(VENV)/installed-quickstart
	$(BIN)/python tutorials/quickstart.py

# A file's tests stay together: they share fits that take long. Files go in the order of conftest.py, not of how many
# tests they hold. What is covered is told of the whole suite alone.
test: $(VENV)/installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(if $(ARGS),,--cov --cov-report=) $(ARGS)
	$(if $(ARGS),,@$(MAKE) --no-print-directory coverage)

# By room, in percent of lines, then all. `.venv/bin/python -m coverage report -m` names the lines that no test runs.
COVERAGE_FLOOR := 90
coverage:
	@for room in $(sort $(dir $(wildcard pyro_bmrs/*/__init__.py))); do \
	    printf '%-25s' "$$room"; $(BIN)/python -m coverage report --format=total --include="$$room*"; \
	done
	@printf '%-25s' pyro_bmrs/; $(BIN)/python -m coverage report --format=total --fail-under=$(COVERAGE_FLOOR)

# A file that make test does not collect, since all its fits take some ten minutes.
TRUTH_TABLE ?= build/truth.csv
truth: $(VENV)/installed-test
	@mkdir -p build
	TRUTH_TABLE=$(TRUTH_TABLE) $(BIN)/python -m pytest tests/truth/whole_truth.py $(ARGS)

# What is in the table is not done again. NETWORKS=resnet,vit are those whose names hold one of these.
NETWORKS_TABLE ?= build/networks.csv
test-networks: $(VENV)/installed-networks
	NETWORKS_TABLE=$(NETWORKS_TABLE) NETWORKS=$(NETWORKS) $(BIN)/python -m pytest tests/networks/whole_table.py $(ARGS)

# What is done is skipped: the results are kept, and go into the report.
paper-quick: $(VENV)/installed-paper
	$(BIN)/python -m tutorials.paper sweep --config tutorials/paper/configs/sweep-quick.yaml --results build/paper-quick --jobs 2
	$(BIN)/python -m tutorials.paper report --results build/paper-quick --output build/paper-quick/report

RESULTS ?= build/paper
paper: $(VENV)/installed-paper
	for sweep in paper bits after large released; do \
		$(BIN)/python -m tutorials.paper sweep --config tutorials/paper/configs/sweep-$$sweep.yaml --results $(RESULTS) --jobs 2 || exit 1; \
	done
	$(BIN)/python -m tutorials.paper report --results $(RESULTS) --output $(RESULTS)/report

lint: $(VENV)/installed-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# Two pages at a time: nearly all of the time goes into what their cells compute.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going --jobs 2 -b html docs docs/_build/html

bench: $(VENV)/installed-test
	$(BIN)/python -m pytest tests/benchmarks $(ARGS)

# The wheel is built from the sdist. What is tried is the wheel alone, outside of the checkout.
CLEAN := build/clean
dist: $(VENV)/installed-dist
	rm -rf dist $(CLEAN)
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(MAKE) --no-print-directory VENV=$(CLEAN) $(CLEAN)/bin/python
	$(CLEAN)/bin/python -m pip install --constraint constraints.txt "$$(echo dist/*.whl)[quickstart,pruning]"
	cd $(CLEAN) && bin/python -I $(CURDIR)/tests/delivery/smoke.py

dev: $(VENV)/installed-dev

clean:
	rm -rf $(VENV) docs/_build docs/reference/api build dist *.egg-info

# One stamp for each extra. A change of what is to be installed makes them stale.
$(VENV)/installed-%: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$*]'
	@touch $@

# Debian keeps the pip of new environments (ensurepip) in a package apart; where it is missing, the pip at hand installs it.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || \
	    ($(PYTHON) -m venv --without-pip --clear $(VENV) && $(PYTHON) -m pip --python $(VENV) install pip)
