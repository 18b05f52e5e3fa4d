package xenevents

import (
	"context"
	"errors"
	"strings"
	"testing"
)

type listHost struct {
	Host
	all []DomainInfo
}

func (l listHost) Domains(context.Context) ([]DomainInfo, error) { return l.all, nil }

func TestFindDomain(t *testing.T) {
	h := listHost{all: []DomainInfo{{ID: 1, Name: "web"}, {ID: 7, Name: "2"}, {ID: 2, Name: "db", UUID: [16]byte{0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}, {ID: 3}}}
	for name, want := range map[string]DomainID{"web": 1, "1": 1, "2": 7, "db": 2, "AB010203-0405-0607-0809-0a0b0c0d0e0f": 2, "3": 3} {
		if d, err := FindDomain(context.Background(), h, name); err != nil || d.ID != want {
			t.Errorf("%q is domain %d, %v", name, d.ID, err)
		}
	}
	for _, name := range []string{"", "we", "99", "-1"} {
		_, err := FindDomain(context.Background(), h, name)
		if !errors.Is(err, ErrNoDomain) || !strings.Contains(err.Error(), `"web" (1)`) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if _, err := FindDomain(context.Background(), listHost{}, "web"); !errors.Is(err, ErrNoDomain) || !strings.Contains(err.Error(), "no guest runs") {
		t.Errorf("without domains: %v", err)
	}
}
