# edgeml.fleet: every command that a user or a developer types.
# Needs: Debian 12 or 13, root or sudo, Python 3.11 or newer, the package registries.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Bytecode is kept between processes: hundreds start, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- environments -----------------------------------------------------------------------------------------------

# The collection is used from this checkout, by its full name, without any setting.
$(VENV)/controller: requirements/controller.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $$($(PYTHON) --version) was seen. Set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq python3-venv; }
	@echo "Making the controller's environment in $(VENV) (about a minute, once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes --requirement requirements/controller.txt
	@collections=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ansible_collections; \
		mkdir -p "$$collections/edgeml" && ln -sfn "$(CURDIR)" "$$collections/edgeml/fleet"
	@touch $@

$(VENV)/development: $(VENV)/controller requirements/development.txt requirements/runtime.txt
	@echo "Adding the test tools to $(VENV) (about a minute, once)"
	@$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --require-hashes \
		--requirement requirements/development.txt --requirement requirements/runtime.txt
	@touch $@

# ---- use --------------------------------------------------------------------------------------------------------

.PHONY: quickstart
quickstart: $(VENV)/controller ## Serve two models on this machine: store, mirror, device and checks
	@$(BIN)/ansible-playbook -i inventories/quickstart edgeml.fleet.quickstart

.PHONY: clean
clean: ## Remove everything that the quickstart made on this machine, and only that
	@if [ -e $(VENV)/controller ]; then \
		$(BIN)/ansible-playbook -i inventories/quickstart edgeml.fleet.remove; fi
	@rm -rf build/quickstart build/images build/models build/environments inventories/quickstart.lock.yml{,.sig} \
		inventories/quickstart.ledger.jsonl $(VENV)
	@rmdir build 2>/dev/null || true

# ---- development ------------------------------------------------------------------------------------------------

.PHONY: engine
engine: $(VENV)/controller ## Install and start a Docker Engine here, for the lab, by the role docker_engine
	@$(BIN)/ansible-playbook -i inventories/quickstart tests/lab/engine.yml

.PHONY: lab
lab: $(VENV)/development engine ## Start the lab: real hosts of one site, over SSH
	@$(BIN)/python tests/lab/lab.py up

.PHONY: lab-tools
lab-tools: $(VENV)/development engine
	@$(BIN)/python tests/lab/lab.py prepare

.PHONY: lab-down
lab-down: $(VENV)/development ## Remove the lab
	@$(BIN)/python tests/lab/lab.py down

.PHONY: lint lint-types lint-roles lint-collection
lint: lint-types lint-roles lint-collection ## Check style and types

lint-types: $(VENV)/development
	@$(BIN)/ruff check && $(BIN)/ruff format --check
	@$(BIN)/mypy

lint-roles: $(VENV)/development
	@$(BIN)/yamllint --strict .
	@$(BIN)/ansible-lint --offline --profile production
	@$(BIN)/antsibull-changelog lint && $(BIN)/antsibull-changelog lint-changelog-yaml changelogs/changelog.yaml
	@$(BIN)/reuse lint --quiet || $(BIN)/reuse lint --lines
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/antsibull-docs lint-collection-docs --plugin-docs --skip-rstcheck .

# Of the collection's tests, pylint takes three quarters of the time.
lint-collection: $(VENV)/development
	@$(BIN)/python tests/support/sanity.py --skip-test pylint

.PHONY: lint-sanity
lint-sanity: $(VENV)/development build/environments/importer/installed ## Check the collection as Galaxy does: ansible-test sanity, pylint included, and its importer
	@$(BIN)/python tests/support/sanity.py
	@$(BIN)/python tests/support/importer.py

# What cannot share the environment of the tests has one of its own, made once.
build/environments/%/installed: requirements/%.txt
	@echo "Making the environment build/environments/$* (up to a minute, once)"
	@$(PYTHON) -m venv build/environments/$*
	@build/environments/$*/bin/pip install --quiet --no-compile --disable-pip-version-check $(NO_DEPENDENCIES) \
		--require-hashes --requirement $<
	@touch $@

# The list is complete, and leaves out what kserve's clients do not need.
build/environments/clients/installed: NO_DEPENDENCIES := --no-deps

.PHONY: test-units
test-units: $(VENV)/development ## The plugins' unit tests as ansible-test runs them, with a target's share of Ansible
	@$(BIN)/python tests/support/sanity.py units --num-workers 2

# Files share nothing. Three processes keep two cores busy, since many tests wait for a host or a server. The quickstart
# builds the images that all fleets publish; the runtime's tests, which need none, do not wait for them. Then the longest
# files come first, and those of the units, which are short, fill the gaps at the end.
FIRST_TESTS := tests/quickstart runtime/tests
HOST_TESTS := tests/fleet tests/faults tests/integration tests/lab tests/molecule
LAST_TESTS := tests/contract tests/architecture tests/unit
# What takes minutes and has its parts in the other tests.
LONG_TESTS := tests/fleet/test_any_host.py tests/fleet/test_stick.py tests/fleet/test_operations.py \
	tests/fleet/test_fleet.py::test_a_mirror_fills_itself_after_a_power_cut \
	tests/molecule/test_all_scenarios.py tests/molecule/test_own_role.py tests/integration/packages/test_dnf.py \
	tests/integration/image/test_arm64_controller.py tests/integration/image/test_openvino_image.py \
	tests/integration/server/test_other_server.py \
	tests/integration/publish/test_measure.py::test_what_a_trial_that_was_killed_leaves_goes_with_the_next_run \
	tests/integration/publish/test_publish.py::test_the_same_digests_from_another_place
PYTEST := $(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder --junitxml build/tests.xml

# Linters run beside the tests, one at a time, and say something only when they find something.
define beside
	@mkdir -p build
	@{ $(MAKE) $(1) > build/lint.log 2>&1 && echo "$(1): nothing found"; } || { cat build/lint.log; exit 1; } & \
	lint=$$!; status=0; $(2) || status=$$?; wait $$lint || status=$$?; exit $$status
endef

# Without hosts, more of the time is waiting.
.PHONY: test-quick
test-quick: $(VENV)/development ## Style and types, unit, architecture, contract and runtime tests (4 minutes, no lab)
	$(call beside,lint-types,$(PYTEST) --numprocesses 4 -q runtime/tests $(LAST_TESTS))

.PHONY: test
test: lab-tools ## Everything but what test-long and the matrices of faults add, with fleets in the lab (30 minutes on two cores)
	$(call beside,lint,$(PYTEST) --durations 15 $(addprefix --deselect ,$(LONG_TESTS)) \
		$(FIRST_TESTS) $(HOST_TESTS) $(LAST_TESTS))

.PHONY: test-long
test-long: lab-tools ## What `make test` leaves out: seven kinds of devices, a stick, all Molecule scenarios, images (an hour)
	@$(PYTEST) --durations 15 $(LONG_TESTS)

.PHONY: support-matrix
support-matrix: $(VENV)/development ## Take the day of the last `make test` into docs/support-matrix.md, where it was green
	@$(BIN)/python tests/support/support_matrix.py build/tests.xml

.PHONY: test-hosts
test-hosts: $(VENV)/development engine ## Seven kinds of devices in one site, from a hardened one to one without systemd (8 minutes)
	@$(BIN)/pytest -v --junitxml build/tests.xml tests/fleet/test_any_host.py

.PHONY: test-stick
test-stick: $(VENV)/development engine ## A site of bare hosts that never had an uplink, from one directory on a stick
	@$(BIN)/pytest -v tests/fleet/test_stick.py

.PHONY: test-fleet
test-fleet: $(VENV)/development engine ## Stories on real hosts; K=drift runs those with that word, KEEP=1 leaves the hosts up for the next run
	@EDGEML_KEEP_LAB=$(KEEP) $(BIN)/pytest -v $(if $(K),-k "$(K)") tests/fleet

.PHONY: test-molecule
test-molecule: $(VENV)/development engine ## A Molecule scenario for each role, with drift and removal, and for the whole; K=site_mirror runs one
	@$(BIN)/pytest -v $(if $(K),-k "$(K)") tests/molecule

.PHONY: test-ee
test-ee: lab-tools ## Build the execution environment of Debian and Python packages alone, and converge a host from it
	@$(BIN)/pytest -v tests/execution_environment

.PHONY: newest-python
newest-python: ## Unpack Debian unstable's PYTHON_VERSION=3.14 in build/; the tests of target code then use it as well
	@tests/support/newest_python.sh $(or $(PYTHON_VERSION),3.14) build/cache/debian-python

.PHONY: test-faults
test-faults: $(VENV)/development engine ## Faults at every step of a release: TRIALS=500 (7 s each) SEED=1; a table in build/faults
	@SEED=$(SEED) TRIALS=$(or $(TRIALS),500) $(BIN)/pytest -v tests/faults

.PHONY: test-awx
test-awx: $(VENV)/development ## What awx_setup makes, in the recorded API of an AWX; jobs in AWX's layout (2 minutes)
	@$(BIN)/pytest -v tests/awx

.PHONY: test-core
test-core: $(VENV)/development engine ## Each ansible-core from 2.16 on: unit tests, inventory, the quickstart (5 minutes each); K=2.20 tries one
	@$(BIN)/pytest -v $(if $(K),-k "$(K)") tests/core

.PHONY: test-content-faults
test-content-faults: $(VENV)/development ## Faults at any step of filling a mirror: TRIALS=220 (1 s each) SEED=1; a table in build/faults
	@SEED=$(SEED) TRIALS=$(or $(TRIALS),220) $(BIN)/pytest -q tests/integration/content/test_sync_faults.py

.PHONY: bench
bench: ## Compare the runtime with other inference servers (25 minutes; BENCH='--help' tells its options)
	@$(PYTHON) runtime/benchmarks/run.py $(BENCH)

.PHONY: bench-compare
bench-compare: ## Compare the runtime's figures with those of BASE=<commit>, round by round (twice the time of bench)
	@$(PYTHON) runtime/benchmarks/compare.py $(BASE) $(BENCH)

.PHONY: bench-quickstart
bench-quickstart: $(VENV)/controller ## Measure what the quickstart serves, against the bare engine
	@$(BIN)/python tests/benchmark/quickstart.py

.PHONY: bench-inventory
bench-inventory: $(VENV)/controller ## Measure parsing and placing 100, 1,000 and 10,000 hosts of 50 models
	@$(BIN)/python tests/benchmark/inventory.py

.PHONY: bench-release
bench-release: $(VENV)/development engine ## Measure a run without a change, of a model and of an image under load (5 minutes; ROUNDS=3)
	@$(BIN)/python tests/benchmark/release.py

.PHONY: bench-converge
bench-converge: $(VENV)/development engine ## Compare a converge that changes nothing with a plain playbook's, in the lab
	@$(BIN)/python tests/benchmark/converge.py

.PHONY: bench-content
bench-content: $(VENV)/development engine ## Compare filling a mirror with skopeo and docker: seconds, and bytes on the wire
	@$(BIN)/python tests/benchmark/content.py

.PHONY: bench-mirror
bench-mirror: $(VENV)/development ## Compare a mirror that 200 hosts ask at once with plain nginx and docker-registry: MB/s (2 minutes)
	@$(BIN)/python tests/benchmark/mirror.py

.PHONY: bench-minify
bench-minify: $(VENV)/development engine ## Measure smaller variants of three real models: bytes, p95, memory, deviation, accuracy (3 minutes)
	@$(BIN)/python tests/benchmark/minify.py

.PHONY: soak
soak: MINUTES ?= 60
soak: $(VENV)/development ## Serve at half capacity for MINUTES=60, a tenth hostile, and judge what grows
	@$(BIN)/python runtime/benchmarks/soak.py --minutes $(MINUTES)

.PHONY: fuzz
fuzz: MINUTES ?= 10
fuzz: build/environments/fuzz/installed ## Fuzz the runtime's parsers for MINUTES=10
	@build/environments/fuzz/bin/python runtime/fuzz/fuzz.py --minutes $(MINUTES)

.PHONY: docs
docs: $(VENV)/development ## Build the documentation as a static site in build/docs; every link is checked
	@$(BIN)/python .ci/docs.py build/docs && echo "build/docs/index.html"

.PHONY: release
release: $(VENV)/development ## Build the archive, wheel, images, notes and checksums of this commit in build/release
	@$(BIN)/python .ci/release.py build/release --images $(if $(SNAPSHOT),--snapshot)

.PHONY: lock
lock: ## Renew the hash-locked requirements from requirements/*.in
	@$(PYTHON) -m venv build/uv && build/uv/bin/pip install --quiet uv
	@cd requirements && for name in controller models pretrained runtime openvino vision development fuzz clients importer; do \
		../build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
			--no-header $$name.in --output-file $$name.txt; done
	@cd roles/model_store/files/minify && $(CURDIR)/build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header --constraint $(CURDIR)/requirements/models.txt \
		requirements.in --output-file requirements.txt
	@cd runtime/benchmarks/requirements && for file in *.in; do \
		../../../build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
			--no-header $$file --output-file $${file%.in}.txt; done
	@cd tests/integration/server && ../../../build/uv/bin/uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-annotate --no-header mlserver.in --output-file mlserver.txt
