"""kd and audits know nothing of each other and of the harness; no fault can be reached from canonical code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "kd": {"audits", "harness", "mlflow", "click", "rich", "pandas", "scipy"},
    "audits": {"kd", "harness", "mlflow", "click", "rich", "pandas", "numpy"},
}


def imported(source: str) -> set[str]:
    """Return the top-level packages that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_keeps_to_its_floor(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path.read_text()) & FORBIDDEN[package], path


def test_the_rule_sees_a_late_import():
    assert imported("def f():\n    from harness.faults import get\n    import kd.train as t") == {"harness", "kd"}


def test_a_trial_imports_no_mlflow():
    files = ["trial", "spec", "record", "environment", "faults/__init__"]
    for name in files:
        found = imported((ROOT / "harness" / f"{name}.py").read_text())
        assert not found & {"mlflow", "click", "rich", "pandas", "scipy", "sklearn"}, name
