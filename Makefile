# Each target sets up what it needs: "make test" on a fresh machine with python3, a C++ compiler and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)
METHODS := ce,bs,ldam-drw,dbm-bs,lade,arb,estimated-offset,empirical-offset,bs-lwr
# One thread a worker: the workers fill the cores, and results do not depend on how many there are.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup verify demo test fuzz inject compat sanitize lint bench gpu-check gpu-compile gpu-versions readme docs release clean

help:
	@echo "make demo    set up and compare the methods on digits-lt (report in runs/demo)"
	@echo "make test    set up and run the tests"
	@echo "make verify  set up .venv-verified from wheels whose hashes are known; then make test VENV=.venv-verified"
	@echo "make fuzz    judge CASES=20000 random calls of every public function; SEED=7 repeats a run"
	@echo "make inject  kill runs at 30 moments, send signals at 10, fill disks, damage files; resume and compare every bit"
	@echo "make compat  set up and run the tests with the oldest torch; TORCH=2.12.1 PYTHON=python3.13 names others"
	@echo "make sanitize  the kernels with address and undefined-behaviour sanitizers, under a part of the tests; ARGS=FILES names another"
	@echo "make lint    ruff and pyright"
	@echo "make bench   measure every operator on this machine's CPU, into benchmarks/results"
	@echo "make gpu-check  check and measure everything on this machine's GPU, with the torch that is there; installs nothing"
	@echo "make gpu-compile  compile every GPU kernel for four generations of GPUs, without one, and predict times; ARGS=--write puts the tables into docs"
	@echo "make gpu-versions  compile some variants of each by three versions of Triton; ARGS=--write as above"
	@echo "make readme  write the tables of README and docs from the measured files"
	@echo "make docs    build the site of the documents into build/site; a warning is an error"
	@echo "make release  build the source distribution and the wheel into build/release/dist, and try them; uploads nothing"
	@echo "make clean   remove what was built; .venv stays"

# Beside a CPU build of torch an installed torchvision breaks the packages that look for it, so it lies in a folder of
# its own, which the tests that need it put on their path.
# The package is built against the torch that it will run with, hence torch first and no build isolation.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch numpy setuptools ninja
	@touch $@

$(VENV)/.package: $(VENV)/.torch pyproject.toml setup.py $(wildcard csrc/*)
	$(PIP) --no-build-isolation -e '.[train,triton,integrations,export,hanzi,docs,dev]'
	$(PIP) --no-deps --upgrade --target $(VENV)/vision torchvision timm
	@$(BIN)/python -m lt_kernels.doctor
	@touch $@

setup: $(VENV)/.package

# Nothing whose hash is another than constraints-hashed.txt says, but torch: its wheels differ between the builds for CPUs
# and for CUDA, and from registry to registry. What torch brings along is put in anew, by its hash.
VERIFIED := .venv-verified
verify:
	$(PYTHON) -m venv $(VERIFIED)
	$(VERIFIED)/bin/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) torch
	$(VERIFIED)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps \
		--force-reinstall --only-binary :all: -r constraints-hashed.txt
	@touch $(VERIFIED)/.torch
	$(VERIFIED)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(VERIFIED)/bin/python -m pip check
	@$(VERIFIED)/bin/python -m lt_kernels.doctor
	@touch $(VERIFIED)/.package

demo: setup
	rm -rf runs/demo
	$(BIN)/lt-kernels compare --data digits-lt --methods $(METHODS) --seeds 3 --out runs/demo

test: setup
	$(PYTEST) $(ARGS)

CASES := 20000
fuzz: setup
	PYTHONPATH=.:tests OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m fuzz --cases $(CASES) $(if $(SEED),--seed $(SEED)) $(ARGS)

# Kills, full disks, signals and odd files; the figure of the kills is printed as it is measured.
inject: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs tests/injection --moments 10 $(ARGS)

# What a torch pins is left to it, but the setuptools that some Pythons bring is older than pyproject.toml asks for. NumPy 2.4 is
# too new for the interpreter of Triton 3.6, which torch 2.11 asks for. Of torchvision only the one made for a torch works with it.
TORCH := 2.11.0
OTHER := .venv-torch-$(TORCH)
FREE := torch|torchvision|triton|numpy|setuptools|sympy|filelock|fsspec|networkx|jinja2|typing-extensions
compat:
	mkdir -p $(OTHER)
	{ grep -vE '^($(FREE))==' constraints.txt; echo 'torch==$(TORCH)'; echo 'numpy<2.4'; echo 'setuptools>=77'; \
		echo "torchvision==0.$$(($(word 2,$(subst ., ,$(TORCH))) + 15)).*"; } > $(OTHER)/constraints.txt
	$(MAKE) test VENV=$(OTHER) CONSTRAINTS=$(OTHER)/constraints.txt

# Into build/sanitize, a copy with a library of its own; GCC's runtime of the sanitizers is needed (docs/sanitizers.md).
sanitize: setup
	$(BIN)/python tests/sanitize $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: setup
	$(BIN)/lt-kernels bench $(ARGS)

# Nothing is set up or installed: $(VENV) serves where its torch sees the GPU, else the machine's own Python.
gpu-check:
	@python=$(BIN)/python; \
	$$python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || python=$(PYTHON); \
	PYTHONPATH=. $$python -m benchmarks.gpu.check $(ARGS)

gpu-compile: setup
	$(BIN)/python -m benchmarks.gpu.compile $(ARGS)
	$(BIN)/python -m benchmarks.gpu.sheets $(filter --write,$(ARGS))

# Each version goes into build/triton-VERSION. 3.6 is that of torch 2.11, 3.7 of torch 2.12 and 2.13.
gpu-versions: setup
	$(BIN)/python -m benchmarks.gpu.compile --few $(addprefix --triton=,3.6.0 3.7.1 3.8.0) $(ARGS)

readme: setup
	$(BIN)/python -m benchmarks.tables.readme
	$(BIN)/lt-kernels bench --plot
	$(BIN)/python -m benchmarks.tables.kernels
	$(BIN)/python -m benchmarks.tables.methods
	$(BIN)/python -m benchmarks.tables.recipes
	$(BIN)/python -m benchmarks.tables.reliability

docs: setup
	$(BIN)/python -m tools.site $(ARGS)

release: setup
	$(BIN)/python -m tools.release

clean:
	rm -rf build dist *.egg-info lt_kernels/_C*.so .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/.package
