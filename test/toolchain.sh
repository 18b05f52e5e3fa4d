#!/bin/sh
# Installs what hprobe's make targets need on Debian 12 or 13, and finds (or
# fetches) the Go that go.mod asks for. A second run changes nothing and needs
# no network.
#
#   test/toolchain.sh packages   install the missing Debian packages
#   test/toolchain.sh go         print the path of a fitting go command
set -eu

top=$(cd "$(dirname "$0")/.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/hprobe
# gcc and libc6-dev: the race detector and the guests' programs; the rest makes
# the lab's images (test/lab says which is for what).
packages="gcc g++ libc6-dev make patch git ca-certificates
	mmdebstrap debian-archive-keyring dpkg-dev uidmap
	xorriso grub-pc-bin grub-common mtools cpio xz-utils zstd squashfs-tools binutils"

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"
	elif command -v sudo > /dev/null; then sudo "$@"
	else echo "toolchain: as root, run: $*" >&2; exit 1; fi
}

install_missing() {
	missing=
	for p in "$@"; do
		case $(dpkg-query -W -f '${Status}' "$p" 2> /dev/null) in
			*' installed') ;;
			*) missing="$missing $p" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	echo "toolchain: installing$missing" >&2
	as_root apt-get -q update >&2
	# shellcheck disable=SC2086
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends $missing >&2
}

want() { sed -n 's/^go \([0-9.]*\).*/\1/p' "$top/go.mod"; }

# at_least GO VERSION: is that go command new enough by itself?
at_least() {
	have=$(GOTOOLCHAIN=local "$1" env GOVERSION 2> /dev/null | sed 's/^go//; s/[^0-9.].*//')
	[ -n "$have" ] && [ "$(printf '%s\n%s\n' "$2" "$have" | sort -V | head -n 1)" = "$2" ]
}

find_go() {
	version=$(want)
	kept=$cache/go/$version/bin/go
	for go in "$(command -v go || true)" /usr/local/go/bin/go "$kept"; do
		if [ -n "$go" ] && [ -x "$go" ] && at_least "$go" "$version"; then echo "$go"; return; fi
	done
	# Debian's Go is older, but it can fetch a newer one as a module, checked
	# against the checksum database like any other.
	install_missing golang-go
	module=golang.org/toolchain@v0.0.1-go$version.linux-amd64
	tmp=$cache/go/$version.part
	mkdir -p "$tmp"
	echo "toolchain: fetching Go $version" >&2
	(cd "$tmp" && GOTOOLCHAIN=local GOFLAGS=-modcacherw GOMODCACHE="$tmp/mod" go mod download "$module") >&2
	rm -rf "${cache:?}/go/$version"
	mv "$tmp/mod/$module" "$cache/go/$version"
	rm -rf "$tmp"
	# An older go command unpacks a module without its execute permissions.
	chmod +x "$cache/go/$version/bin/"* "$cache/go/$version/pkg/tool/linux_amd64/"*
	at_least "$kept" "$version" || { echo "toolchain: $kept does not run" >&2; exit 1; }
	echo "$kept"
}

case ${1:-} in
	# shellcheck disable=SC2086
	packages) install_missing $packages ;;
	go) find_go ;;
	*) sed -n '2,8p' "$0"; exit 2 ;;
esac
