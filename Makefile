# Everything there is to run here. Each target installs what it needs first and says so:
#   make demo    two real QEMU guests and a host process share memory and ring each other
#   make guest   a shell in a real Linux guest, with the devices that DEVICES= tells QEMU of
#   make test    linters, unit tests, a real QEMU over qtest, a real Linux guest: about eight minutes
#   make test-all  all tests, with User Mode Linux, programs of other people's, and older QEMUs: what CI runs,
#                in about half an hour with -j3 -O
#   make fuzz    any bytes to everything that takes bytes, FUZZ_SECONDS= to each target, 600 by default
#   make uml     builds User Mode Linux for the tests that are left out without it (two minutes, once)
#   make bench   speed: disks beside QEMU's storage daemon, network cards beside QEMU's own, the ivshmem
#                server beside QEMU's own C server where IVSHMEM_SERVER= names one
#   make tables  writes the tables of docs/protocol.md again, from the message classes
# PYTHON= chooses the Python for the virtual environment, PYTEST_OPTIONS= what pytest is told;
# QEMU_COMPANION_PLATFORM= runs tests and demo with QEMU and Linux of another Debian: tests/rig/debian/platforms.py.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin
SOURCES = protocol ivshmem_server vhost_user tests examples

# What CI never leaves out.
UML = $(if $(CI)$(filter test-all,$(MAKECMDGOALS)),uml)

# What tests need besides.
TESTS = $(if $(filter test test-all,$(MAKECMDGOALS)),--tests)

# Tests that need neither QEMU nor a guest, and those that need both. `make test` sets QUICK.
CHOSEN = $(if $(QUICK),not extended and)
UNIT = $(CHOSEN) not qemu and not guest and not uml and not peers
GUEST = $(CHOSEN) (qemu or guest) and not peers

# The platforms that all is to be tested on, and those of them that `make test` leaves out.
PLATFORMS := $(shell $(PYTHON) -m tests.rig.debian.platforms)
OTHERS = $(filter-out $(or $(QEMU_COMPANION_PLATFORM),$(firstword $(PLATFORMS))),$(PLATFORMS))

# Where the user has not said how many.
PARALLEL = $(if $(findstring -j,$(MAKEFLAGS)),,-j2 --output-sync=target)

# PYTEST_OPTIONS may choose nothing of one part of the tests: pytest ends with 5 then.
NONE = $(if $(PYTEST_OPTIONS),|| [ $$? -eq 5 ])

.PHONY: help setup demo guest test test-all lint uml unit unit-tests guest-tests uml-tests peer-tests reference fuzz bench tables clean

help:
	@sed -n '2,/^$$/s/^# //p' Makefile

# Debian packages that are missing; QEMU and the guest's kernel, unpacked into .cache and not installed.
setup: $(VENV)/.done
	@$(PYTHON) -m tests.rig.setup $(TESTS)

$(VENV)/.done: pyproject.toml setup.py vhost_user/devices/__init__.py
	@$(PYTHON) -m tests.rig.setup $(TESTS)
	@echo "set-up: installing Python packages into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	@$(RUN)/python -m examples.ivshmem_demo

# make guest DEVICES='-chardev socket,id=c,path=/tmp/rng.sock -device vhost-user-rng-pci,chardev=c'
guest: setup
	@$(RUN)/python -m tests.rig.guest.shell $(DEVICES)

# Two parts at a time, each of which prints when it has ended.
test: setup
	@echo "test: linters, unit tests and guests side by side, about eight minutes on two processors"
	@HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-quick} $(MAKE) --no-print-directory $(PARALLEL) \
	    QUICK=1 lint guest-tests unit-tests

test-all: lint $(UML) unit-tests guest-tests uml-tests peer-tests $(OTHERS:%=guest-tests-on-%)

# The parts of the tests, which may run side by side.
unit-tests: setup
	$(RUN)/python -m pytest -m '$(UNIT)' $(PYTEST_OPTIONS) $(NONE)

guest-tests: setup
	tests/rig/programs/own-shm $(RUN)/python -m pytest -m '$(GUEST)' $(PYTEST_OPTIONS) $(NONE)

# The same on another platform: make guest-tests-on-debian13-backports
guest-tests-on-%: setup
	@QEMU_COMPANION_PLATFORM=$* $(PYTHON) -m tests.rig.setup
	QEMU_COMPANION_PLATFORM=$* tests/rig/programs/own-shm $(RUN)/python -m pytest -m '$(GUEST)' $(PYTEST_OPTIONS) $(NONE)

# Back-ends and front-ends of other people's, with ours at their other end.
peer-tests: setup
	tests/rig/programs/own-shm $(RUN)/python -m pytest -m peers $(PYTEST_OPTIONS) || [ $$? -eq 5 ]

uml-tests: setup $(UML)
	tests/rig/programs/own-shm $(RUN)/python -m pytest -m 'uml' $(PYTEST_OPTIONS) $(NONE)

lint: setup
	$(RUN)/ruff check $(SOURCES)
	$(RUN)/ruff format --check $(SOURCES)
	$(RUN)/mypy $(SOURCES)
	$(RUN)/lint-imports

uml: setup
	@$(RUN)/python -m tests.rig.guest.uml

# All that needs neither QEMU nor a guest, as for another Python: make unit PYTHON=python3.13 VENV=.venv-3.13
unit: $(VENV)/.done
	$(RUN)/python -m pytest -m '$(UNIT)' $(PYTEST_OPTIONS)

# Inputs that reach something new are kept in .fuzz, and tried first the next time.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= $(notdir $(wildcard tests/fuzz/corpus/*))

fuzz: $(VENV)/.done
	@for target in $(FUZZ_TARGETS); do \
	    mkdir -p .fuzz/$$target; \
	    echo "fuzz: $$target, for $(FUZZ_SECONDS) seconds"; \
	    $(RUN)/python -m tests.fuzz $$target -max_total_time=$(FUZZ_SECONDS) -timeout=120 -max_len=4096 \
	        -artifact_prefix=.fuzz/failed-$$target- .fuzz/$$target tests/fuzz/corpus/$$target || exit 1; \
	done

bench: setup
	$(RUN)/python -m tests.bench.vhost_user
	$(RUN)/python -m tests.bench.net
	$(RUN)/python -m tests.bench.ivshmem

# The pages of docs/reference, from the docstrings.
reference: $(VENV)/.done
	@$(RUN)/python -m tests.docs.reference

tables: $(VENV)/.done
	@$(RUN)/python -m tests.docs.tables

clean:
	rm -rf $(VENV) .cache .fuzz build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
