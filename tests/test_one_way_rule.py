"""kd and audits know nothing of each other and of the harness; no fault can be reached from canonical code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import options
from kd.errors import InputError

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


def texts(source: str) -> set[str]:
    """Return the texts in a module, also the parts of formatted ones."""
    return {n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_the_core_names_no_option_and_no_command():
    """Who calls it may have none; what its words are on the command line is said by harness.options."""
    for path in sorted((ROOT / "kd").rglob("*.py")):
        named = {
            text for text in texts(path.read_text()) if re.search(r"(^|\W)--[a-z]|kdbench (run|audit|doctor)", text)
        }
        assert not named, (path, named)


def test_whatever_the_core_says_that_an_error_is_about_has_words_on_the_command_line():
    calls = [
        node
        for path in sorted((ROOT / "kd").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "InputError" and len(node.args) == 2
    ]
    about = {node.args[1].value for node in calls}
    assert about == {"root", "name and root", "teacher"}
    for word in about:
        assert re.fullmatch(r"it is missing \(.+\)", options.told(InputError("it is missing", word)))
    assert options.told(InputError("it is missing")) == "it is missing"
