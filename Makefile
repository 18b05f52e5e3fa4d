# hprobe: what can be made here. `make help` lists it.

GO ?= $(shell test/toolchain.sh go)
export PATH := $(dir $(GO)):$(PATH)
export CGO_ENABLED ?= 0

# The lab's suite is one process for each package; the lab server hands out as
# many copies of a host at a time as there are cores.
LAB_TESTS := ./test/lab/... ./test/xen/...
UNIT_TESTS = $(shell $(GO) list ./... | grep -v -e /test/lab -e /test/xen)
FUZZ_TIME ?= 3s
# The driver over LibVMI is built in where LibVMI's headers are, and then the binaries
# are not static: CGO_ENABLED=1.
LIBVMI := $(shell pkg-config --exists libvmi 2> /dev/null && echo 1)
WITH_LIBVMI := $(if $(LIBVMI),CGO_ENABLED=1 CGO_CFLAGS="$(shell pkg-config --cflags libvmi 2> /dev/null) -O2")
TAGS := $(if $(LIBVMI),-tags libvmi)
# The driver that the lab's tests use: native or libvmi.
DRIVER ?= native
VERSION := $(shell git describe --tags --always --dirty 2> /dev/null)
LDFLAGS := -s -w -X github.com/hprobe/hprobe/cmd/internal/version.version=$(VERSION)
# A skipped test is a hole: in CI only those that need libvmi.so may skip.
REPORT = $(GO) run ./test/report $(if $(CI),-strict)

.DEFAULT_GOAL := help
.PHONY: help packages build deb demo test unit lint fuzz lab-test test-full generate clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

packages: ## Install the Debian packages and the Go that the rest needs
	@test/toolchain.sh packages
	@test/toolchain.sh go > /dev/null

build: ## Build bin/hprobed and bin/hprobe for dom0: static binaries, or with LibVMI where that is installed (LIBVMI= leaves it out)
	$(WITH_LIBVMI) $(GO) build $(TAGS) -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/hprobed ./cmd/hprobe

deb: ## Build the Debian package in dist: both programs (static, without LibVMI), the systemd unit, manual pages, completion
	@GO=$(GO) packaging/build.sh dist

demo: packages ## Boot a Xen host in software and watch hprobe stop an attack in a running guest
	@$(GO) run ./test/demo

test: packages lint unit fuzz lab-test ## Everything that CI runs: lint, unit tests, short fuzzing, the lab suite

unit: ## Unit tests, with the race detector
	set -o pipefail; CGO_ENABLED=1 $(WITH_LIBVMI) $(GO) test $(TAGS) -race -json $(UNIT_TESTS) | $(REPORT)

lint: ## gofmt, vet, staticcheck, the shape of the house
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(if $(LIBVMI),$(WITH_LIBVMI) $(GO) vet $(TAGS) ./xenevents/... ./cmd/...,@echo "libvmi is not installed (pkg-config finds none): the driver over it is neither checked nor tested")
	$(GO) tool -modfile=test/tools/go.mod staticcheck ./...
	cd cmd/internal/controlapi/proto && $(GO) tool -modfile=../../../../test/tools/buf/go.mod buf lint

fuzz: ## Fuzz each parser for FUZZ_TIME (3s)
	test/fuzz.sh $(FUZZ_TIME)

lab-test: ## The tests on real Xen, each in its own copy of a host (DRIVER=libvmi: with that driver)
	set -o pipefail; HPROBE_TEST_DRIVER=$(DRIVER) $(GO) test -timeout 55m -json $(LAB_TESTS) | $(REPORT)

test-full: packages ## The whole matrix of hosts and the long runs: hours
	set -o pipefail; HPROBE_TEST_FULL=1 HPROBE_TEST_DRIVER=$(DRIVER) $(GO) test -timeout 12h -json $(LAB_TESTS) | $(REPORT)

generate: ## Generate code anew; leaves no diff
	$(GO) generate ./...

clean: ## Remove what was built (not the lab's cache: hprobe lab down --purge)
	rm -rf bin dist

SHELL := /bin/bash
