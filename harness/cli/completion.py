"""Completion of names on Tab, without importing PyTorch, which would take seconds at each one.

Names are read from the sources; tests hold them to the registries.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from kdbench.harness.plan.outline import PRESETS

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _decorated(files: Iterable[Any], decorator: str) -> Iterator[tuple[ast.FunctionDef | ast.ClassDef, ast.Call]]:
    """Yield each function or class that a call of the decorator registers, with that call."""
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator:
                        yield node, call


def _sources(package: str, folder: str) -> list[Any]:
    files = (resources.files(package) / folder).iterdir()  # naming the folder as a package would import it
    return [file for file in files if file.name.endswith(".py")]


def fault_names() -> list[str]:
    """Return the names of the catalogue's faults, which are their functions' in kebab case."""
    files = _sources("kdbench.harness", "faults")
    return sorted(node.name.replace("_", "-") for node, _ in _decorated(files, "fault"))


def method_names() -> list[str]:
    """Return the names of the methods that come with kdbench."""
    calls = [call for _, call in _decorated(_sources("kdbench.kd", "methods"), "method")]
    return sorted(str(arg.value) for call in calls if isinstance(arg := call.args[0], ast.Constant))


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


def complete_fault(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a fault, also the last of several joined by ``+``."""
    before, plus, last = incomplete.rpartition("+")
    return [CompletionItem(before + plus + name) for name in fault_names() if name.startswith(last)]


def complete_method(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a method, also the last of several joined by ``+``."""
    before, plus, last = incomplete.rpartition("+")
    return [CompletionItem(before + plus + name) for name in method_names() if name.startswith(last)]


def complete_arm(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an arm of a study: a variant, a fault or a method."""
    return _items(["corrected", "bugged", *fault_names(), *method_names()], incomplete)


def complete_preset(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a preset."""
    return _items(PRESETS, incomplete)


def complete_study(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a study in the runs folder that the command line names."""
    runs = Path(ctx.params.get("runs") or "runs")
    return _items(sorted(path.parent.name for path in runs.glob("*/study.json")), incomplete)


def one_of(*words: str) -> Complete:
    """Return what completes one of a few words."""
    return lambda ctx, param, incomplete: _items(words, incomplete)
