# make quickstart   recycles the sample corpus with the embedded models
# make test         all tests            make check   what CI runs: formatting, lints, tests
# make bench        all benchmarks       make libtorch   fetches libtorch 2.11 (done by the others when missing)

CARGO ?= cargo

.PHONY: quickstart test check bench libtorch build

build: libtorch
	@$(CARGO) build --quiet --bin repro

quickstart: build
	@$(CARGO) run --quiet --bin repro -- run pipelines/quickstart.yaml
	@$(CARGO) run --quiet --bin repro -- sql --pipeline pipelines/quickstart.yaml --file sql/before_after.sql
	@$(CARGO) run --quiet --bin repro -- sql --pipeline pipelines/quickstart.yaml --file sql/rewards_table.sql

test: libtorch
	$(CARGO) test

check: libtorch
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) test
	$(CARGO) bench --bench bench -- --smoke

bench: libtorch
	$(CARGO) bench --bench bench

libtorch:
	@python3 scripts/libtorch.py
