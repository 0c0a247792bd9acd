PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
STAMP := $(VENV)/.installed
BENCH ?= --profile standard --charts docs
OLDEST := .venv-oldest
EXTRAS := langchain llama-index otel prepare serve train ray spark daft
COMMA := ,
SPACE := $(subst ,, )
UV := $(OLDEST)/bin/uv
ifndef SEED
SEED := $(shell $(PYTHON) -c 'import random; print(random.randrange(10000))')
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-random test-oldest coverage check format notebooks bench clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(STAMP) ## Search Python's docstrings through LangChain and LlamaIndex, minutes
	@echo "Both frameworks embed 3,000 docstrings: minutes on two cores. For a shorter"
	@echo "one: $(VENV)/bin/bge demo --limit 500"
	$(VENV)/bin/bge demo

test: $(STAMP) ## Run the tests, in some minutes
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(STAMP) ## Run every test, also the slow ones
	$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-random: $(STAMP) ## Run the tests in a random order and with a hash seed of their own; SEED=n repeats one
	PYTHONHASHSEED=$(SEED) $(PY) -m pytest -n 2 --dist loadfile -m "not slow" -p randomly \
		--randomly-seed=$(SEED)

coverage: $(STAMP) ## Run every test, and show which branches of the package none of them takes
	$(PY) -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered

# Takes the oldest of what is declared, and the newest of what that needs in turn. torch stays as it is tested. Files are
# copied, since nltk refuses those that uv would link from its cache.
define install-oldest
$(UV) pip compile --quiet --python $(OLDEST) --resolution lowest-direct --only-binary :all: \
	--overrides $(OLDEST)/without-torch.txt $(1) pyproject.toml > $(OLDEST)/oldest.txt
$(UV) pip install --quiet --python $(OLDEST) --link-mode copy --no-deps -r $(OLDEST)/oldest.txt -e .
$(UV) pip check --quiet --python $(OLDEST)
endef

# LlamaIndex and the packages of tests need later versions of what others share, so a part comes first without them. The
# newest indirect packages warn of more. Benchmarks and notebooks are for those who have the versions of constraints.txt.
test-oldest: ## Run the tests with the oldest versions that are allowed
	rm -rf $(OLDEST)
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt torch==2.13.0 uv
	echo "torch ; sys_platform == 'never'" > $(OLDEST)/without-torch.txt
	$(call install-oldest,--extra langchain --extra prepare --extra otel)
	$(OLDEST)/bin/python -m tests.every_module
	$(call install-oldest,$(addprefix --extra ,$(EXTRAS)) --group dev)
	PYTEST_ADDOPTS='-W default::DeprecationWarning -W default::FutureWarning' \
		$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile \
		--ignore-glob 'tests/test_*benchmark*.py' --ignore tests/test_notebooks.py

check: $(STAMP) ## Formatting, lint, types, and who imports whom
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## Format and fix what can be fixed
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

notebooks: $(STAMP) ## Run the notebooks and save their outputs
	$(PY) notebooks/build.py

bench: $(STAMP) ## Compare speed with other libraries; BENCH="--profile full": hours
	$(PIP) install --quiet -c constraints.txt --group bench -e '.[langchain,llama-index,prepare,train]'
	$(PY) -m benchmarks $(BENCH)

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) $(OLDEST) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by itself: the pinned version may be at hand in a build without CUDA, which is far smaller.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV), once; it takes minutes. It is torch, transformers,"
	@echo "sentence-transformers, OpenVINO, LangChain, LlamaIndex, the weights of MiniLM,"
	@echo "and what tests and notebooks use: about 1.5 GB to download, 4.3 GB on disk."
	@echo "With CUDA, which pip takes on Linux unless it knows an index of CPU builds,"
	@echo "torch alone is several GB more."
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV)
	@echo "1 of 2: torch"
	$(PIP) install --quiet 'pip>=25.1'
	$(PIP) install --quiet -c constraints.txt torch==2.13.0
	@echo "2 of 2: everything else"
	$(PIP) install --quiet -c constraints.txt --group dev -e '.[$(subst $(SPACE),$(COMMA),$(EXTRAS))]'
	@touch $@
