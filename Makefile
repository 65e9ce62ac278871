# `make run` sets everything up and runs a quantized checkpoint of each kind through the table, on whatever device there is.
# `make test` sets everything up and passes the checks and the tests.
# TORCH picks the torch requirement, e.g. `make run TORCH=torch==2.13.0`.
TORCH ?= torch>=2.11
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TEST_READY := $(VENV)/.ready-test
# What `python -m venv` is told; --system-site-packages takes the torch of a container image.
VENVFLAGS ?=

.PHONY: run test lint setup setup-test clean conformance sanitize stress golden mutants fuzz device-code

run: setup
	$(BIN)/kerneltable run --sample all

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadgroup --cov --cov-report= --cov-fail-under=0
	$(BIN)/python -m coverage report --include='*/kerneltable/table/*,*/kerneltable/select/*' --fail-under=95

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/kerneltable check

# Every instance for every architecture that its rows name; needs no GPU.
device-code: setup-test
	$(BIN)/kerneltable build --arch all --out $(VENV)/device-code

conformance: setup
	$(BIN)/kerneltable conformance

# Own CUDA kernels over small shapes, on a machine with a GPU and the CUDA toolkit: as they are, then under each tool.
# memcheck reports no API errors: cuda-bindings looks up functions that older drivers lack, which touches no memory.
# It sees where a tensor ends only if torch asks the driver for each; the other tools do not look there.
# initcheck does not see what the copy engine stores, so the script fills outputs with NaN first; that they are written,
# their numbers show. racecheck comes last, since it takes longest.
SANITIZED = --error-exitcode 1 $(BIN)/python tests/kernels/sanitize.py

sanitize: setup
	$(BIN)/python tests/kernels/sanitize.py --compile
	$(BIN)/python tests/kernels/sanitize.py
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no $(SANITIZED)
	compute-sanitizer --tool synccheck --num-cuda-barriers 64 $(SANITIZED)
	compute-sanitizer --tool initcheck $(SANITIZED)
	compute-sanitizer --tool racecheck --num-cuda-barriers 64 $(SANITIZED)

# Own Hopper kernels on many streams of many processes at a time, on a machine with such a GPU: outputs keep their bits.
stress: setup-test
	$(BIN)/python tests/kernels/stress.py

golden: setup-test
	$(BIN)/python tests/golden/regenerate.py

mutants: setup-test
	$(BIN)/python tests/mutants/mutate.py

fuzz: setup-test
	$(BIN)/python fuzz/corpus.py
	$(BIN)/python fuzz/load_merge_select.py --random 20000

setup: $(READY)

setup-test: $(TEST_READY)

# torch goes first and alone: a later step must not exchange the build that was asked for.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENVFLAGS) $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[samples]" "$(TORCH)"
	touch $@

$(TEST_READY): $(READY)
	$(BIN)/python -m pip install --quiet --editable ".[test]" "$(TORCH)"
	touch $@

clean:
	rm -rf $(VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache
