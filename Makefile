# What a newcomer and the CI call. Every target that needs it makes .venv first.

.DEFAULT_GOAL := help
.PHONY: help demo test simulation chaos fuzz-api check bench bench-quick bench-rating bench-hot-pool bench-correction bench-messages bench-takeover bench-credentials bench-flood bench-simulator bench-bill-run bench-endurance format lock openapi client stack-up stack-down clean environment development

# Further arguments: make test ARGS="tests/unit -k tiers"
ARGS ?=
SEEDS ?= 1000
FIRST ?= 1
EXAMPLES ?= 100
SEED ?= 1
PYTHON ?=
export PYTHON

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 17

demo: environment ## run the whole pipeline on this machine and watch it; Ctrl-C ends it
	@exec .venv/bin/fleetmeter demo $(ARGS)

test: development ## run the tests; they start the servers they need
	@exec .venv/bin/pytest $(ARGS)

chaos: development ## kill tests at length; ARGS="--rounds 5 --seed 1 database_dies": those alone
	@exec .venv/bin/python -m tests.chaos $(ARGS)

fuzz-api: development ## draw EXAMPLES requests of each operation of the API, from seed SEED; ARGS="-k bills"
	@FUZZ_EXAMPLES=$(EXAMPLES) FUZZ_SEED=$(SEED) exec .venv/bin/pytest tests/integration/test_api_fuzz.py \
		--dist worksteal $(ARGS)

simulation: development ## simulate SEEDS histories with every fault, from seed FIRST on
	@exec .venv/bin/pytest tests/simulation -n 0 -k promise --seeds $(SEEDS) --first-seed $(FIRST) $(ARGS)

check: development ## check format, rules, types and the direction of imports
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports

bench: environment ## measure everything beside the raw parts; ARGS="--only latency": a part alone
	@exec .venv/bin/python -m bench $(ARGS)

bench-quick: environment ## the same in under two minutes, with what matters most
	@exec .venv/bin/python -m bench --quick $(ARGS)

bench-rating: environment ## measure the rating core: usage records per second and core
	@.venv/bin/python -m bench.rating

bench-hot-pool: environment ## measure charging of one pool of 10 to 10 000 devices
	@.venv/bin/python -m bench.hot_pool

bench-correction: environment ## measure changes of terms that concern 1 % of a history, or all of it
	@.venv/bin/python -m bench.correction

bench-messages: environment ## measure what keeping the messages as they came costs the ingester
	@.venv/bin/python -m bench.kept_messages

bench-takeover: environment ## measure how long a dead worker's shards wait for another
	@.venv/bin/python -m bench.takeover

bench-credentials: environment ## measure what credentials cost at the broker, and how soon a suspension holds
	@.venv/bin/python -m bench.credentials $(ARGS)

bench-flood: environment ## measure for how long one device that sends as fast as it can delays the others
	@.venv/bin/python -m bench.flood $(ARGS)

bench-simulator: environment ## measure how many connected devices one simulator drives; ARGS="--devices 2000"
	@.venv/bin/python -m bench.simulator $(ARGS)

bench-bill-run: environment ## measure a bill run; ARGS="--devices 1000 --charges 100000": a smaller one
	@.venv/bin/python -m bench.bill_run $(ARGS)

bench-endurance: environment ## measure the memory of ingester and worker over an hour; ARGS="--minutes 10"
	@.venv/bin/python -m bench.endurance $(ARGS)

format: development ## format the code and mend what can be mended by itself
	.venv/bin/ruff format
	.venv/bin/ruff check --fix

lock: development ## bring the lock in line with pyproject.toml; ARGS=--upgrade: newest versions
	$(LOCK) pyproject.toml --extra build -o requirements/run.txt
	$(LOCK) pyproject.toml --extra build --extra dev -c requirements/run.txt -o requirements/dev.txt
	$(LOCK) requirements/agent.in -c requirements/dev.txt -o requirements/agent.txt

LOCK = .venv/bin/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" -q $(ARGS)

openapi: environment ## bring docs/openapi.json, problems.md and events.md in line with the API
	@.venv/bin/python -m api.openapi_document

client: development ## make the typed Python client of the API from docs/openapi.json, and its wheel in var/client
	@.venv/bin/openapi-python-client generate --path docs/openapi.json --config client/config.yaml \
		--meta none --output-path client/fleetmeter_client --overwrite
	@touch client/fleetmeter_client/py.typed
	@.venv/bin/uv build --wheel --no-build-isolation --quiet --out-dir var/client client

stack-up: environment ## start TimescaleDB and Mosquitto and leave them running
	@.venv/bin/fleetmeter stack up

stack-down: environment ## stop them; their data stays
	@.venv/bin/fleetmeter stack down

clean: ## stop the servers; remove .venv, and var with all its data
	@if [ -x .venv/bin/fleetmeter ]; then .venv/bin/fleetmeter stack down --erase; fi
	rm -rf .venv var

environment: ## install the commands into .venv, as the targets above do by themselves
	@tools/bootstrap_environment.sh run

development:
	@tools/bootstrap_environment.sh dev
