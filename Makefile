# Two commands do everything on a machine with Python >= 3.11: `make demo` and `make test`.

VENV := .venv
PACKAGES := .venv-packages
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-long test-variants test-packages test-versions torture lock bench docs lint ui clean

demo: $(READY)  ## train, audit and compare corrected and bugged variants on real digits (minutes)
	$(BIN)/kdbench run --preset quick --variant both

PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test: $(READY)  ## the test suite
	$(PYTEST)

test-long: $(READY)  ## what `make test` leaves out: every fault, the whole clean zoo, the toy runs of the benchmarks
	$(PYTEST) -m long

test-variants: $(READY)  ## the tests that train, as other processors would, with two threads, and from other seeds
	$(BIN)/python tests/variants.py $(PYTEST)

test-packages: $(PACKAGES)/.ready  ## other people's packages under the audits, in an environment of their own
	$(PACKAGES)/bin/python -m pytest -n 2 --dist loadgroup -m packages tests/test_packages.py tests/test_torchdistill.py tests/test_docs_trl.py

# Apart from .venv, whose versions are pinned: datasets 5 fails beside pyarrow 25. KD_Lib pins torch 1.8 and is installed alone.
$(PACKAGES)/.ready: $(READY)
	$(BIN)/python -m venv $(PACKAGES)
	grep -v '^pyarrow' constraints.txt > $(PACKAGES)/constraints.txt
	$(PACKAGES)/bin/python -m pip install --quiet --disable-pip-version-check -c $(PACKAGES)/constraints.txt -e '.[test,packages]'
	$(PACKAGES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps KD_Lib
	@touch $@

# Of each part of kdbench: statistics, records, networks, losses, training, audits, command line, package.
SHORT := $(patsubst %,tests/test_%.py,stats permutation record checkpoint models losses train checks watch verify cli package)

test-versions: $(READY)  ## the oldest and the newest set that pyproject.toml allows, each in an environment of its own
	$(BIN)/python tests/versions.py > $(VENV)/oldest.txt
	for set in oldest newest; do \
		case $$set in oldest) more="-c $(VENV)/oldest.txt";; newest) more=--upgrade;; esac; \
		$(BIN)/python -m venv --clear .venv-$$set && \
		.venv-$$set/bin/python -m pip install --quiet --disable-pip-version-check $$more -e '.[test]' && \
		.venv-$$set/bin/python -m pip list --format freeze > .venv-$$set/versions.txt && \
		echo "$$set: $$(grep -iE '^(torch|numpy|scipy|pydantic|mlflow)=' .venv-$$set/versions.txt | tr '\n' ' ')" && \
		.venv-$$set/bin/python -m pytest -q $(SHORT) || exit 1; \
	done

torture: $(READY)  ## kills, faults of the machine and damaged files, into reports/trust.md; 40 minutes on two cores
	$(BIN)/python tests/torture

lock: $(READY)  ## the newest versions that pyproject.toml allows, into constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	@head -2 constraints.txt > $(VENV)/lock.txt
	$(BIN)/python -m pip freeze --exclude-editable >> $(VENV)/lock.txt
	@mv $(VENV)/lock.txt constraints.txt

bench: $(READY)  ## ratios against a textbook loop, into reports/; for a machine that does nothing else meanwhile
	@rm -f $(VENV)/bench.json
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-quiet --benchmark-json=$(VENV)/bench.json $(BENCH)
	$(BIN)/python benchmarks/guard.py $(VENV)/bench.json
	$(BIN)/python benchmarks/report.py $(VENV)/bench.json

docs: $(READY)  ## the pages of docs/, the reports and the audits as a site, into runs/site; a dead link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "runs/site/index.html"

lint: $(READY)  ## format, lint, types, and the words of the pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p $(VENV)/types/kdbench  # the package as a wheel lays it out, for mypy
	@ln -sfn ../../../kd ../../../audits ../../../harness ../../../kdbench/__init__.py ../../../kdbench/__main__.py $(VENV)/types/kdbench/
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --no-summary tests/test_words.py

ui: $(READY)  ## the MLflow UI over the demo's runs
	$(BIN)/kdbench ui

# The environment is made once, and anew when what it is made of changes.
$(READY): pyproject.toml constraints.txt
	@python=; for p in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$p; break; fi; done; \
	if [ -z "$$python" ]; then echo "kdbench needs Python >= 3.11; say which: make $(MAKECMDGOALS) PYTHON=/path/to/python"; exit 2; fi; \
	echo "making $(VENV) with $$($$python --version); torch is large, so the first time takes minutes"; \
	$$python -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

clean:  ## remove the environment; records in runs/ stay
	rm -rf $(VENV) $(PACKAGES) .venv-oldest .venv-newest *.egg-info
