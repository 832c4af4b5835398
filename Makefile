# Each target does its own set-up, quickly the second time. See README.md.
#
#   make demo [DATA=folder]   the whole loop, unattended, on real imagery; ends by itself
#   make up   [DATA=folder]   the same for people: stays up until Ctrl-C, loses nothing
#   make test                 all tests, against a real Label Studio, PostgreSQL and Chromium
#   make check                formatting, lint, types, the direction of imports
#   make bench [DATA=folder]  speed; with a folder of train/ and test/, also accuracy beside the public relatives,
#                             quality scores and promises, and what automatic labels are worth (bench-accuracy,
#                             bench-quality, bench-headline)
#   make clean                what the targets made inside this folder (not the cache, not your projects)

PYTHON ?= python3
VENV   ?= .venv
DATA   ?=
TORCH  ?= torch==2.13.0
SAM2   ?= sam2==1.1.0
EXTRAS = .[postgresql]
# A package index for torch alone, e.g. PyTorch's own index of CPU builds. Empty: your pip's configuration.
TORCH_INDEX ?=

BIN   := $(VENV)/bin
ELNET := $(BIN)/elnet
SETUP := $(VENV)/.ready
LOG   := $(VENV)/setup.log
# pip complains of sam2's missing torchvision at every call; what it says is shown only when it fails.
quietly = { $(1); } >>$(LOG) 2>&1 || { tail -n 25 $(LOG); echo "Set-up failed: see $(LOG)."; exit 1; }
# The packages that Debian brings and pip does not: name of the package, and a path that proves it.
CHROMIUM   := $(shell command -v chromium chromium-browser google-chrome 2>/dev/null | head -n 1)
POSTGRESQL := $(shell ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1)

.PHONY: demo up test check bench bench-data bench-accuracy bench-quality bench-headline bench-faults clean setup weights label-studio system-packages label-studio-ml
.DELETE_ON_ERROR:

setup: $(SETUP)

$(SETUP): pyproject.toml requirements/constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV): a few minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@: >$(LOG)
	@$(call quietly,$(BIN)/pip install --upgrade 'pip>=25.1')
	@$(call quietly,$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH))
	@$(call quietly,$(BIN)/pip install setuptools wheel numpy -c requirements/constraints.txt)
	@$(call quietly,SAM2_BUILD_CUDA=0 $(BIN)/pip install --no-build-isolation --no-deps $(SAM2))
	@$(call quietly,$(BIN)/pip install -c requirements/constraints.txt --group dev -e '$(EXTRAS)')
	@touch $@

weights: $(SETUP)
	$(ELNET) weights

label-studio: $(SETUP)
	$(ELNET) label-studio install

# Only what is missing is installed, and only by root; others are told the command.
system-packages:
	@missing="$(if $(CHROMIUM),,chromium) $(if $(POSTGRESQL),,postgresql)"; missing=$$(echo $$missing); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	else \
	  echo "Missing system packages: $$missing. Install them (Debian: sudo apt-get install $$missing); the tests that need them will be skipped."; \
	fi

demo: weights label-studio
	$(ELNET) demo $(if $(DATA),--data $(DATA))

up: weights label-studio
	@$(ELNET) up $(if $(DATA),--data $(DATA)) || [ $$? = 130 ]  # Ctrl-C is how it ends

test: weights label-studio label-studio-ml system-packages
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest  # as `elnet` does: a server under test and the test share two cores

# label-studio-ml 1.0.9 in an environment of its own, for the test of the adapter.
label-studio-ml: $(SETUP)
	$(BIN)/python tests/label_studio_ml_environment.py

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: weights
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks
	$(MAKE) --no-print-directory bench-faults
	$(if $(DATA),$(MAKE) --no-print-directory bench-accuracy bench-quality bench-headline)

# Of a folder of train/ and test/, such as sar_oil. What is done stands in bench/ and is not done again.
# The network is trained on SHARE of the images, by CONFIG; hours on two cores for all of 1,200.
SHARE  ?= 1.0
SEEDS  ?= 3
CONFIG ?= configs/train-sar.yaml
NAME   := $(notdir $(abspath $(DATA)))
TIMED  := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m

bench-data: weights
	@test -n "$(DATA)" || { echo "Say DATA=folder, with train/ and test/."; exit 2; }
	@mkdir -p bench

bench-accuracy: bench-data
	$(TIMED) benchmarks.accuracy --data $(DATA) --share $(SHARE) --seeds $(SEEDS) --config $(CONFIG) \
	  --out bench/accuracy-$(NAME).jsonl --keep bench/checkpoints-$(NAME)

# Scores, calibration, promises and wrong labels, of the checkpoint that the run of seed 0 kept.
bench-quality: bench-accuracy
	for checkpoint in bench/checkpoints-$(NAME)/elnet-*-0; do \
	  $(TIMED) benchmarks.quality --checkpoint $$checkpoint --data $(DATA)/test && \
	  $(TIMED) benchmarks.label_noise --checkpoint $$checkpoint --data $(DATA)/test || exit 1; \
	done

bench-headline: bench-data
	$(TIMED) benchmarks.headline --data $(DATA) --share $(SHARE) --seeds $(SEEDS) --config $(CONFIG) \
	  --out bench/headline-$(NAME).jsonl

# The test that kills workers, longer: AGAIN of those who take over die too.
AGAIN ?= 2
bench-faults: $(SETUP) system-packages
	ELNET_FAULTS_AGAIN=$(AGAIN) $(BIN)/pytest tests/backend/test_faults.py

clean:
	rm -rf $(VENV) build dist *.egg-info demo-report bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
