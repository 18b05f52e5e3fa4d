#!/bin/bash
# Fuzzes every target of the module for the time that is given (5s).
set -euo pipefail
time=${1:-5s} n=0
go list -f '{{.Dir}}' ./... | while read -r dir; do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$dir"/*_test.go 2> /dev/null); do
		echo "fuzz $target (${dir#"$PWD"/})"
		# -parallel 2: the machine's cores, whatever else CI's container says
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -parallel 2 "$dir" > /tmp/fuzz.$$ 2>&1 || { cat /tmp/fuzz.$$; rm -f /tmp/fuzz.$$; exit 1; }
	done
done
rm -f /tmp/fuzz.$$
