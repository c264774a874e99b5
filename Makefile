# make            builds bin/xlstm
# make demo       converts, checks and runs a model that is in the repository
# make test       everything that has to hold before a commit
# make fuzz       each fuzz test for some thousand inputs; FUZZTIME=10m for longer
# make bench      benchmarks, then the CPU engine's ratios beside their committed baselines

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
# A number of inputs: with a time, go test now and then reports the end of the time as a failure.
FUZZTIME    ?= 5000x
BENCH       ?= .

# The race detector needs a C compiler. Where there is none, tests run without it, and the output says so.
CC_FOUND := $(shell command -v $$(go env CC) 2>/dev/null)
RACE     := $(if $(CC_FOUND),-race,)

.PHONY: all build demo test lint fuzz bench clean

all: build

build:
	CGO_ENABLED=0 go build -o bin/xlstm ./cmd/xlstm

demo: build
	scripts/demo.sh bin/xlstm

lint:
	@unformatted="$$(find . -name '*.go' -not -path './.*' -exec gofmt -l {} +)"; \
	if [ -n "$$unformatted" ]; then echo "not formatted by gofmt:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...

test: lint
	$(if $(RACE),,@echo "no C compiler: tests run without the race detector")
	go test $(RACE) -timeout 12m ./...
	go test -run 'TestMetrics|TestQuantize$$' ./scripts/benchguard ./cmd/xlstm
	CGO_ENABLED=0 GOARCH=arm64 go build ./...

# go test takes one fuzz test at a time.
fuzz:
	@set -e; for pkg in $$(go list ./...); do \
		for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
			echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) $$pkg; \
		done; \
	done

bench:
	go test -run '^$$' -bench '$(BENCH)' -benchtime 2s ./...
	go run ./scripts/benchguard

clean:
	rm -rf bin

-include cuda.mk
