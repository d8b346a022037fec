# `make demo` and `make test` set up all they need in .venv; nothing has to be installed before but Python 3.11 or later.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
UV     := $(shell uv --version >/dev/null 2>&1 && echo uv)
SUDO   := $(if $(filter 0,$(shell id -u)),,sudo)
INSTALL = $(if $(UV),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install) -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test browser notebooks lab export readme docs clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 18

install: $(VENV)/.installed  ## the library and the command promptsg, in .venv

demo: $(VENV)/.installed  ## train and evaluate on synthetic hands, or with DATA=path/to/11k on real ones; ARGS="--config ..."
	$(BIN)/promptsg demo $(if $(DATA),--data "$(DATA)") $(ARGS)

# two processes of one thread each need half the time of one of two
test: $(VENV)/.installed-dev browser  ## all tests: code, notebooks and their stored outputs; or some: ARGS="-k losses"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 tests $(ARGS)

notebooks: $(VENV)/.installed-dev  ## run notebooks, and store outputs that changed; PATHS="nbs/08_losses.ipynb ..."
	$(BIN)/python tests/notebooks.py write $(PATHS)

browser:  ## the Chromium that the tests of pages open, by apt where there is none
	@which chromium google-chrome >/dev/null 2>&1 || { which apt-get >/dev/null && $(SUDO) apt-get update -q && $(SUDO) apt-get install -yq chromium; } \
	|| { echo "install Chromium (or Chrome) so that it is on the PATH: the tests open pages in it"; exit 1; }

lab: $(VENV)/.installed-dev  ## open the notebooks in JupyterLab, on the index, without its announcements
	$(BIN)/jupyter lab nbs/index.ipynb --config="$(CURDIR)/.jupyterlab/jupyter_server_config.py" --LabApp.app_settings_dir="$(CURDIR)/.jupyterlab" $(ARGS)

export: $(VENV)/.installed-dev  ## make the package from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean

readme: $(VENV)/.installed-dev  ## make README.md and nbs/llms.txt from the notebooks
	$(BIN)/python tests/make_readme.py
	$(BIN)/python tests/make_llms.py

docs: readme  ## make the site in _docs (needs Quarto, https://quarto.org)
	$(BIN)/nbdev_docs

clean:  ## take away what can be made again; runs/ stays
	rm -rf $(VENV) _docs _proc build dist *.egg-info .pytest_cache

$(BIN)/python:
	$(if $(UV),uv venv -q --python $(PYTHON) $(VENV),$(PYTHON) -m venv $(VENV))

$(VENV)/.installed: setup.py settings.ini constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: setup.py settings.ini constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed
