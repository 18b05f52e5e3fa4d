package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

func (a *app) trace() *cobra.Command {
	var req controlapi.TraceRequest
	var count uint
	cmd := &cobra.Command{
		Use: "trace [ID]", Short: "Show the hits of probes, live", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeProbes,
		Long: "trace shows each hit of the probes that were added with hprobe probe add, and each match\nof policies: when, in which guest, which process, and the function's arguments. ID is that\nof a probe (p1, shadow.stat), or the name of a policy.\nIt ends with Ctrl-C, after -n hits, with hprobed (exit status 5), and when the guest of the\nprobe, or of --domain, ends or restarts (exit status 1).",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				req.Id = args[0]
			}
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				s, err := c.Trace(cmd.Context(), &req)
				return show(a, s, err, count, (*controlapi.TraceResponse).GetHit, a.palette().hitLine)
			})
		},
	}
	cmd.Flags().StringVarP(&req.Domain, "domain", "d", "", "only of this guest")
	cmd.Flags().UintVarP(&count, "count", "n", 0, "end after so many hits")
	return cmd
}

func (a *app) findings() *cobra.Command {
	var req controlapi.FindingsRequest
	var count uint
	cmd := &cobra.Command{
		Use: "findings", Short: "Show what detectors found", Args: exactly(),
		Long: "findings shows what detectors found, the oldest first. hprobed keeps the last 1,000\nin memory; hprobed --findings FILE appends each to a file as well.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				s, err := c.Findings(cmd.Context(), &req)
				return show(a, s, err, count, (*controlapi.FindingsResponse).GetFinding, a.palette().findingLine)
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&req.Domain, "domain", "d", "", "only of this guest")
	f.Uint32Var(&req.Last, "last", 0, "of those that there are, only the last so many")
	f.BoolVarP(&req.Follow, "follow", "f", false, "and those to come, until Ctrl-C or hprobed's end")
	f.UintVarP(&count, "count", "n", 0, "end after so many findings")
	return cmd
}

// show prints a stream until it ends, ctx does, or count items came (0: no limit).
func show[R any, T interface {
	proto.Message
	GetLost() uint64
}](a *app, s grpc.ServerStreamingClient[R], err error, count uint, of func(*R) T, line func(T) string) error {
	if err != nil {
		return err
	}
	for n := uint(0); count == 0 || n < count; n++ {
		r, err := s.Recv()
		switch {
		case errors.Is(err, io.EOF), status.Code(err) == codes.Canceled, errors.Is(err, context.Canceled):
			return nil
		case err != nil:
			return err
		case a.json:
			err = a.message(of(r))
		default:
			m := of(r)
			if l := m.GetLost(); l > 0 {
				fmt.Fprintln(a.out, lostLine(l))
			}
			_, err = fmt.Fprintln(a.out, line(m))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
