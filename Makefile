# make demo: reconstruct the sample CT with the embedded checkpoint
# make test: lint, types and tests
# make test-fast: tests without trainings and the panel
# make lint, make types: these alone
# make bench: speed and memory beside peers
#
# All set up .venv by themselves. A torch that the Python already has, such as a CUDA build, is used as it is;
# otherwise TORCH is installed.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# without their dependencies: torchvision would replace torch; all else that Primus and LPIPS import is there
NO_DEPS := dynamic-network-architectures timm torchvision lpips tqdm
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-fast lint types unit bench clean

demo: $(VENV)/ready
	$(BIN)/maesil demo --output demo

test: lint types unit

lint: $(VENV)/ready-to-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=MAESIL $(BIN)/lint-imports --no-cache

types: $(VENV)/ready-to-test
	$(BIN)/mypy

unit: $(VENV)/ready-to-test
	$(BIN)/python -m pytest -n 2 --dist worksteal

FAST := $(addprefix Testing/library/,runtime ct metrics mae reconstruct export) Testing/contract/test_docs.py Testing/contract/test_cli.py

test-fast: $(VENV)/ready-to-test
	$(BIN)/python -m pytest -n 2 --dist worksteal $(FAST)

bench: $(VENV)/ready-to-test
	for name in training_step convolution crops reading prepare evaluate panel; do $(BIN)/python Testing/Benchmarks/bench_$$name.py || exit 1; done

$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "MAESIL needs Python 3.11 or later: make PYTHON=/path/to/python3"; exit 1; }
	@if $(PYTHON) -c 'import torch' 2>/dev/null; \
	  then $(PYTHON) -m venv --system-site-packages $(VENV); else $(PYTHON) -m venv $(VENV); fi
	@$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install -q $(TORCH)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/ready-to-test: $(VENV)/ready
	$(PIP) install -q -c constraints.txt -e '.[test]'
	$(PIP) install -q -c constraints.txt --no-deps $(NO_DEPS)
	@touch $@

clean:
	rm -rf $(VENV) demo build *.egg-info
