"""The shape of the tree: who may import whom, and how much one file, folder or function may hold."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = {
    "shards": ("errors", "study", "clean", "privacy", "session", "films", "sources", "tars", "stream", "graphs"),
    "r2kg": (
        *("config", "rundir", "tracking", "attempts"),
        *("modules", "graph", "systems", "recipes", "training", "scoring"),
    ),
    "tune": (),
    "jobs": (),
}
"""A package imports those above it, a room of it those to its left."""
PACKAGES = list(ROOMS)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for package in ROOMS for path in sorted((ROOT / package).rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}
LINES = {name: len(path.read_text().splitlines()) for name, path in FILES.items()}


def imports_of(name: str) -> set[str]:
    """Modules of ours that a module imports anywhere in its file: in functions and for type checkers too."""
    wanted = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            wanted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
            above = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            base = ".".join(part for part in (above, node.module) if part)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            wanted |= inner | ({base} if inner - FILES.keys() else set())
    return wanted & FILES.keys() - {name}


GRAPH = {name: imports_of(name) for name in FILES}


def test_packages_import_one_way():
    wrong = {
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if PACKAGES.index(other.split(".")[0]) > PACKAGES.index(name.split(".")[0])
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_every_room_has_its_place():
    rooms = {tuple(name.split(".")[:2]) for name in FILES if "." in name}
    assert not {f"{package}.{room}" for package, room in rooms if ROOMS[package] and room not in ROOMS[package]}


def test_rooms_import_only_what_stands_to_their_left():
    wrong = set()
    for name, others in GRAPH.items():
        package, *inside = name.split(".")
        for other in others:
            other_package, *other_inside = other.split(".")
            if not (ROOMS[package] and package == other_package and other_inside):
                continue
            order = ROOMS[package]
            if not inside or order.index(other_inside[0]) > order.index(inside[0]):
                wrong.add(f"{name} imports {other}")
    assert not wrong, "\n".join(sorted(wrong))


def test_no_circle_of_imports():
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_the_graph_sees_imports_wherever_they_stand(monkeypatch):
    code = (
        "from typing import TYPE_CHECKING\nfrom shards import errors, films\nfrom . import verify\n"
        "from ..study import Study\nif TYPE_CHECKING:\n    import shards.clean\n"
        "def late():\n    from shards.sources import open_source\n"
    )
    monkeypatch.setitem(TREES, "shards.tars.format", ast.parse(code))
    named = {"errors", "films", "tars.verify", "study", "clean", "sources"}
    assert imports_of("shards.tars.format") == {f"shards.{name}" for name in named}


def test_no_file_outgrows_a_screenful_of_screens():
    assert not {name: count for name, count in LINES.items() if count > 400}


def test_a_folder_is_seen_at_a_glance():
    """At most ten entries beside __init__.py; in jobs, one for each verb."""
    crowded = {}
    for package in ("shards", "r2kg", "tune"):
        inside = [path.relative_to(ROOT) for path in FILES.values() if path.is_relative_to(ROOT / package)]
        for folder in {parent for path in inside for parent in path.parents[:-1]}:
            entries = {path.relative_to(folder).parts[0] for path in inside if path.is_relative_to(folder)}
            if len(entries - {"__init__.py"}) > 10:
                crowded[str(folder)] = sorted(entries)
    assert not crowded


def test_functions_tell_a_story():
    """Few helpers for a thousand lines, and yet nine functions of ten fit a screen."""
    defined = [
        node.end_lineno - node.lineno + 1
        for tree in TREES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert 1000 * len(defined) / sum(LINES.values()) <= 50
    assert sorted(defined)[int(len(defined) * 0.9)] <= 45


def test_what_is_public_is_documented():
    silent = []
    for name, tree in TREES.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        for scope in (tree, *classes):
            for node in scope.body:
                documentable = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
                if documentable and not node.name.startswith("_") and not ast.get_docstring(node):
                    silent.append(f"{name}:{node.name}")
    assert not silent, "\n".join(silent)
