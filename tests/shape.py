"""The shape of the package, counted: `make shape` prints it, tests/test_shape.py keeps it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from inspect import ismodule
from pathlib import Path

import networkx

PACKAGE = Path(__file__).parent.parent / "aplens"

#: The rooms from the ground up: each uses only rooms that stand before it.
ROOMS = (
    "files",  # the private modules: atomic writes, checked documents, words, processes
    "tables",
    "style",
    "intervals",
    "verdicts",
    "plots",
    "heads",
    "models",
    "prompts",
    "patterns",
    "mae",
    "scenarios",
    "interventions",
    "circuits",
    "correctness",
    "describe",
    "ranking",
    "views",
    "study",
    "cli",
)
_LONG, _MANY = 60, 10


def modules() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room that a module is in."""
    name = [*module.split("."), "", ""][1]
    return "files" if name.startswith("_") and name != "__main__" else name


def imports(path: Path) -> Iterator[str]:
    """What a module imports of the package, inside functions as well.

    What only a type checker reads is left out, when the name stands in annotations alone, which
    `from __future__ import annotations` keeps from being looked up.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_checkers: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for_checkers |= {id(inner) for inner in ast.walk(node)}
    known = modules()
    for node in ast.walk(tree):
        if id(node) in for_checkers:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "aplens":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)


def import_graph() -> networkx.DiGraph[str]:
    """An arrow from each module to each that it imports.

    The top `aplens` stands for nothing: it hands on names when they are asked for.
    """
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    for name, path in modules().items():
        graph.add_node(name)
        arrows = {(name, other) for other in imports(path) if "aplens" not in (name, other)}
        graph.add_edges_from(arrow for arrow in arrows if arrow[0] != arrow[1])
    return graph


def circles() -> list[set[str]]:
    """Modules that import each other, directly or by others."""
    return [
        found for found in networkx.strongly_connected_components(import_graph()) if len(found) > 1
    ]


def arrows_up() -> list[str]:
    """Imports of a room that stands after the importing one."""
    order = {name: place for place, name in enumerate(ROOMS)}
    return sorted(
        f"{module} -> {other}"
        for module, other in import_graph().edges
        if module.count(".")
        and other.count(".")
        and order.get(room(other), -1) > order.get(room(module), len(ROOMS))
    )


def functions() -> Iterator[tuple[str, int, int]]:
    """Each function with its lines of code, docstring and blank lines left out, and parameters."""
    for name, path in modules().items():
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            code = (
                [
                    line
                    for line in lines[body[0].lineno - 1 : node.end_lineno]
                    if line.strip() and not line.strip().startswith("#")
                ]
                if body
                else []
            )
            args = node.args
            yield (
                f"{name}.{node.name}",
                len(code),
                len(args.args + args.kwonlyargs + args.posonlyargs),
            )


def count() -> dict[str, int]:
    """The measures."""
    import aplens
    from aplens.cli import app

    found = list(functions())
    sizes = [len(circle) for circle in circles()]
    return {
        "lines in aplens/, docstrings included": sum(
            len(path.read_text(encoding="utf-8").splitlines()) for path in modules().values()
        ),
        "modules": len(modules()),
        "modules in the largest circle of imports": max(sizes, default=0),
        "imports against the order of the rooms": len(arrows_up()),
        "names at the top": sum(not ismodule(getattr(aplens, name)) for name in aplens.__all__),
        "commands": len(app.registered_commands),
        f"functions over {_LONG} lines of code": sum(lines > _LONG for _, lines, _ in found),
        f"functions with more than {_MANY} parameters": sum(many > _MANY for _, _, many in found),
    }


if __name__ == "__main__":
    for what, number in count().items():
        print(f"{number:7,}  {what}")
    if "--all" in sys.argv:
        print(*arrows_up(), *map(sorted, circles()), sep="\n")
        print(*(each for each in functions() if each[1] > _LONG or each[2] > _MANY), sep="\n")
