"""The house: kd and audits know nothing of each other and of the harness; no import runs in a circle or upward."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = {
    "kd": {"audits", "harness", "mlflow", "click", "rich", "pandas", "scipy"},
    "audits": {"kd", "harness", "mlflow", "click", "rich", "pandas", "numpy"},
}
FLOORS = {
    "kd": ("models", "methods", ""),
    "audits": (
        "finding", "places", "updates", "lost", "hits", "trace", "observe", "infer", "checks", "laws", "report",
        "watch", "",
    ),
    "harness": (
        "options", "declarations", "records", "loading", "injection", "faults", "plan", "run", "analysis", "publish",
        "zoo", "study", "signature", "archive", "doctor", "contract", "mutation", "schemas", "cli",
    ),
}  # fmt: skip
"From the ground up: a room imports from itself and from those before it. The empty name is every other module."
FREE = {"kd": {"errors", "settings", "streams", "recipe", "data", "teacher", "procedure", "accelerate", "evaluate"}}
"Modules of a package's own floor that any of its rooms may use: they import no room."


def modules(root: Path) -> dict[str, Path]:
    """Return the files of the three packages by the name of their module, without the leading ``kdbench.``."""
    found = {}
    for path in sorted(p for top in FLOORS for p in (root / top).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def names_in(source: str) -> set[str]:
    """Return the dotted names that a module imports, wherever in it, also for a type checker alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "write imports in full"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def arrows(root: Path) -> dict[str, set[str]]:
    """Return which module imports which, by the names of :func:`modules`."""
    known = modules(root)
    found: dict[str, set[str]] = defaultdict(set)
    for name, path in known.items():
        for target in names_in(path.read_text(encoding="utf-8")):
            target = target.removeprefix("kdbench.")
            while target and target not in known:
                target = target.rpartition(".")[0]
            if target and target != name:
                found[name].add(target)
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return each way round that leads from a module back to itself, once, as the modules on it."""
    found, done = [], set()

    def follow(name: str, way: list[str]) -> None:
        if name in way:
            found.append(way[way.index(name) :])
        elif name not in done:
            for target in sorted(graph.get(name, ())):
                follow(target, [*way, name])
            done.add(name)

    for name in sorted(graph):
        follow(name, [])
    return found


def floor(name: str) -> tuple[str, int] | None:
    """Return a module's package, and the number of its floor there; None for a package's own door and what is free."""
    top, _, rest = name.partition(".")
    room = rest.partition(".")[0]
    if not rest or room in FREE.get(top, ()):
        return None
    floors = FLOORS[top]
    return top, floors.index(room if room in floors else "")


def upward(graph: dict[str, set[str]]) -> list[str]:
    """Return the imports that run upward within a package."""
    found = []
    for name, targets in graph.items():
        for target in targets:
            here, there = floor(name), floor(target)
            if here and there and here[0] == there[0] and there[1] > here[1]:
                found.append(f"{name} -> {target}")
    return sorted(found)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_keeps_to_its_floor(package):
    files = [path for name, path in modules(ROOT).items() if name.split(".")[0] == package]
    assert files
    for path in files:
        used = {name.removeprefix("kdbench.").split(".")[0] for name in names_in(path.read_text(encoding="utf-8"))}
        assert not used & FORBIDDEN[package], path


def test_the_rule_sees_a_late_import():
    source = "def f():\n    from kdbench.harness.faults import get\n    import kdbench.kd.train as t"
    assert names_in(source) == {"kdbench.harness.faults.get", "kdbench.kd.train"}


def test_no_import_runs_in_a_circle():
    assert circles(arrows(ROOT)) == []


def test_no_import_runs_upward_between_rooms():
    assert upward(arrows(ROOT)) == []


def test_each_room_of_the_harness_has_a_floor():
    rooms = {name.split(".")[1] for name in modules(ROOT) if name.startswith("harness.")}
    assert rooms - {"presets"} == {*FLOORS["harness"]}


def test_a_circle_and_an_arrow_upward_are_seen(tmp_path):
    """The rule's own bad specimen: two modules that import each other late, and a record that asks the command line."""
    for name, text in {
        "harness/records/record.py": "def f():\n    from kdbench.harness.cli import common",
        "harness/cli/common.py": "from kdbench.harness.plan.plan import make_plan",
        "harness/plan/plan.py": "def g():\n    from kdbench.harness.plan import grid",
        "harness/plan/grid.py": "from kdbench.harness.plan.plan import Preset",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = arrows(tmp_path)
    assert circles(graph) == [["harness.plan.plan", "harness.plan.grid"]]
    assert upward(graph) == ["harness.records.record -> harness.cli.common"]


def test_a_trial_imports_nothing_that_a_bare_gpu_machine_lacks():
    """What a trial's process has loaded beyond what torch and torchvision load themselves."""
    script = "import sys, torch, torchvision, safetensors.torch; before = set(sys.modules)\n"
    script += "import kdbench.harness.run.trial\n"
    script += "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.stdout.strip() == "['kdbench']", done.stderr
