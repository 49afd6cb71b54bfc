"""shards ← r2kg ← tune ← jobs: a room imports rooms below it, never above."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVEL = {"shards": 0, "r2kg": 1, "tune": 2, "jobs": 3}
FILES = [path for room in LEVEL for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    level = LEVEL[path.relative_to(ROOT).parts[0]]
    assert not {name for name in imported(path) if LEVEL.get(name, -1) > level}


def test_no_file_outgrows_a_screenful_of_screens():
    assert not {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}


def test_listing_verbs_and_recipes_needs_no_training_library():
    code = "import jobs.show, jobs.recipes, sys; print([n for n in ('torch', 'ray', 'deepspeed') if n in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"
