package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/detectors/policy"
)

// policyError is that policy files are wrong; what is wrong was printed.
type policyError struct{ problems int }

func (e *policyError) Error() string        { return count(uint64(e.problems), "problem") + " in policies" }
func (e *policyError) Is(target error) bool { return target == errUsage }

// problemLine is what is wrong with a policy, for programs.
type problemLine struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"`
	Field  string `json:"field,omitempty"`
	Why    string `json:"why"`
}

// policyLine is a policy, for programs.
type policyLine struct {
	File  string `json:"file,omitempty"`
	Name  string `json:"name"`
	Title string `json:"title,omitempty"`
	Mode  string `json:"mode,omitempty"`
	Text  string `json:"text,omitempty"`
}

func (a *app) policy() *cobra.Command {
	check := &cobra.Command{
		Use: "check FILE...", Short: "Look for what is wrong with policy files", Args: atLeastOne("FILE"),
		Long: "check prints all that is wrong with policy files, a line for each problem:\nfile, line, column, field, what is wrong and what to do. What only a guest's kernel\ncan tell, its symbols and fields, is found when the policy is applied to that guest.",
		RunE: func(_ *cobra.Command, files []string) error { return a.checkPolicies(files) },
	}
	explain := &cobra.Command{
		Use: "explain FILE...", Short: "Say in plain words what policies do", Args: atLeastOne("FILE"),
		Long: "explain says which guests a policy is for, where it looks, what happens at a match,\nwhat that costs the guest, and what it does not see.",
		RunE: func(_ *cobra.Command, files []string) error {
			return a.eachPolicy(files, func(i int, file string, p *policy.Policy) error {
				if a.json {
					return a.value(policyLine{File: file, Name: p.Name(), Title: p.Metadata.Title, Text: p.Explain()})
				}
				gap := ""
				if i > 0 {
					gap = "\n"
				}
				_, err := fmt.Fprint(a.out, gap+p.Explain())
				return err
			})
		},
	}
	schema := &cobra.Command{Use: "schema", Short: "Print the JSON schema of policies, for editors", Args: exactly(), RunE: func(*cobra.Command, []string) error {
		_, err := fmt.Fprint(a.out, policy.Schema())
		return err
	}}
	stock := &cobra.Command{Use: "stock [NAME]", Short: "List the policies that come with hprobe, or print one", Args: cobra.MaximumNArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		if len(args) == 1 {
			return a.stockPolicy(args[0])
		}
		rows := [][]string{{"NAME", "WHAT"}}
		for _, p := range policy.Stock() {
			if a.json {
				if err := a.value(policyLine{Name: p.Name(), Title: p.Metadata.Title}); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{p.Name(), p.Metadata.Title})
		}
		if a.json {
			return nil
		}
		return a.table(rows)
	}}
	return group("policy", "Files that say what to watch, and what happens then", append(a.livePolicies(), check, explain, a.policyTest(), schema, stock)...)
}

// atLeastOne is cobra.MinimumNArgs(1) with an error that says what is wanted.
func atLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return nil
		}
		return fmt.Errorf("%w: %s takes a %s at least (%s --help)", errUsage, cmd.CommandPath(), what, cmd.CommandPath())
	}
}

// checkPolicies prints what is wrong with files, and what is in those that are right.
func (a *app) checkPolicies(files []string) error {
	return a.eachPolicy(files, func(_ int, file string, p *policy.Policy) error {
		mode := policy.Observe
		if p.Enforces() {
			mode = policy.Enforce
		}
		if a.json {
			return a.value(policyLine{File: file, Name: p.Name(), Title: p.Metadata.Title, Mode: mode})
		}
		_, err := fmt.Fprintf(a.out, "%s: policy %s is well-formed: %s, %s mode\n", plain(file), p.Name(), count(uint64(len(p.Spec.Probes)), "probe"), mode)
		return err
	})
}

// eachPolicy calls f for the policies of files. What is wrong with the others it prints.
func (a *app) eachPolicy(files []string, f func(i int, file string, p *policy.Policy) error) error {
	n, problems := 0, 0
	for _, file := range files {
		all, err := policy.ReadFile(file)
		var wrong policy.Errors
		switch {
		case errors.As(err, &wrong):
			problems += len(wrong)
			if err := a.showProblems(wrong); err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		}
		for _, p := range all {
			if err := f(n, file, p); err != nil {
				return err
			}
			n++
		}
	}
	if problems > 0 {
		return &policyError{problems}
	}
	return nil
}

func (a *app) showProblems(all policy.Errors) error {
	if !a.json {
		_, err := fmt.Fprintln(a.out, all)
		return err
	}
	for i := range all {
		p := &all[i]
		if err := a.value(problemLine{p.File, p.Line, p.Column, p.Path, p.Why}); err != nil {
			return err
		}
	}
	return nil
}

// stockPolicy prints one.
func (a *app) stockPolicy(name string) error {
	text, err := policy.StockText(name)
	if err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if a.json {
		return a.value(policyLine{Name: name, Text: text})
	}
	_, err = fmt.Fprint(a.out, text)
	return err
}
