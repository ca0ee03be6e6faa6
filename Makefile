# Everything a newcomer needs: `make demo`, `make test`. Both set up .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin
VIDEOS ?=
DEMO ?= demo-output

# Many processes import the same packages here; compiled once, each starts in half the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test check docs format clean

help:
	@echo "make demo                 from rendered videos to a trained model and its videos (in ./$(DEMO))"
	@echo "make demo VIDEOS=folder   curate your own videos into shards"
	@echo "make test                 run the tests"
	@echo "make check                lint, types, import rules"
	@echo "make docs                 build the documentation into site/; fails on broken links"
	@echo "make format               format the code"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[s3,dev,docs]'
	touch $@

demo: setup
	$(BIN)/python -m demo $(if $(VIDEOS),--videos '$(VIDEOS)') --out '$(DEMO)'

test: setup
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Without --quiet, which would hide warnings from --strict as well.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
