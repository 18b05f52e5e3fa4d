#!/bin/bash
# Fuzzes every target of the module for the time that is given (5s).
set -euo pipefail
time=${1:-5s}
out=$(mktemp)
trap 'rm -f "$out"' EXIT

# Go's fuzzer calls it a failure ("context deadline exceeded") when a busy machine has
# not run one input in the time, with no input that failed: that is tried again.
fuzz() {
	for _ in 1 2 3; do
		# -parallel 2: the machine's cores, whatever else CI's container says
		go test -run '^$' -fuzz "^$1\$" -fuzztime "$time" -parallel 2 "$2" > "$out" 2>&1 && return
		if ! grep -q 'context deadline exceeded' "$out" || grep -q 'Failing input' "$out"; then
			break
		fi
		echo "no time to fuzz: again"
	done
	cat "$out"
	return 1
}

go list -f '{{.Dir}}' ./... | while read -r dir; do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go 2> /dev/null); do
		echo "fuzz $target (${dir#"$PWD"/})"
		fuzz "$target" "$dir"
	done
done
