# make help lists the targets. PYTHON names the interpreter that .venv is made from (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python scripts/install.py
PYTEST_ARGS ?=
PEERS ?=
BENCH_ARGS ?=
BUILD_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test acceptance conformance check format integration-tests proto docs deployment bench build \
	image-test clean

help:  ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: $(VENV)/installed  ## Set up, serve the demo model, stream one answer, and stop
	@$(BIN)/python scripts/demo.py

test: $(VENV)/installed-dev  ## Set up and run the tests that every change needs
	@$(BIN)/python scripts/run_tests.py test $(PYTEST_ARGS)

acceptance: $(VENV)/installed-dev  ## Real clients and long soaks
	@$(BIN)/python scripts/run_tests.py acceptance $(PYTEST_ARGS)

integration-tests: $(VENV)/installed-dev  ## Only those tests of make test that use real processes and sockets
	@$(BIN)/python scripts/run_tests.py test tests/integration $(PYTEST_ARGS)

conformance: $(VENV)/installed-dev  ## The API's contract, against URL=host:port or a server of its own
	@$(BIN)/python -m pytest tests/conformance $(if $(URL),--url $(URL)) $(PYTEST_ARGS)

check: $(VENV)/installed-dev  ## Lint, formatting, types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(VENV)/installed-dev  ## Format all code
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

proto: $(VENV)/installed-dev  ## Regenerate the gRPC stubs from proto/
	@$(BIN)/python scripts/generate_stubs.py

docs: $(VENV)/installed  ## Regenerate the parts of docs/ that come from the code
	@$(BIN)/python scripts/generate_docs.py
	@$(BIN)/python scripts/make_dashboard.py

deployment: $(VENV)/installed  ## Regenerate the manifests in deployment/
	@$(BIN)/python scripts/generate_deployment.py

bench: $(VENV)/installed  ## The standard table of figures, beside those in PEERS=FILE (about fifteen minutes)
	@$(BIN)/python scripts/bench/standard_table.py $(if $(PEERS),--peers $(PEERS)) $(BENCH_ARGS)

build: $(VENV)/installed-dev  ## Wheel and SBOM in dist/, and the image, by podman, buildah or docker (docs/containers.md)
	@$(BIN)/python scripts/image/build.py $(BUILD_ARGS)

image-test: $(VENV)/installed-dev  ## Build the image twice and try it, as root, with buildah and debootstrap
	@$(BIN)/python scripts/image/test.py

clean:  ## Remove everything that make made
	rm -rf $(VENV) .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info server/*.egg-info

$(VENV)/created:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON): install Python 3.11 or newer, or name one, as in \`make PYTHON=python3.12 $(MAKECMDGOALS)\`."; exit 1; }
	@$(PYTHON) -c 'import sys; have = sys.version_info[:2]; sys.exit(have < (3, 11) and "Python 3.11 or newer is needed, but $(PYTHON) is %d.%d: name another, as in `make PYTHON=python3.12 $(MAKECMDGOALS)`." % have)'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@$(PYTHON) scripts/install.py --venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml constraints.txt
	@$(INSTALL) "PyTorch (the largest part)" -c constraints.txt torch
	@$(INSTALL) TGIS -c constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(INSTALL) "what the tests need" -c constraints.txt --editable '.[dev]'
	@touch $@
