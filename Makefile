# These do everything on a fresh machine: `make demo`, `make demo-seg` and `make test`.
# Each sets up the virtual environment VENV first, if that has not been done.
PYTHON ?= python3
VENV ?= .venv
REQUIREMENTS ?= requirements.txt
EXTRAS ?= test
JOBS ?= 2
PIP_FLAGS ?= -q --disable-pip-version-check

ifneq ($(words $(VENV)),1)
$(error VENV is "$(VENV)": make takes no path with spaces; name another, such as VENV=/tmp/venv)
endif

INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built-$(EXTRAS)
RUN := PYTHONUNBUFFERED=1 $(VENV)/bin/python

.PHONY: demo demo-seg test lint setup clean

setup: $(BUILT)

# mmengine reads configs of other packages with pkg_resources, so setuptools comes from the
# constraints too; ensurepip's own would be too old or too new.
$(INSTALLED): $(REQUIREMENTS) .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing the packages into $(VENV): a few minutes, of which PyTorch is the most.'
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -r $(REQUIREMENTS) -c .ci/constraints.txt
	touch $@

$(BUILT): $(INSTALLED) setup.py $(wildcard ops/*.h ops/*/*)
	@echo 'Building the op, and installing the packages for: $(EXTRAS).'
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/python -m pip install $(PIP_FLAGS) --no-build-isolation \
		-c .ci/constraints.txt -e '.[$(EXTRAS)]'
	@$(VENV)/bin/python -c 'from kat_mm.rational.op import compiled_devices as d; print("Compiled kernels:", *d() or ["none"])'
	touch $@

demo: $(BUILT)
	$(RUN) tools/demo.py

demo-seg: $(BUILT)
	$(RUN) tools/demo.py --config configs/kat_upernet_digits.py

test: $(BUILT)
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests -n $(JOBS) --dist loadfile

lint: $(BUILT)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) -c .ci/constraints.txt ruff clang-format
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard ops/*.h ops/*/*)

clean:
	rm -rf build kat_mm.egg-info kat_mm/_C_* $(VENV)/.built-*
