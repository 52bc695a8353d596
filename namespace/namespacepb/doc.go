// Package namespacepb holds the stored and logged formats of package namespace,
// generated from namespace.proto.
package namespacepb

//go:generate sh -c "protoc --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --go_out=. --go_opt=paths=source_relative namespace.proto"
