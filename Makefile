# EdgeLink. `make` alone lists the targets. Everything is built into target/ and .venv/; nothing else on the machine is touched but missing
# Debian packages (only as root; otherwise the command to install them is printed).
SHELL := /bin/bash
.DEFAULT_GOAL := help
PROFILE ?= fast
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
BIN := target/$(PROFILE)
PY_DIRS := bindings controller-py e2e

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

demo: build ## a whole private network in namespaces: controller, two relays, three nodes (KEEP=1 leaves it running)
	@scripts/need iproute2:ip iputils-ping:ping iperf3:iperf3 curl:curl nftables:nft
	@$(PY) -m e2e.demo --bin $(BIN) $(if $(KEEP),--keep)

test: build test-rust test-python test-e2e ## every test

test-rust: toolchain ## unit, property, simulation and integration tests in Rust
	cargo test --workspace --exclude meshdp-python --quiet

test-python: wheel ## the wheel, the controller, edgelink-ctl
	cd bindings && ../$(PY) -m pytest -q
	cd controller-py && ../$(PY) -m pytest -q

test-e2e: build ## real binaries in network namespaces
	@scripts/need iproute2:ip iputils-ping:ping iperf3:iperf3 curl:curl nginx:nginx haproxy:haproxy caddy:caddy tinyproxy:tinyproxy microsocks:microsocks nftables:nft miniupnpd-nftables:miniupnpd coturn:turnutils_natdiscovery prometheus:promtool systemd:systemd-analyze openssl:openssl conntrack:conntrack
	$(PY) -m pytest -q e2e/tests --bin $(BIN)

soak: toolchain ## everything at once against three relays for ten minutes (SOAK_SECONDS=60, SEED=… to repeat), then what else takes long
	SOAK_SECONDS=$(or $(SOAK_SECONDS),600) cargo test --quiet -p edgelink-relay --test abuse -- --ignored --nocapture --test-threads=1

check: toolchain venv ## format, lints, docs, licences, import rules
	cargo fmt --all --check
	cargo check --quiet -p meshdp --no-default-features
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items --exclude meshdp-python
	cargo-deny --log-level error check licenses bans sources
	ruff format --check $(PY_DIRS)
	ruff check $(PY_DIRS)
	cd bindings && mypy python tests
	MYPYPATH=bindings/python mypy --strict e2e
	cd controller-py && MYPYPATH=../bindings/python mypy
	cd controller-py && lint-imports
	scripts/check-tree

build: toolchain wheel ## relay, node (profile fast) and the Python wheel
	cargo build --quiet --profile $(PROFILE) -p edgelink-relay -p edgelink

dist: toolchain ## stripped release binaries in target/dist
	cargo build --profile dist -p edgelink-relay -p edgelink

wheel: toolchain venv ## the Python package meshdp, into .venv
	@cd bindings && maturin develop --uv --quiet --profile $(PROFILE)

venv: $(VENV)/.stamp

$(VENV)/.stamp: dev-requirements.txt controller-py/requirements-dev.lock controller-py/pyproject.toml
	@scripts/need python3-venv:python3
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; python3 is $$(python3 --version)" >&2; exit 3; }
	@python3 -m venv $(VENV) || { scripts/need python3-venv:no-such-command; python3 -m venv $(VENV); }
	@$(PY) -m pip install -q uv
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install -q --compile-bytecode -r controller-py/requirements-dev.lock -r dev-requirements.txt
	@VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install -q --no-deps -e controller-py
	@touch $@

toolchain:
	@scripts/need build-essential:cc
	@command -v cargo >/dev/null || { echo "a Rust toolchain (1.95 or newer) is needed: install it with rustup, or your distribution's rustc and cargo packages" >&2; exit 3; }

IROH_RELAY := 1.4.1
IROH_ROOT := target/rivals/iroh-relay

bench-relay: toolchain $(IROH_ROOT)/.$(IROH_RELAY) ## the relay beside iroh-relay and a plain tokio relay; writes target/bench/relay.json
	cargo build --quiet --release -p edgelink-bench -p edgelink-relay
	target/release/edgelink-bench relay

# As published, with its own locked dependencies; not part of this workspace.
$(IROH_ROOT)/.$(IROH_RELAY): | toolchain
	CARGO_PROFILE_RELEASE_LTO=thin CARGO_TARGET_DIR=target/rivals/build cargo install --quiet --force --locked --root $(IROH_ROOT) iroh-relay@$(IROH_RELAY) --features server
	@touch $@

WIREGUARD_GO := v0.0.0-20260522210424-ecfc5a8d5446
TAILSCALE_GO := v0.0.0-20260928213032-417aef361226
BORINGTUN := 0.7.1
GOTATUN := 0.10.2
NODE_RIVALS := target/rivals/boringtun/.$(BORINGTUN) target/rivals/gotatun/.$(GOTATUN) \
  $(if $(shell command -v go),target/rivals/wireguard-go/.$(WIREGUARD_GO) target/rivals/wireguard-go-tailscale/.$(TAILSCALE_GO),no-go)

bench-node: toolchain wheel $(NODE_RIVALS) ## the node beside wireguard-go, Tailscale's fork of it, boringtun and gotatun; writes target/bench/node.json
	@scripts/need iproute2:ip iputils-ping:ping iperf3:iperf3 ethtool:ethtool
	cargo build --quiet --release -p edgelink-bench -p edgelink-relay -p edgelink
	target/release/edgelink-bench node

target/rivals/boringtun/.$(BORINGTUN): | toolchain
	CARGO_PROFILE_RELEASE_LTO=thin CARGO_TARGET_DIR=target/rivals/build cargo install --quiet --force --locked --root $(@D) boringtun-cli@$(BORINGTUN)
	@touch $@

target/rivals/gotatun/.$(GOTATUN): | toolchain
	CARGO_PROFILE_RELEASE_LTO=thin CARGO_TARGET_DIR=target/rivals/build cargo install --quiet --force --locked --root $(@D) gotatun-cli@$(GOTATUN)
	@touch $@

# By the toolchain that is there; where modules come from is the environment's matter. One that is too old leaves them out.
target/rivals/wireguard-go/.$(WIREGUARD_GO):
	@mkdir -p $(@D)/bin
	GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN=$(CURDIR)/$(@D)/bin go install golang.zx2c4.com/wireguard@$(WIREGUARD_GO) \
	  && mv $(@D)/bin/wireguard $(@D)/bin/wireguard-go && touch $@ || echo "wireguard-go is left out" >&2

# The version that tailscale.com v1.104.5, the newest, names.
target/rivals/wireguard-go-tailscale/.$(TAILSCALE_GO):
	@mkdir -p $(@D)/bin
	GOTOOLCHAIN=local CGO_ENABLED=0 GOBIN=$(CURDIR)/$(@D)/bin go install github.com/tailscale/wireguard-go@$(TAILSCALE_GO) \
	  && touch $@ || echo "Tailscale's wireguard-go is left out" >&2

no-go:
	@echo "no Go toolchain here: wireguard-go and Tailscale's wireguard-go are left out"

bench-micro: toolchain ## the steps of a packet, each by itself (criterion)
	cargo bench --quiet -p edgelink-bench --bench micro

fuzz: venv ## each fuzz target for a minute (FUZZ_SECONDS=60); needs a nightly toolchain
	fuzz/run $(or $(FUZZ_SECONDS),60)

advisories: venv ## known vulnerabilities in dependencies (needs the network)
	cargo-deny check advisories

clean: ## what was built
	rm -rf target fuzz/target $(VENV)

.PHONY: help demo test test-rust test-python test-e2e soak check build dist wheel venv toolchain bench-relay bench-node no-go bench-micro fuzz advisories clean
