package cairn_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// ruleRow is a row of ARCHITECTURE.md's table of rules: the number, what it is about,
// and the tests.
var ruleRow = regexp.MustCompile(`^\| (\d+) \| ([^|]+) \| ([^|]+) \|$`)

// ruleTest is a test named in it: a package, a period, and the name.
var ruleTest = regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test|Fuzz)\\w+)`")

// ruleNumbers finds the rules that a test's comment says it proves.
var ruleNumbers = regexp.MustCompile(`[Rr]ules? (\d+(?:(?:, | and )\d+)*)`)

// TestEveryRuleHasTheTestsThatTheTableNames reads ARCHITECTURE.md and the tests: each
// rule is there once, and the tests that are said to prove it exist and say so.
func TestEveryRuleHasTheTestsThatTheTableNames(t *testing.T) {
	const rules = 22
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n### Rules\n")
	table, _, _ = strings.Cut(table, "\n## ")
	proved := provedRules(t)
	seen := 0
	for line := range strings.Lines(table) {
		row := ruleRow.FindStringSubmatch(strings.TrimSpace(line))
		if row == nil {
			continue
		}
		seen++
		number := row[1]
		if number != strconv.Itoa(seen) {
			t.Fatalf("rule %s is where rule %d should be", number, seen)
		}
		tests := ruleTest.FindAllStringSubmatch(row[3], -1)
		if len(tests) == 0 && row[3] != "not built yet" {
			t.Errorf("rule %s has no test, and is not said to be %q", number, "not built yet")
		}
		for _, named := range tests {
			name := named[1] + "." + named[2]
			switch of, exists := proved[name]; {
			case !exists:
				t.Errorf("rule %s: there is no %s", number, name)
			case !of[number]:
				t.Errorf("rule %s: the comment of %s does not say that it proves it", number, name)
			}
		}
	}
	if seen != rules {
		t.Errorf("%d rules of %d are in the table", seen, rules)
	}
}

// provedRules returns the tests of the tree, named as the table does, and the rules
// that their comments say they prove.
func provedRules(t *testing.T) map[string]map[string]bool {
	t.Helper()
	tests := make(map[string]map[string]bool)
	for pkg := range layers {
		files, err := filepath.Glob(filepath.Join(pkg, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range f.Decls {
				fn, is := d.(*ast.FuncDecl)
				if !is || fn.Recv != nil {
					continue
				}
				of := make(map[string]bool)
				for _, said := range ruleNumbers.FindAllStringSubmatch(strings.Join(strings.Fields(fn.Doc.Text()), " "), -1) {
					for _, n := range strings.FieldsFunc(said[1], func(r rune) bool { return r < '0' || r > '9' }) {
						of[n] = true
					}
				}
				tests[pkg+"."+fn.Name.Name] = of
			}
		}
	}
	return tests
}
