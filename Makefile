# make demo      set everything up, train with MTL-IBP on the digits data set, verify the result
# make test      set everything up, run the tests        (ARGS="-k soundness" and the like are passed to pytest)
# make install   set everything up in .venv
# make lint      check the style
# make soundness try to find a bound that is not one         (minutes; campaigns/README.md)
# make crash     kill training and verification in every way, resume, compare
# make coverage  set everything up, run the tests, show what they did not run
# make mutation  change the equations line by line: which changes do the tests not notice? (mutmut; an hour)
# make test-matrix  the tests with every Python and auto_LiRPA at hand (scripts/test_matrix.sh)
# make clean     remove .venv, caches and demo runs
#
# Needed: python3 (3.10 to 3.13) with venv, and make. Options:
#   PYTHON=python3.12     the interpreter to start from
#   LIRPA=<pip spec>      another auto_LiRPA, e.g. git+https://github.com/Verified-Intelligence/auto_LiRPA;
#                         remembered in .venv until another is named
#   TORCH_INDEX=<url>     where torch comes from, e.g. https://download.pytorch.org/whl/cpu (small, no CUDA)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
REQUIREMENTS := requirements/base.txt requirements/test.txt requirements/lirpa.txt
DEMO_RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)

# The stamp of a finished installation holds the auto_LiRPA that it has. LIRPA: as named now, else as installed last
# time, else the release on PyPI.
INSTALLED := $(VENV)/installed
INSTALLED_LIRPA := $(shell cat $(INSTALLED) 2>/dev/null)
LIRPA ?= $(or $(INSTALLED_LIRPA),-r requirements/lirpa.txt)
ifneq ($(LIRPA),$(INSTALLED_LIRPA))
OTHER_LIRPA := FORCE
endif

.PHONY: install test demo lint soundness crash coverage mutation test-matrix clean FORCE

install: $(INSTALLED)

# Two processes with one thread each: with more threads they would only get in each other's way.
test: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 -q $(ARGS)

demo: install
	$(BIN)/python train.py --method mtl_ibp --alpha 0.2 --dataset digits --out $(DEMO_RUN)
	$(BIN)/python verify.py --model $(DEMO_RUN) --bound cascade

lint: install
	$(BIN)/python -m ruff check .

soundness: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -W ignore -m campaigns.soundness --out results/soundness.jsonl $(ARGS)

crash: install
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m campaigns.crash --out results/crash.jsonl $(ARGS)

coverage: install
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n 2 -q --cov --cov-report=term $(ARGS)

mutation: install
	$(PIP) install -q 'mutmut>=3,<4'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

test-matrix:
	scripts/test_matrix.sh $(ARGS)

clean:
	rm -rf $(VENV) runs/demo-* build *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Is redone when a requirement or the choice of auto_LiRPA changes. --no-warn-conflicts: on a second install pip would
# complain in red that auto_LiRPA asks for torch<1.13, which is known and dealt with; real failures still stop make.
$(INSTALLED): $(REQUIREMENTS) setup.cfg pyproject.toml $(OTHER_LIRPA) | $(BIN)/python
	$(if $(TORCH_INDEX),$(PIP) install -q --no-warn-conflicts --index-url $(TORCH_INDEX) $(shell grep '^torch' requirements/base.txt | cut -d' ' -f1))
	$(PIP) install -q --no-warn-conflicts -r requirements/base.txt -r requirements/test.txt
	$(PIP) install -q --no-deps $(if $(filter -r,$(firstword $(LIRPA))),$(LIRPA),'$(LIRPA)')
	$(PIP) install -q --no-deps --no-build-isolation -e .
	@echo '$(LIRPA)' > $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Setting up $(VENV) (the first time this downloads torch; it can take some minutes)"
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) has no working venv; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

FORCE:
