# One environment, .venv, for everything below but test-tl4. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
TL4    := .venv-tl4
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Two processes of one thread each, at most 10 GB; file by file, for what the tests of a file share,
# and in their order, so that the few long tests of the notebooks do not come last.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
EXTRAS := --editable ".[gguf,umap,hub]" --group dev

# $(call environment,FOLDER): made when it is not there, with a pip that knows dependency groups.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "aplens needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
endef

# $(call borrow,FOLDER): it finds packages of $(VENV) after its own.
SITE = import sysconfig; print(sysconfig.get_path("purelib"))
borrow = echo "import site; site.addsitedir('$$($(BIN)/python -c '$(SITE)')')" \
	> "$$($(1)/bin/python -c '$(SITE)')/borrow.pth"

# $(call freeze,TRANSFORMER_LENS,FILE): the newest versions that go with it and with pyproject.toml.
define freeze
	rm -rf .venv-constraints
	$(call environment,.venv-constraints)
	.venv-constraints/bin/python -m pip install --quiet "$(1)" $(EXTRAS)
	@{ echo "# Made by 'make constraints': the versions that aplens is tested with."; \
	   .venv-constraints/bin/python -m pip freeze --exclude-editable --exclude pip --exclude setuptools; } > $(2)
	rm -rf .venv-constraints
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-tl4 lint format types docs docs-serve docs-pictures docs-map model-table shape notebooks check constraints install clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install  ## the main job, about 6 minutes: SmolLM2's heads ranked and ablated on real Java
	$(BIN)/aplens demo --folder runs/demo

test: install  ## the whole test suite, the real SmolLM2 included
	$(PYTEST)

test-fast: install  ## the tests that need neither the real model nor a browser
	$(PYTEST) -m "not real and not browser"

# These run no model, or reach it only through what other tests run on TransformerLens 4.
ONCE := readme docs notebooks heads intervals plots report shape tables io parts progress jupyterlab \
	$(addprefix correctness_,attribution clusters density evaluation head_array predictor principal regions \
	statistics surprise) $(addprefix fuzz_,arguments corpora documents shards tables) \
	$(addprefix scenarios_,corpus cutting mining prose tasks) describe_scores shipped_weights first_steps \
	$(notdir $(patsubst tests/test_%.py,%,$(wildcard tests/test_mae_*.py))) scenarios command_line processes \
	views cards head_map shown released
ONCE_PAPER := baselines catalogue greedy probes single_tasks tables text_templates

test-tl4: $(TL4)/.installed  ## the tests that run a model, on TransformerLens 4
	$(subst $(BIN),$(TL4)/bin,$(PYTEST)) -m "not browser" $(ONCE:%=--ignore tests/test_%.py) \
		$(ONCE_PAPER:%=--ignore tests/paper/test_paper_%.py)

lint: install  ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## let ruff mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install  ## mypy over the package
	$(BIN)/mypy

docs: install  ## the documentation site, built strictly into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: install  ## the documentation site at localhost:8000, rebuilt as you write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

notebooks: install  ## the notebooks in examples/, executed again and kept with their output
	cd examples && HF_HUB_OFFLINE=1 TQDM_DISABLE=1 PYTHONWARNINGS="ignore:IProgress not found" \
		../$(BIN)/jupyter nbconvert --to notebook --execute --inplace *.ipynb

docs-pictures: install  ## the pictures in docs/images, drawn again from the real model
	$(BIN)/python docs/make_pictures.py

docs-map: install  ## the map of heads in the site: its page, its picture, Gemma's heads for the notebook
	$(BIN)/aplens map smollm2-135m gemma3-270m --reducer umap -o docs/assets/map.html
	cd examples && ../$(BIN)/aplens map gemma3-270m --prompts maps/prompts.json -o maps/gemma3-270m.safetensors
	$(BIN)/python docs/make_map_picture.py

model-table: install $(TL4)/.installed  ## the tables of families in docs/how-to/your-model.md, on both TransformerLens
	$(BIN)/python -W ignore docs/make_model_table.py
	$(TL4)/bin/python -W ignore docs/make_model_table.py

shape: install  ## the package's measures: lines, circles of imports, names, commands, long functions
	$(BIN)/python tests/shape.py --all

check: lint types docs test test-tl4  ## everything CI runs

install: $(VENV)/.installed  ## the environment, with pinned versions from constraints.txt

$(VENV)/.installed: constraints.txt pyproject.toml
$(TL4)/.installed: constraints-tl4.txt pyproject.toml

# The second environment sees the first one's packages and holds only what differs: torch is several GB.
$(TL4)/.installed: $(VENV)/.installed

# --no-compile: pip would compile every module of every package, Python compiles what is imported.
%/.installed:
	$(call environment,$(@D))
	@if test $(@D) = $(VENV); then \
		echo "Installing aplens and its packages; torch makes this a few minutes and several GB."; \
	else $(call borrow,$(@D)); fi
	$(@D)/bin/python -m pip install --quiet --no-compile --constraint $< $(EXTRAS)
	@touch $@

constraints:  ## refresh constraints*.txt: the newest versions that pyproject.toml allows
	$(call freeze,transformer-lens<4,constraints.txt)
	$(call freeze,transformer-lens>=4,constraints-tl4.txt)

clean:  ## remove the environments, runs and caches
	rm -rf $(VENV) $(TL4) runs site build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
