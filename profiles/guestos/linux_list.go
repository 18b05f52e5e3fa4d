package guestos

import (
	"context"
	"slices"
)

// list is one of the kernel's doubly linked lists (struct list_head), which the guest
// changes while it is read.
type list[T any] struct {
	k     *Kernel
	what  string // it is, for people
	head  uint64
	limit int
	// read reads what a node is in. An error is one of the guest's memory.
	read func(node uint64) (T, error)
	// same says whether what is at a node now is what was read there: memory that was
	// freed is used again.
	same func(node uint64, was T) bool
}

// listed is a node whose place in the list was sure when it was read.
type listed[T any] struct {
	node uint64
	item T
}

// maxSteps is how often a reader may find that it has to go back.
const maxSteps = 4096

// all reads the whole list, without a lock and without holding the guest. What is in it
// from the beginning to the end is in the answer, once and in the list's order: a node
// counts only if it and the one before it point to each other after it was read, and that
// is still what it was: so it is the next one of a list that both are in. A reader that finds itself on a node
// that went goes back to the last one that did not. That holds for lists that grow at one of their
// ends, as those of tasks and modules do.
//
// A list that no kernel makes (loops, links that don't fit, without an end) costs no more
// than limit nodes: r says what is wrong, and what can be read of it is in the answer.
func (l *list[T]) all(ctx context.Context, r *reasons) ([]T, error) {
	stack := []listed[T]{{node: l.head}}
	seen := map[uint64]int{l.head: 0} // where in the stack
	// One that went may have come back as another, behind.
	circle := func(node uint64) bool {
		n, ok := seen[node]
		return ok && (n == 0 || l.same(node, stack[n].item))
	}
	misses, steps := 0, 0
walk:
	for ; ; steps++ {
		if stop, err := r.ended(ctx, l.what); err != nil {
			return nil, err
		} else if stop {
			break
		}
		if steps > l.limit+maxSteps || len(stack) > l.limit {
			r.add("%s has no end: %d entries were looked at", l.what, len(stack)-1)
			break
		}
		last := &stack[len(stack)-1]
		next, fits, item, err := l.after(last.node)
		fits = fits && (len(stack) == 1 || l.same(last.node, last.item))
		switch {
		case fits && next == l.head:
			break walk
		case fits && !circle(next):
			misses = 0
		default:
			if misses++; misses <= tries {
				r.wait(ctx, misses)
				for n := len(stack) - 1; n > 0 && !l.holds(&stack[n]); n-- {
					if seen[stack[n].node] == n {
						delete(seen, stack[n].node)
					}
					stack = stack[:n]
				}
				continue
			}
			// It stays so: no guest that only works does that.
			switch {
			case next == l.head && err == nil:
				r.add("%s does not fit together at its end", l.what)
				break walk
			case err != nil:
				r.add("%s is cut off behind %d entries: %v", l.what, len(stack)-1, err)
				break walk
			case circle(next):
				r.add("%s goes in a circle behind %d entries", l.what, len(stack)-1)
				break walk
			}
			r.add("%s does not fit together behind %d entries: %#x does not point back to %#x", l.what, len(stack)-1, next, last.node)
		}
		seen[next] = len(stack)
		stack = append(stack, listed[T]{next, item})
	}
	items := make([]T, 0, len(stack)-1)
	for i := range stack[1:] {
		items = append(items, stack[i+1].item)
	}
	return items, nil
}

// after reads what comes after a node. It fits where both point to each other.
func (l *list[T]) after(at uint64) (next uint64, fits bool, item T, err error) {
	if next, err = l.k.read64(at); err != nil {
		return next, false, item, err
	}
	if next != l.head {
		if item, err = l.read(next); err != nil {
			return next, false, item, err
		}
	}
	back, err := l.k.read64(next + 8)
	if err != nil {
		return next, false, item, err
	}
	again, err := l.k.read64(at)
	return next, back == at && again == next, item, err
}

// holds says whether a node is still in the list, as what it was.
func (l *list[T]) holds(n *listed[T]) bool {
	if !l.same(n.node, n.item) {
		return false
	}
	back, err := l.k.read64(n.node + 8)
	if err != nil {
		return false
	}
	forth, err := l.k.read64(back)
	return err == nil && forth == n.node
}

// again reads something that the guest may be changing, until it is twice the same, so
// that it was all there at one moment. The error is that of the last time, or errChanged.
func again[T any](ctx context.Context, r *reasons, read func() (T, error), same func(a, b T) bool) (last T, err error) {
	for n := range tries {
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			r.wait(ctx, n)
		}
		now, nowErr := read()
		if n > 0 && err == nil && nowErr == nil && same(last, now) {
			return now, nil
		}
		last, err = now, nowErr
	}
	if err == nil {
		err = errChanged
	}
	return last, err
}

// ofProcess reads what a process has, whose files have names, until it is twice the same.
func ofProcess[T any](ctx context.Context, k *Kernel, pid uint32, what string, read func(*Status) ([]T, error), same func(x, y T) bool) ([]T, error) {
	if _, err := k.names(); err != nil {
		return nil, err
	}
	var r reasons
	p, err := k.findTask(ctx, &r, pid)
	if err != nil {
		return nil, err
	}
	all, err := again(ctx, &r, func() ([]T, error) { return read(p) }, func(a, b []T) bool { return slices.EqualFunc(a, b, same) })
	return all, r.result(ctx, what, err)
}
