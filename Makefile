# Everything a newcomer needs: `make demo`, `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
VIDEOS ?=
DEMO ?= demo-output

# Many processes import the same packages here; compiled once, each starts in half the time.
unexport PYTHONDONTWRITEBYTECODE

PAGE := curation/report/template

.PHONY: help setup demo test check check-page page docs format clean

help:
	@echo "make demo                 from rendered videos to a trained model and its videos (in ./$(DEMO))"
	@echo "make demo VIDEOS=folder   curate your own videos into shards"
	@echo "make test                 run the tests"
	@echo "make check                lint, types, import rules"
	@echo "make docs                 build the documentation into site/; fails on broken links"
	@echo "make page                 build the script and style of the report's page"
	@echo "make format               format the code"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[gcs,s3,dev]'
	touch $@

# Apart from the rest: MkDocs' packages need a newer Python 3.11 than some distributions have.
.venv/docs: .venv/ready
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[gcs,s3,dev,docs]'
	touch $@

demo: setup
	$(BIN)/python -m demo $(if $(VIDEOS),--videos '$(VIDEOS)') --out '$(DEMO)'

# One thread each: the processes of pytest already keep all cores busy.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

check: setup check-page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The report's page is TypeScript; what it is built into comes with the package, so that users need no node.
NODE := PATH="$(CURDIR)/$(BIN):$$PATH"

$(PAGE)/node_modules/.package-lock.json: $(PAGE)/package-lock.json | setup
	cd $(PAGE) && $(NODE) npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

check-page: $(PAGE)/node_modules/.package-lock.json
	cd $(PAGE) && $(NODE) npm run --silent lint && $(NODE) npm run --silent types && $(NODE) node build.mjs --check

page: $(PAGE)/node_modules/.package-lock.json
	cd $(PAGE) && $(NODE) node build.mjs

# Without --quiet, which would hide warnings from --strict as well.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
