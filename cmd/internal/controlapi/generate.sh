# Generates the Go code of control.proto, with the plugins that test/tools pins.
set -eu
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -modfile=../../../test/tools/go.mod -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
PATH="$bin:$PATH" protoc --go_out=. --go_opt=paths=source_relative --go-grpc_out=. --go-grpc_opt=paths=source_relative control.proto
# Which protoc it was is no part of the code: it differs between Debian's releases.
sed -i -E '/^\/\/ (- )?protoc +v/d' control.pb.go control_grpc.pb.go
