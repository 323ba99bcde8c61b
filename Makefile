# Everything a checkout can do. Each target sets up what it needs by itself:
# Python 3.11 or later and make are all that has to be there.
#
#   make test          the tests, against the built and installed wheel
#   make demo          the lab's experiments, each beside what Sockway replaces; a report
#   make kernels       Sockway on other kernels, in virtual machines; KERNELS="6.1 6.12 newest"
#   make fuzz          the balancer held against its model, by more packets
#   make wheels        the wheels of x86-64 and arm64, and the source distribution
#   make arm64         the arm64 wheel on a whole emulated arm64 machine
#   make pythons       the tests under each Python that is installed
#   make deb           a Debian package, for the release that SUITE names
#   make install-check the README's commands and the Debian package, in roots of Debian 12 and 13
#   make lint bench bpf docs info clean
#
# Variables: PYTHON (which Python to start from), TESTS (what pytest runs),
# ARGS (more arguments for pytest, the demo or the benchmark), MACHINES (whose wheels).

PYTHON ?= python3
OUT := out
VENV := $(OUT)/venv
BIN := $(VENV)/bin
TESTS ?= tests
ARGS ?=

SOURCES := pyproject.toml hatch_build.py README.md LICENSE $(wildcard LICENSES/* docs/man/*) \
	$(shell find src bpf native -name '*.py' -o -name '*.[ch]' -o -name '*.typed' -o -name '*.toml') \
	$(shell find src -name '*.cdef' -o -name '*.h')
GENERATED := src/sockway/kernel/_libbpf.py
SOURCES := $(filter-out $(GENERATED),$(SOURCES))

.PHONY: help lint format test kernels wheels arm64 pythons fuzz demo deb install-check bench bpf docs info clean dev

help:
	@sed -n 's/^#   //p' Makefile

# The environment: requirements of the package, its tests, the demo and the checks.
$(OUT)/venv.stamp: pyproject.toml scripts/bootstrap.sh scripts/requirements.py
	@mkdir -p $(OUT)
	@PYTHON="$(PYTHON)" scripts/bootstrap.sh $(VENV)
	@touch $@

# The data plane's objects, in the source tree, for checks and editable installs.
bpf: $(OUT)/bpf.stamp
$(OUT)/bpf.stamp: $(OUT)/venv.stamp hatch_build.py $(wildcard bpf/* native/*)
	@$(BIN)/python hatch_build.py
	@touch $@

# The wheel, installed as a user would have it: tests and demo run this, not src/.
$(OUT)/wheel.stamp: $(OUT)/venv.stamp $(SOURCES)
	@rm -rf $(OUT)/dist
	@$(BIN)/python -m pip wheel -qq --no-deps --no-build-isolation --wheel-dir $(OUT)/dist .
	@$(BIN)/python -m pip install -qq --no-deps --force-reinstall $(OUT)/dist/*.whl
	@touch $@

# For publishing: each processor's wheel is made on this machine; see docs/howto/packaging.md.
MACHINES ?= x86_64 aarch64
wheels: $(OUT)/venv.stamp
	@rm -rf $(OUT)/wheels
	@$(BIN)/python -m hatchling build -t sdist -d $(OUT)/wheels
	@for machine in $(MACHINES); do \
		SOCKWAY_MACHINE=$$machine $(BIN)/python -m hatchling build -t wheel -d $(OUT)/wheels || exit; \
	done
	@for wheel in $(OUT)/wheels/*x86_64.whl $(OUT)/wheels/*aarch64.whl; do \
		test ! -e $$wheel || $(BIN)/auditwheel show $$wheel 2>/dev/null || exit; \
	done

# Debian's kernel and Python for arm64, unpacked and not installed; see docs/howto/packaging.md.
MACHINE_CACHE ?= $(OUT)/machines
ARM64_KERNEL ?= 6.12
arm64: $(OUT)/venv.stamp
	@scripts/bootstrap.sh $(VENV) qemu-system-aarch64:qemu-system-arm depmod:kmod
	@$(MAKE) -s wheels MACHINES=aarch64 >$(OUT)/wheels.log
	@$(BIN)/python -m tests.machines.arm64 --wheel $(OUT)/wheels/*_aarch64.whl \
		--cache $(MACHINE_CACHE) --output $(OUT)/arm64 --kernel $(ARM64_KERNEL) $(ARGS)

# Each version that pyproject.toml claims; one that is not installed is named as skipped.
pythons: $(OUT)/wheel.stamp
	@$(BIN)/nox --envdir $(OUT)/nox $(if $(ARGS),-- $(ARGS))

lint: $(OUT)/bpf.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports
	$(BIN)/clang-format --dry-run -Werror $(wildcard bpf/*.[ch] benchmarks/bpf/*.c native/*.c)
	@find src -name '*.py' ! -path '$(GENERATED)' -exec wc -l {} + | \
		awk '$$2 != "total" && $$1 > 450 { print "warning: " $$2 " has " $$1 " lines: more than one idea?" }'

format: $(OUT)/venv.stamp
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(wildcard bpf/*.[ch] benchmarks/bpf/*.c native/*.c)

# What only tests look through: a browser for the report.
$(OUT)/programs.stamp: $(OUT)/venv.stamp scripts/bootstrap.sh
	@scripts/bootstrap.sh $(VENV) chromium:chromium chromedriver:chromium-driver
	@touch $@

test: $(OUT)/wheel.stamp $(OUT)/programs.stamp
	@$(BIN)/python -m pytest $(TESTS) $(ARGS)

# Kernels are fetched and unpacked below $(MACHINE_CACHE), never installed.
KERNELS ?= 6.1 6.12 newest
kernels: $(OUT)/wheel.stamp
	@scripts/bootstrap.sh $(VENV) qemu-system-x86_64:qemu-system-x86 busybox:busybox-static \
		depmod:kmod ipvsadm:ipvsadm
	@$(BIN)/python -m tests.machines.kernels $(KERNELS) --cache $(MACHINE_CACHE) $(ARGS)

PACKETS ?= 20000000
fuzz: $(OUT)/wheel.stamp
	@$(BIN)/python -m tests.balancer.differential --packets $(PACKETS) $(ARGS)

demo: $(OUT)/wheel.stamp
	@$(BIN)/sockway lab run --quick --output $(OUT)/demo $(ARGS)

bench: $(OUT)/wheel.stamp
	@for script in benchmarks/bench_*.py; do $(BIN)/python $$script $(ARGS) || exit; done

# A Debian package of the wheel and what it requires, for SUITE's Python.
SUITE ?= bookworm
deb: $(OUT)/wheel.stamp
	@$(BIN)/python scripts/deb.py --suite $(SUITE) --wheels $(OUT)/dist --output $(OUT)

# As a user would, in fresh roots of Debian: needs root, debootstrap and the network.
SUITES ?= bookworm trixie
install-check: $(OUT)/wheel.stamp
	@scripts/bootstrap.sh $(VENV) debootstrap:debootstrap
	@$(BIN)/python scripts/install_check.py $(SUITES)

docs: $(OUT)/bpf.stamp
	@PYTHONPATH=src $(BIN)/python docs/generate.py $(ARGS)

info: $(OUT)/wheel.stamp
	@$(BIN)/python -V
	@$(BIN)/sockway --version
	@uname -sr
	@$(BIN)/python scripts/programs.py
	@sed -n '/^Instructions that the verifier/,/kernels end/{/kernels end/d;p}' \
		docs/reference/kernels.md
	@$(BIN)/sockway doctor || true

# For working on Sockway: an environment whose sockway is the source tree.
dev: $(OUT)/venv.stamp
	@test -x .venv/bin/python || $(BIN)/python -m venv .venv
	@.venv/bin/python -m pip install -qq --editable '.[dev]'

clean:
	rm -rf $(OUT) build dist src/sockway/kernel/objects/*.bpf.o $(GENERATED) src/sockway/wire/compiled
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
