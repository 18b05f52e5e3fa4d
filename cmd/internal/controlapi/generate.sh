# Generates the Go code of proto/, with the tools that test/tools pins.
set -eu
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
tools=../../../test/tools
go build -modfile=$tools/go.mod -o "$bin/" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
go build -modfile=$tools/buf/go.mod -o "$bin/" github.com/bufbuild/buf/cmd/buf
PATH="$bin:$PATH" buf generate
