package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestListenOnceAndForRootOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "s.sock")
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's mode is %v, %v", info.Mode(), err)
	}
	if _, err := Listen(path, ""); err == nil {
		t.Error("a second hprobed may listen")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Dial(context.Background(), path); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("without a daemon: %v", err)
	}
}

func TestListenTakesOverFromTheDead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	l, err := Listen(path, "")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}
