# arcavm: build, test and check. `make help` lists the targets.

export CGO_ENABLED := 0

# Go's ./... skips testdata folders; the package with the embedded guest
# images lives in one.
PACKAGES := ./... ./testdata/images
# Packages whose tests use /dev/kvm: the emulated lane runs these.
KVM_PACKAGES := ./kvm ./vmm/... ./cmd/arcavm
# Packages that touch neither KVM nor guest memory mapped by it.
RACE_PACKAGES := ./pipes/... ./rpc/... ./wire/... ./network/... ./relay/... ./hypercall/... ./emulated/...

TESTFLAGS ?=

.DEFAULT_GOAL := build

# Without a symbol table and DWARF, which only debuggers and perf read.
# LDFLAGS= keeps them.
LDFLAGS ?= -s -w

## build: the command, as a static binary in bin/
.PHONY: build
build:
	go build -trimpath -ldflags '$(LDFLAGS)' -o bin/arcavm ./cmd/arcavm

# go test's cache knows nothing of the machine: what was skipped would stay so.
GO_TEST := go run ./internal/lane/gotest
TEST_ARGS = -count=1 -timeout 10m $(TESTFLAGS) $(PACKAGES)

## test: all tests, in both lanes of KVM; the end says what was skipped, and why
.PHONY: test
test: SHELL := bash
test:
	@set -o pipefail; said=$$(mktemp); trap 'rm -f "$$said"' EXIT; failed=; \
	for lane in test-kvm test-emulated; do \
		$(MAKE) --no-print-directory $$lane 2>&1 | tee -a "$$said" || failed="$$failed $$lane"; \
	done; \
	echo; grep '^lane ' "$$said"; \
	[ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

## test-kvm: every test, on this machine's /dev/kvm where there is one
.PHONY: test-kvm
test-kvm:
	@$(GO_TEST) 'this machine' $(TEST_ARGS)

## test-nokvm: every test, where /dev/kvm can't be used
.PHONY: test-nokvm
test-nokvm:
	@tools/without-kvm $(GO_TEST) 'without /dev/kvm' $(TEST_ARGS)

## test-user: as root, every test as an ordinary user who may open /dev/kvm
.PHONY: test-user
test-user:
	@tools/as-user open $(GO_TEST) 'ordinary user' $(TEST_ARGS)

## test-user-nokvm: as root, every test as a user without KVM, HOME and terminal
.PHONY: test-user-nokvm
test-user-nokvm:
	@tools/as-user closed $(GO_TEST) 'bare user' $(TEST_ARGS)

## test-emulated: the tests that need KVM, in emulated hardware KVM
.PHONY: test-emulated
test-emulated: tools
	@go run ./cmd/arcavm-emulated test -timeout 25m --limit 30m $(KVM_PACKAGES)

## race: the pure packages under the race detector (needs gcc)
.PHONY: race
race:
	CGO_ENABLED=1 go test -race -timeout 10m $(TESTFLAGS) $(RACE_PACKAGES)

# How long make fuzz runs each target.
FUZZTIME ?= 10s

# A failure counts if it comes twice: what was found is a seed then, while the
# deadline that ends a target, which go test now and then takes for one, isn't.
## fuzz: run each fuzz target for FUZZTIME; go test runs only their seeds
.PHONY: fuzz
fuzz:
	@grep -rno --include='*_test.go' '^func Fuzz[A-Za-z]*' . | sed 's|/[^/]*:[0-9]*:func | |' | sort | \
	while read -r folder target; do \
		echo "$$folder $$target"; \
		for try in first second; do \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s "$$folder" && break; \
			[ $$try = first ] || exit 1; \
		done; \
	done

# From a guest end in Go; a booted guest makes a two-hundredth of that.
HOSTILE_OPERATIONS ?= 100000000
HOSTILE_SEED ?= 1

## hostile: the tests' attacks on the monitor, HOSTILE_OPERATIONS of them
.PHONY: hostile
hostile:
	ARCAVM_HOSTILE_OPERATIONS=$(HOSTILE_OPERATIONS) ARCAVM_HOSTILE_SEED=$(HOSTILE_SEED) \
		ARCAVM_HOSTILE_GUEST_OPERATIONS=$$(($(HOSTILE_OPERATIONS) / 200)) \
		go test -count=1 -v -timeout 0 -run '^TestHostileGuest$$' ./relay ./vmm

# How long make soak runs.
SOAK ?= 30m

## soak: mixed traffic for SOAK, each byte checked, memory and threads flat
.PHONY: soak
soak:
	ARCAVM_SOAK=$(SOAK) go test -count=1 -v -timeout 0 -run '^TestSoak$$' ./vmm

## lint: gofmt, go vet, golangci-lint with staticcheck, pinned in tools/go.mod
.PHONY: lint
lint:
	go vet $(PACKAGES)
	go tool -modfile=tools/go.mod golangci-lint run --allow-parallel-runners $(PACKAGES)

## images: rebuild the guest images from testdata/guest
.PHONY: images
images:
	$(MAKE) -s -C testdata/guest images

## check-images: rebuild the guest images and compare with the committed ones
.PHONY: check-images
check-images:
	$(MAKE) -s -C testdata/guest check-images

## install-sdk: what builds guests outside of this repository, into PREFIX
.PHONY: install-sdk
install-sdk:
	@$(MAKE) -s -C testdata/guest install-sdk PWD='$(PWD)'

## bench: measure streams beside plain sockets; bench.html and bench.json
.PHONY: bench
bench: build
	bin/arcavm bench --html bench.html --json bench.json

## demo: boot the embedded HTTP server guest and print its URL
.PHONY: demo
demo: build
	bin/arcavm demo

## tools: install QEMU for the emulated lane, where that is possible
.PHONY: tools
tools:
	@if command -v qemu-system-x86_64 >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends qemu-system-x86 >/dev/null; then :; \
	else echo 'QEMU is missing and could not be installed: as root, apt-get install --no-install-recommends qemu-system-x86'; fi

## clean: remove what was built
.PHONY: clean
clean:
	rm -rf bin

## help: this list
.PHONY: help
help:
	@sed -n 's/^## \([a-z-]*\): /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do \
		printf '%-16s %s\n' "$$name" "$$what"; \
	done
