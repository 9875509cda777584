"""Tasks find what they are named after, in code and nowhere else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scenario_helpers import java_file, python_file

from aplens.scenarios import ScenarioError, list_tasks
from aplens.scenarios.tasks import SourceTree, Span, parse

TASKS = {
    "random",
    "identifiers",
    "string_literals",
    "boolean_literals",
    "numeric_literals",
    "function_call",
    "function_name",
    "closing_bracket",
    "eol",
    "keywords",
    "mathematical_operators",
    "boolean_operators",
    "assignment_operators",
    "stop",
}

JAVA = """\
package a.b;
/** doc: x + y; true "s" 1 */
class Box<T extends List<String>> {
    // i++; a.b != c
    String text = "a + b == c; if (x.y) { z += 1 } true 42";
    char mark = ';';
    boolean grow(Map<String, Integer> names, int... n) {
        for (int i = 0; i <= n[0]; i++) {
            total += -i * 0x1F / 2L;
        }
        mask >>>= 2; // not at the line's end
        mask = mask << 1;  \t
        if (!done && n != 1.5e3 || a >> 1 == '\\n') {
            names.add(this.make(true));
        }
        return false;
    }
}
"""

JAVA_SPANS = {
    "identifiers": "a b Box text mark grow names n i i n i total i mask mask mask "
    "done n a names add make",
    "string_literals": "\"a + b == c; if (x.y) { z += 1 } true 42\"|';'|'\\n'",
    "boolean_literals": "true false",
    "numeric_literals": "0 0 0x1F 2L 2 1 1.5e3 1",
    "function_call": "add make",
    "function_name": "grow",
    "closing_bracket": ") ] ) } ) ) ) } } }",
    "eol": "; ; ; ; ; ; ;",
    "keywords": "package class extends char boolean int for int if this return",
    "mathematical_operators": "<= ++ - * /",
    "boolean_operators": "! && != || ==",
    "assignment_operators": "+= >>>=",
    "stop": ". . .",
}

PYTHON = '''\
"""doc: x + y == z; True 1"""
from a.b import c  # x += 1; a.b
class Box:
    """doc (again)"""
    size: float = 1.5
    async def grow(self, *names, **more):
        total = f"{a + b} is {names[0]} or {'x'}" "tail"
        total += -0x1F ** 2 // len(names)
        total @= a @ b; rest = 1j
        if not names and total != 3 or a.b <= 2 and x not in y:
            return [True,
                    False]
        return names.index("s")
'''

PYTHON_SPANS = {
    "identifiers": "a b c Box size float grow self names more total total len names "
    "total a b rest names total a b x y names index",
    "string_literals": 'f"{a + b} is {names[0]} or {\'x\'}"|"tail"|"s"',
    "boolean_literals": "True False",
    "numeric_literals": "1.5 0x1F 2 1j 3 2",
    "function_call": "len index",
    "function_name": "grow",
    "closing_bracket": ") ) ] )",
    "eol": "\n|\n|\n|\n|\n|\n|\n|\n",
    "keywords": "from import class async def if in return return",
    "mathematical_operators": "- ** // @ <=",
    "boolean_operators": "not and != or and",
    "assignment_operators": "+= @=",
    "stop": ". . .",
}


CODE = ("java", "python")


def texts(source: str, task: str, language: str) -> list[str]:
    return [source[start:end] for start, end in SourceTree(source, language).spans(task)]


@pytest.mark.parametrize("language", CODE)
def test_every_programming_language_has_every_task(language):
    assert set(list_tasks(language)) == TASKS


@pytest.mark.parametrize(
    ("language", "task"),
    [(name, task) for name in CODE for task in sorted(TASKS - {"random"})],
)
def test_task_finds_its_spans_and_no_others(language, task):
    source, spans = {"java": (JAVA, JAVA_SPANS), "python": (PYTHON, PYTHON_SPANS)}[language]
    expected = spans[task]
    separator = "|" if task in ("string_literals", "eol") and "|" in expected else " "
    assert texts(source, task, language) == expected.split(separator)


def test_samples_parse():
    samples = [
        (JAVA, "java"),
        (PYTHON, "python"),
        (java_file(1), "java"),
        (python_file(1), "python"),
    ]
    for source, language in samples:
        assert not SourceTree(source, language).unparsed
    assert SourceTree("class {", "java").unparsed


UNPARSED = {
    "java import": (
        "java",
        "import module java.base;\nimport a.B;\nclass C { int d = e; }\n",
        ["import module java.base;"],
        "a B C d e",
    ),
    "java case": (
        "java",
        "class A {\n int f(Object o) {\n  g();\n  switch (o) {\n"
        "   case final Integer n -> h(n);\n   default -> i();\n  }\n  j();\n }\n int k;\n}\n",
        ["case final Integer n -> h(n);"],
        "A f o g o i j k",
    ),
    "java parameter": (
        "java",
        "class A {\n int f(String @X ... s) {\n  g();\n }\n int h() { return i; }\n}\n",
        ["int f(String @X ... s) "],  # the head; its body is as it was
        "A g h i",
    ),
    "java missing": (
        "java",
        "class A {\n int a = 1\n int c() { return d; }\n}\n",
        ["int a = 1"],
        "A c d",
    ),
    "java skipped": (
        "java",
        "class A {\n int a = b;\n ) )\n int c() { return d; }\n int e;\n}\n",
        ["int a = b;", ") )", "int c() "],  # what was skipped may belong to either neighbour
        "A d e",
    ),
    "python head": (
        "python",
        "class A[T=int]:\n    def f(x):\n        y = x\n\nz = 1\n",
        ["class A[T=int]:\n    "],
        "f x y x z",
    ),
    "python statement": (
        "python",
        "def f(x):\n    a = x\n    b = {**x for x in y}\n    c = x\n\ndef g():\n    d()\n",
        ["b = {**x for x in y}"],
        "f x a x c x g d",
    ),
}


@pytest.mark.parametrize("case", UNPARSED)
def test_errors_spoil_the_statement_that_they_stand_in(case):
    language, source, unparsed, identifiers = UNPARSED[case]
    tree = SourceTree(source, language)
    assert [source[start:end] for start, end in tree.unparsed] == unparsed
    assert texts(source, "identifiers", language) == identifiers.split()


def test_a_line_break_after_what_was_not_parsed_is_no_span():
    source = "a = 1\nb = {**x for x in y}\nc = 2\n"
    assert SourceTree(source, "python").spans("eol") == [Span(5, 6), Span(32, 33)]


@pytest.mark.parametrize(
    ("language", "make", "junk"),
    [("java", java_file, "0x"), ("java", java_file, " -> "), ("python", python_file, " ) ( ")],
)
def test_an_error_anywhere_adds_no_span(language, make, junk):
    """Junk put before each line in turn; what is found elsewhere was there before it, moved."""
    source = make(1)
    before = {task: SourceTree(source, language).spans(task) for task in TASKS - {"random"}}
    n_found = 0
    for at in (i + 1 for i, character in enumerate(source) if character == "\n"):
        tree = SourceTree(source[:at] + junk + source[at:], language)
        for task, spans in before.items():
            moved = {
                Span(*(place + (place >= at) * len(junk) for place in span)) for span in spans
            } | {Span(start, start + 1) for start, end in spans if end == at}
            found = tree.spans(task)
            assert set(found) <= moved
            n_found += len(found) * bool(tree.unparsed)
    assert n_found > 100


def test_what_parses_has_nothing_unparsed():
    for source, language in ((JAVA, "java"), (PYTHON, "python"), ("Call me Ishmael.", "prose")):
        assert parse(source, language).unparsed == []


def test_java_line_end_needs_the_line_break():
    assert SourceTree("class A { int a; int b;  \r\n}", "java").spans("eol") == [Span(22, 23)]
    assert SourceTree("class A { int a; }", "java").spans("eol") == []


def test_python_line_end_is_the_line_break_after_a_simple_statement():
    source = "if a:  # why\r\n    b = (1,\r\n         2)  \r\n    c()  # why\r\nd; e"
    spans = SourceTree(source, "python").spans("eol")
    assert [source[start:end] for start, end in spans] == ["\r\n"]
    assert source[: spans[0].start].endswith("2)  ")


def test_only_strings_that_are_a_statement_are_docstrings():
    source = 'def f():\n    "doc"\n    g("a")\n    return "b"\n'
    assert texts(source, "string_literals", "python") == ['"a"', '"b"']


def test_positions_count_characters_not_bytes():
    source = 'class A { String é = "ß😀"; int wørd = 7; }'
    assert texts(source, "identifiers", "java") == ["A", "é", "wørd"]
    assert texts(source, "string_literals", "java") == ['"ß😀"']
    assert texts(source, "numeric_literals", "java") == ["7"]


junk = st.text(alphabet="ab1 .;()[]{}+-*/%<>=!&|^'\"#\\\té😀", max_size=30) | st.sampled_from(
    ["a += 1;", "if (x.y()) { return true; }", "not a and b == 1", "i++", "x < 3", "def f(): pass"]
)


@given(junk=junk, language=st.sampled_from(CODE), task=st.sampled_from(sorted(TASKS)))
@settings(max_examples=300, deadline=None)
def test_nothing_in_comments_or_strings_is_a_span(junk, language, task):
    if task in ("random", "string_literals"):
        return
    string = json.dumps(junk)
    if language == "java":
        comment = junk.replace("*/", "")
        template = (
            "/*{} */ class A {{ // {}\n String s = {} + 1; int f() {{ return b.c(2); }}\n}}\n"
        )
    else:
        comment = junk
        template = "# {}\nclass A:  # {}\n    s = {} + 1\n    def f():\n        return b.c(2)\n"
    plain = template.format("", "", '""')
    filled = template.format(comment, comment, string)
    assert texts(filled, task, language) == texts(plain, task, language)


@pytest.mark.parametrize("code", ["a + b", "c == d", "e.f(1)", "x[0]", "g if h else True"])
def test_code_interpolated_into_a_string_is_part_of_the_string(code):
    source = f's = f"{{{code}}} and {{{{{code}}}}}"\n'
    for task in sorted(TASKS - {"random", "string_literals", "eol", "identifiers"}):
        assert texts(source, task, "python") == []
    assert texts(source, "identifiers", "python") == ["s"]


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ScenarioError, match=r"'cobol'.*java.*python"):
        list_tasks("cobol")
