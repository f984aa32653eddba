"""kd and audits know nothing of each other and of the harness; no fault can be reached from canonical code."""

import ast
import subprocess
import sys
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


def test_a_trial_imports_nothing_that_a_bare_gpu_machine_lacks():
    """What a trial's process has loaded beyond what torch and torchvision load themselves."""
    script = "import sys, torch, torchvision, safetensors.torch; before = set(sys.modules); import harness.trial; "
    script += "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "['audits', 'harness', 'kd']", done.stderr
