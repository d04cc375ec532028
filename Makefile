# `make help` lists the targets. Each one first sets up the virtual environment it needs.
# The Python to set up with; another one than last time starts the environment afresh.
PYTHON ?= python3
# Where the environment goes, as in `make test PYTHON=python3.13 VENV=.venv-3.13`.
VENV ?= .venv
# More extras to install, as in `make train EXTRAS=cuda13`.
EXTRAS ?=
# Options of the training command, as in `make train ARGS="--optimizer adamp"`.
ARGS ?=
# Options of pytest, as in `make test PYTEST="-k swats"`.
PYTEST ?= --numprocesses auto --dist worksteal

comma := ,
permitted := Apache;BSD;ISC;MIT;MPL-2.0;Mozilla Public License 2.0;PSF-2.0;Python \
Software Foundation;Unlicense
tested := datasets,docs,experiments,sweep,tensorboard,test
more := $(if $(EXTRAS),$(comma)$(EXTRAS))
run := "$(VENV)/bin/python" -m
old_enough := import sys; sys.exit(sys.version_info < (3, 11) and "$(PYTHON) is \
Python %d.%d; 3.11 or newer is needed: set PYTHON=..." % sys.version_info[:2] or 0)
set_up := @$(PYTHON) -c '$(old_enough)' && $(PYTHON) .ci/setup_venv.py

.PHONY: help venv-train venv-test venv-audit train bench docs test format format-check \
	lint types test-oldest torture fuzz api audit licenses wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

venv-train:
	$(set_up) "$(VENV)" experiments$(more)

venv-test:
	$(set_up) "$(VENV)" $(tested)$(more)

train: venv-train ## train; options in ARGS="..."
	@$(run) experiments.train $(ARGS)

bench: venv-train ## measure speed and memory; options in ARGS, PyTorch with EXTRAS=bench
	@$(run) experiments.bench $(or $(ARGS),all)

docs: venv-test ## build the documentation into docs/_build/html
	$(run) sphinx -W --keep-going -b html docs docs/_build/html

test: format-check lint types ## check format, lint and types, then run doctests and tests
	$(run) pytest $(PYTEST)

format: venv-test ## format the code, and sort its imports
	$(run) ruff check --select I --fix
	$(run) ruff format

format-check: venv-test
	$(run) ruff format --check

lint: venv-test ## look for mistakes that need no running
	$(run) ruff check

types: venv-test ## check the types
	$(run) basedpyright --pythonpath "$(VENV)/bin/python"

test-oldest: ## run doctests and tests with the oldest versions that are allowed
	$(set_up) "$(VENV)-oldest" $(tested) --oldest
	"$(VENV)-oldest/bin/python" -m pytest $(PYTEST)

torture: venv-test ## kill training runs a hundred times; number and seed in ARGS
	PYTHONPATH=. "$(VENV)/bin/python" tests/torture.py $(ARGS)

fuzz: venv-test ## throw ten thousand broken inputs at the commands; options in ARGS
	PYTHONPATH=.:tests "$(VENV)/bin/python" tests/fuzz.py $(ARGS)

venv-audit:
	$(set_up) "$(VENV)-audit" audit

audit: venv-test venv-audit ## look for known vulnerabilities of the dependencies
	"$(VENV)-audit/bin/pip-audit" --strict --path \
		"$$($(run) pip show pip | sed -n 's/^Location: //p')"

licenses: venv-test venv-audit ## check that all dependencies have permissive licences
	"$(VENV)-audit/bin/pip-licenses" --python "$(VENV)/bin/python" --from=mixed \
		--partial-match --allow-only="$(permitted)" --order=license

api: venv-test ## write down the public interface, after a change of it that is wanted
	PYTHONPATH=. "$(VENV)/bin/python" tests/public_api.py

wheel: venv-test ## build the package into dist/
	$(run) pip wheel --quiet --no-deps --wheel-dir dist .

clean: ## remove environments that make set up, caches and builds
	for venv in "$(VENV)" "$(VENV)-audit" "$(VENV)-oldest"; do \
		if [ -e "$$venv/spherical_optax.json" ]; then rm -rf "$$venv" "$$venv.lock"; fi; \
	done
	rm -rf dist docs/_build docs/notebooks docs/pictures docs/studies .pytest_cache .ruff_cache .hypothesis
	find spherical_optax experiments tests -name __pycache__ -prune -exec rm -rf {} +
