// Package controlapi is the wire between hprobe and hprobed. What is in
// control.proto may only grow.
package controlapi

//go:generate sh generate.sh
