# Everything needs only Python 3.11 (or newer) and make. The environment lives in .venv and is reused.
# On Linux pip's torch is the build for CUDA, which brings 5 GB of NVIDIA's libraries and runs on a CPU as well; on macOS
# and Windows it is the CPU's. Choose another build before the first setup (or after removing .venv):
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu     the tested version for CPUs alone, 5 GB less
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cu130   the same, built for that CUDA
#   make setup TORCH=torch==2.12.0 CONSTRAINTS=                     another version, without the tested pins
# Another Python: make test PYTHON=python3.13 VENV=.venv-3.13
# More test processes: make test JOBS=4

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
TORCH ?= torch
TORCH_INDEX ?=
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev,oracle
JOBS ?= 2
HOURS ?= 2
SEED ?= 0
LOWEST ?= tests/unit tests/contract tests/fault tests/equivalence

# Compiled files are kept, whatever the caller's settings: every process of the tests would compile the source again.
export PYTHONDONTWRITEBYTECODE :=

PIP = $(VENV)/bin/python -m pip -q --disable-pip-version-check
PINS = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
INDEX = $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
STAMP = $(VENV)/.installed

.PHONY: setup test test-lowest test-vllm same-as soak lint demo bench docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 on the path; assent needs Python 3.11 or newer"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; choose another: make setup PYTHON=/path/to/python3.11"; exit 2; }
	@echo "setting up $(VENV) (the first time takes some minutes)"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --upgrade pip $(PINS)
	$(PIP) install $(INDEX) $(PINS) $(TORCH)
	$(PIP) install $(PINS) -e '.[$(EXTRAS)]'
	@touch $@

# Files in their order: the short ones of tests/unit come last, so that no long one keeps a single core busy at the end.
test: lint
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The lowest versions that pyproject.toml allows, in an environment of their own: by hand for each release.
test-lowest: .venv-lowest/.installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(LOWEST)

.venv-lowest/.installed: pyproject.toml tests/lowest.py
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python tests/lowest.py > .venv-lowest/pins.txt
	.venv-lowest/bin/python -m pip -q --disable-pip-version-check install $(INDEX) $$(grep '^torch==' .venv-lowest/pins.txt)
	.venv-lowest/bin/python -m pip -q --disable-pip-version-check install -c .venv-lowest/pins.txt -e '.[dev,quant,oracle,math]'
	@touch $@

# vLLM for CPUs and its tests, in an environment of their own: vLLM pins torch and transformers.
test-vllm: .venv-vllm/.installed
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-vllm/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/vllm

.venv-vllm/.installed: tests/vllm/requirements.txt pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip -q --disable-pip-version-check install $(INDEX) $$(grep '^torch==' $<)
	.venv-vllm/bin/python -m pip -q --disable-pip-version-check install -r $< -e .
	.venv-vllm/bin/python -m pip -q uninstall -y torchvision torchaudio torchcodec
	@touch $@

# This checkout beside another revision: the same metrics and weights, to the bit. make same-as REV=HEAD~1 ONLY="dpo,ppo"
same-as: setup
	@test -n "$(REV)" || { echo "error: which revision? make same-as REV=HEAD~1"; exit 2; }
	$(VENV)/bin/python tests/equivalence/trajectories.py $(REV) $(if $(ONLY),--only "$(ONLY)")

# Runs under kills, signals, full disks and dead servers, for hours: by hand for each release.
soak: setup
	$(VENV)/bin/python tests/soak.py --hours $(HOURS) --seed $(SEED)

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

demo: setup
	$(VENV)/bin/assent demo

bench: setup $(if $(TRL_PYTHON),,.venv-trl) $(if $(TRL_PPO_PYTHON),,.venv-trl-ppo) $(if $(VLLM_PYTHON),,.venv-vllm/.installed)
	$(VENV)/bin/python -m benchmarks

# The peers' environments, which only the benchmarks need. TRL_PYTHON and TRL_PPO_PYTHON name existing ones instead.
.venv-trl .venv-trl-ppo: .venv-%: benchmarks/requirements-%.txt
	$(PYTHON) -m venv $@.part
	$@.part/bin/python -m pip -q --disable-pip-version-check install $(INDEX) $$(grep '^torch==' $<)
	$@.part/bin/python -m pip -q --disable-pip-version-check install -r $<
	rm -rf $@ && mv $@.part $@

docs: setup
	$(VENV)/bin/python docs/generate.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
