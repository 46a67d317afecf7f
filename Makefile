# Everything runs in .venv, which the first command sets up. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ROUNDS ?= 200
WORKERS ?= 3

.PHONY: demo test test-long test-torch test-spark test-flink crash-spark crash-flink flink-jar jars check lint types doctest crash soak bench docs docs-serve screens vendor wheel clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --group dev
	touch $@

demo: $(VENV)/.installed  ## the Iris demo, live
	$(BIN)/headrace demo iris

test: $(VENV)/.installed jars  ## the test suite, in ten minutes
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --durations 15

test-long: $(VENV)/.installed jars  ## what takes long and seldom finds anything; properties with more examples
	$(BIN)/python -m pytest -m "(slow and not crash) or hypothesis" -n $(WORKERS) --dist loadgroup --timeout 1200 --durations 15

jars: $(VENV)/.installed  ## what the tests with Kafka and MongoDB need, into a cache; without Java, Maven or a network they skip
	@$(BIN)/python -m headrace.testing.servers.fetch || true

.venv-torch/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --upgrade pip
	.venv-torch/bin/python -m pip install --quiet --editable . --group dev --group torch
	touch $@

test-torch: .venv-torch/.installed  ## models of PyTorch, and of Keras on PyTorch; in an environment of its own: torch is 5 GB
	.venv-torch/bin/python -m pytest tests/learn/test_torch.py
	KERAS_BACKEND=torch .venv-torch/bin/python -m pytest tests/learn/test_keras.py

.venv-spark/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-spark
	.venv-spark/bin/python -m pip install --quiet --upgrade pip
	.venv-spark/bin/python -m pip install --quiet --editable '.[spark]' --group dev
	touch $@

test-spark: .venv-spark/.installed jars  ## the engine of Spark, on a cluster of its own; needs Java 17
	.venv-spark/bin/python -m pytest tests -m "spark and not slow" --durations 10

crash-spark: .venv-spark/.installed jars  ## kills at random of everything that a pipeline on Spark stands on; HEADRACE_SEED repeats one
	.venv-spark/bin/python -m pytest tests -m "spark and slow" --durations 10

# Flink's own pins (pyarrow, numpy) are older than what runs: its packages come first, and ours replace them.
.venv-flink/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-flink
	.venv-flink/bin/python -m pip install --quiet --upgrade pip
	.venv-flink/bin/python -m pip install --quiet 'apache-flink>=2.3,<2.4'
	.venv-flink/bin/python -m pip install --quiet --editable '.[flink]' --group dev
	touch $@

test-flink: .venv-flink/.installed jars  ## the engine of Flink, on a cluster of its own; needs Java 17
	.venv-flink/bin/python -m pytest tests -m "flink and not slow" --durations 10

crash-flink: .venv-flink/.installed jars  ## kills at random of everything that a job on Flink stands on; HEADRACE_SEED repeats one
	.venv-flink/bin/python -m pytest tests -m "flink and slow" --durations 10

flink-jar: .venv-flink/.installed jars  ## the classes of a job on Flink, compiled from src/headrace/engines/flink/java; needs javac
	.venv-flink/bin/python -m headrace.engines.flink.jars

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types test  ## what CI runs, and lint and types

crash: $(VENV)/.installed jars  ## the crash tests: ROUNDS random kills and ROUNDS rounds of random work, on Kafka a fifth of them
	HEADRACE_CRASH_ROUNDS=$(ROUNDS) $(BIN)/python -m pytest tests/crash -m "slow or not slow" -n $(WORKERS) --dist loadgroup --timeout 7200

soak: $(VENV)/.installed  ## memory over 10,000,000 rows, and one transaction of 5,000,000
	$(BIN)/python -m benchmarks memory
	$(BIN)/python -m benchmarks transaction

soak-kafka: $(VENV)/.installed  ## memory over 10,000,000 messages of a Kafka topic; needs Java
	$(BIN)/python -m benchmarks kafka-memory

bench: $(VENV)/.installed  ## every benchmark, as ratios against a reference measured in the same run
	$(BIN)/python -m benchmarks all

bench-kafka: $(VENV)/.installed  ## the benchmarks on real Kafka, Debezium and Quix Streams; needs Java and Maven
	$(BIN)/python -m benchmarks kafka

docs: $(VENV)/.installed  ## the site, into site/; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs site

docs-serve: docs  ## the site on http://127.0.0.1:8001
	$(BIN)/python -m http.server 8001 --bind 127.0.0.1 --directory site

screens: $(VENV)/.installed  ## screenshots of every page of the dashboard, into docs/screens/; needs Chromium
	$(BIN)/python docs/screens.py

vendor:  ## compares the dashboard's htmx and uPlot with what npm has
	src/headrace/ui/vendor/fetch.sh

wheel: $(VENV)/.installed
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) .venv-torch .venv-spark .venv-flink dist build site .pytest_cache .mypy_cache .ruff_cache
