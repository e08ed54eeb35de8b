# `make demo` and `make test` work on a fresh machine with Python 3.11 to 3.13, git and make.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-faults test-gpu test-cluster bench results report docs lint format lock clean

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## create .venv with the pinned packages (once; the other targets do it when needed)

$(STAMP): requirements/dev.txt pyproject.toml
	@scripts/setup.sh "$(PYTHON)"
	@touch $@

demo: $(STAMP) ## train LeNet on 5,000 real digits with three samplers, then write the report (under 4 minutes)
	@echo "demo: how many updates do three samplers make in the same 12 s of training, and what do they reach?"
	@$(BIN)/python -m isbench -m experiment=demo group=my_demo  # runs of the group demo are kept in results/
	@$(BIN)/python -m isbench.report runs/my_demo --target 0.04 --title "The demo: three samplers in the same seconds"
	@echo; echo "next:"
	@echo "  open runs/my_demo/report/report.html in a browser"
	@echo "  reproduce a part of a published figure (about 9 minutes):"
	@echo "    $(BIN)/python -m isbench -m experiment=is/is_mnist_small arm=uniform,upper_bound group=mine"
	@echo "  write a sampler of your own, one file and one yaml: docs/add_a_sampler.md"

test: $(STAMP) ## run the whole test suite
	@$(BIN)/python -m pytest -n 2 --dist worksteal

test-faults: $(STAMP) ## kill, fill, damage and mislead runs in every way, and renew the docs' account of it (about 20 minutes)
	@$(BIN)/python -m tests.faults
	@$(BIN)/python scripts/readme.py

test-gpu: $(STAMP) ## test what needs a GPU on the one that is here; without one, say so
	@$(BIN)/python -m pytest -m gpu tests/gpu

test-cluster: $(STAMP) ## test grids on a real SLURM, which is installed and started for it (Debian, root; 10 to 15 minutes)
	@$(BIN)/python -m pytest -m cluster -rs tests/cluster

results: $(STAMP) ## collect the runs of experiments into results/, report on them, renew README and docs
	@$(BIN)/python -m isbench.report.collect
	@$(BIN)/python -m isbench.report
	@$(BIN)/python scripts/readme.py

report: $(STAMP) ## make tables, figures and results/index.html from what results/ holds
	@$(BIN)/python -m isbench.report

docs: $(STAMP) ## build the documentation as a site in site/, without a network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "docs: site/index.html"

bench: $(STAMP) ## measure what isbench costs and renew the docs' tables of it (about 25 minutes on two quiet cores)
	@$(BIN)/python -m benchmarks
	@$(BIN)/python scripts/readme.py

lint: $(STAMP) ## check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy isbench benchmarks

format: $(STAMP) ## rewrite the code in the project's style
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: ## renew the pinned requirement files (needs uv)
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements/dev.txt
	uv pip compile pyproject.toml --extra finetune -c requirements/dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements/finetune.txt

clean: ## delete the environment and caches; runs/ and data/ stay
	rm -rf .venv build dist site .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
