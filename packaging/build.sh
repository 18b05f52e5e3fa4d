#!/bin/bash
# Builds the Debian package into a folder (dist), and prints its name. The same commit
# makes the same package, byte for byte.
#
#   packaging/build.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$(realpath -m "${1:-dist}")
go=${GO:-go}
export CGO_ENABLED=0 GOOS=linux GOARCH=amd64
# Of sources without git (an archive) nobody knows which commit they are of.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || echo 0)}
export SOURCE_DATE_EPOCH

# v1.2.3-4-gabc, as git describes a commit after a tag, is 1.2.3+4.gabc; without a tag
# it is older than any release.
described=$(git describe --tags --always --dirty 2> /dev/null || echo unknown)
case $described in
unknown) version=0~unknown ;;
v[0-9]*) version=${described#v} version=${version/-/+} version=${version//-/.} ;;
*) version=0~git$(TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd).${described//-/.} ;;
esac

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
ldflags="-s -w -buildid= -X github.com/hprobe/hprobe/cmd/internal/version.version=$described"
"$go" build -trimpath -buildvcs=false -ldflags "$ldflags" -o "$root/bin/" ./cmd/hprobed ./cmd/hprobe
"$go" run -trimpath -buildvcs=false -ldflags "$ldflags" ./cmd/internal/pages "$root/man"

# put MODE FROM TO: a file of the package.
put() { install -D -m "$1" "$2" "$root/deb/$3"; }
put 755 "$root/bin/hprobed" usr/sbin/hprobed
put 755 "$root/bin/hprobe" usr/bin/hprobe
put 644 packaging/hprobed.service usr/lib/systemd/system/hprobed.service
put 644 packaging/sysusers.conf usr/lib/sysusers.d/hprobe.conf
put 644 packaging/tmpfiles.conf usr/lib/tmpfiles.d/hprobe.conf
put 644 packaging/hprobed.yaml etc/hprobe/hprobed.yaml
install -d -m 755 "$root/deb/etc/hprobe/policies"
for page in "$root"/man/*; do
	gzip -9n "$page"
	put 644 "$page.gz" "usr/share/man/man${page##*.}/$(basename "$page").gz"
done
for shell in bash zsh fish; do "$root/bin/hprobe" completion "$shell" > "$root/$shell"; done
put 644 "$root/bash" usr/share/bash-completion/completions/hprobe
put 644 "$root/zsh" usr/share/zsh/vendor-completions/_hprobe
put 644 "$root/fish" usr/share/fish/vendor_completions.d/hprobe.fish
put 644 LICENSE usr/share/doc/hprobe/copyright
for doc in README.md docs/{operators,findings,metrics}.md docs/grafana/hprobe.json; do put 644 "$doc" "usr/share/doc/hprobe/$(basename "$doc")"; done

install -d -m 755 "$root/deb/DEBIAN"
for script in postinst prerm postrm; do put 755 "packaging/$script" "DEBIAN/$script"; done
echo /etc/hprobe/hprobed.yaml > "$root/deb/DEBIAN/conffiles"
size=$(du -sk --apparent-size --exclude=DEBIAN "$root/deb" | cut -f 1)
sed "s/@VERSION@/$version/; s/@SIZE@/$size/" packaging/control.in > "$root/deb/DEBIAN/control"
(cd "$root/deb" && find . -path ./DEBIAN -prune -o -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) > "$root/deb/DEBIAN/md5sums"
chmod 644 "$root/deb/DEBIAN"/{conffiles,control,md5sums}
find "$root/deb" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$dist"
# gzip: also old and small dpkgs, as busybox's, know it.
dpkg-deb --root-owner-group -Zgzip --build "$root/deb" "$dist/hprobe_${version}_amd64.deb" >&2
echo "$dist/hprobe_${version}_amd64.deb"
