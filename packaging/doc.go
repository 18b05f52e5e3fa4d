// Package packaging has what the Debian package is made of, and the tests of it.
package packaging
