# make demo: trains and evaluates a small network, draws its results.
# make test: the whole test suite.  make lint: style, and imports that go one way.
# make faults: thousands of kills, failing disks and damaged files, in about 25 minutes;
# FAULTS_TABLE=FILE writes the table of what became of them.
# make docs: the pages of docs/ and the API reference as HTML, in site/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test faults lint docs
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/python train.py --config configs/quickstart.py --workdir runs/quickstart
	$(BIN)/python -m fcn_jax evaluate --run runs/quickstart
	@echo "Look at $(CURDIR)/runs/quickstart/results_val.png"

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

faults: $(VENV)/installed-dev
	FAULTS=all $(BIN)/python -m pytest tests/faults --numprocesses 2 --dist worksteal

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: $(VENV)/installed-dev
	$(BIN)/python docs/build_site.py site
	@echo "Open $(CURDIR)/site/index.html"

$(VENV)/installed: pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  f"fcn_jax needs Python 3.11 or newer, $(PYTHON) is {sys.version.split()[0]}: \
	  pass another, such as make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@
