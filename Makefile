# All chores of the project. `make` alone lists them.
# CI runs these very targets; nothing is done elsewhere.

CARGO ?= cargo
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

.PHONY: help demo build test e2e fuzz bench soak bench-instructions figures check bless

help: ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 20

build: ## the agent, as it is shipped: target/release/edgemesh-agent
	@tools/prerequisites cc
	$(CARGO) build --locked --release -p edgemesh-agent

demo: ## the main job on this machine, in private namespaces, without a cluster
	@tools/prerequisites cc iptables conntrack nft ip unshare
	@$(CARGO) build --locked --quiet -p edgemesh-agent
	@target/debug/edgemesh-agent playground

test: ## all tests that need no cluster, kernel labs included
	@tools/prerequisites cc iptables ipset conntrack nft ip unshare
	$(CARGO) test --locked --workspace

e2e: ## against a real etcd, kube-apiserver and kube-proxy (K8S_BIN=DIR ETCD=FILE: your own)
	@e2e/run

fuzz: ## random bytes for every decoder, 10 s each (fuzz/run TARGET SECONDS: longer)
	@fuzz/run

bench: ## beside kube-proxy's rules, HAProxy, nginx, wireguard-go: 15 minutes (ONLY=PART ROUNDS=1: less)
	@crates/bench/run

soak: ## ten thousand Services, 200 endpoints replaced each second, for an hour: does the agent grow? (WINDOW=5: 5 minutes)
	@ONLY=scale ROUNDS=1 WINDOW=$${WINDOW:-60} SERVICES=$${SERVICES:-10000} RESULTS=$${RESULTS:-target/soak} crates/bench/run

bench-instructions: ## instructions for fixed work (BASE=FILE: beside another agent)
	@tools/prerequisites valgrind
	@crates/bench/run instructions

figures: ## how soon rules are repaired, connections fall to kube-proxy, and a node is handed over
	@tools/prerequisites cc iptables ipset conntrack ip unshare
	ROUNDS=200 REPAIRS=10 EDGEMESH_LAB_SECONDS=1200 $(CARGO) test --locked --release -p edgemesh-agent \
		--test lab_repair -- --nocapture --test-threads 1
	$(CARGO) test --locked --release -p edgemesh-agent \
		--test lab_fail_open --test lab_no_fight --test lab_hand_over -- --nocapture --test-threads 1

check: ## formatting, lints, docs, licences
	@tools/prerequisites cc
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked -p edgemesh-agent --test e2e -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items --quiet
	tools/cargo-deny --locked check bans licenses sources

bless: ## write golden files anew; look at the diff before you commit it
	BLESS=1 $(CARGO) test --locked --workspace
