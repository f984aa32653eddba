"""kdbench methods: what can be trained, and what each method reads from a study's file."""

import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from kdbench.harness.cli.common import JSON_OPTION, METHOD_OPTION, MODEL_OPTION, print_json, stdout
from kdbench.harness.cli.completion import complete_method
from kdbench.harness.cli.help import explained

if TYPE_CHECKING:
    from kdbench.kd.methods.registry import Method


@explained(
    "methods",
    examples=[
        ("list what there is", "kdbench methods"),
        ("show one method, and the settings that the presets give it", "kdbench methods dkd"),
        ("list it together with a method of your own", "kdbench methods --method-file my_method.py"),
    ],
)
@click.argument("name", required=False, metavar="[METHOD]", shell_complete=complete_method)
@METHOD_OPTION
@MODEL_OPTION
@JSON_OPTION
def command(name: str | None, as_json: bool) -> None:
    """List the methods with the settings that a study file may give them, and the networks for --pair.

    With the name of a method, show what it computes, what it reads, and what the presets set.
    """
    from kdbench.harness.plan.preset import check_method
    from kdbench.kd.methods import METHODS
    from kdbench.kd.models import MODELS

    if name is not None:
        check_method(name)
    if as_json:
        shown = [METHODS[name]] if name is not None else [*METHODS.values()]
        print_json({"schema": "kdbench.methods/1", "methods": [*map(_as_json, shown)], "networks": [*MODELS]})
    elif name is not None:
        _show(METHODS[name])
    else:
        _list()


def _as_json(kind: "type[Method]") -> dict[str, Any]:
    return {
        "name": kind.name,
        "title": kind.title,
        "paper": kind.paper,
        "soft": kind.soft.value,
        "projectors": kind.has_projectors,
        "stages": kind.stages,
        "teacher": kind.needs_teacher,
        "settings": {word: kind.Settings.defaults().get(word) for word in kind.Settings.names()},
    }


def _list() -> None:
    """Print all methods as a table, and the networks under it."""
    from rich.markup import escape

    from kdbench.harness.cli.tables import Column, show_table
    from kdbench.kd.methods import METHODS
    from kdbench.kd.models import MODELS

    columns = [
        Column("method", names=True),
        Column("title", names=True),
        Column("source", wraps=True),
        Column("settings", wraps=True),
    ]
    rows = [(name, escape(kind.title), escape(kind.paper), _settings(kind.Settings)) for name, kind in METHODS.items()]
    console = stdout()
    show_table(console, columns, rows)
    said = "A setting without a value has no default: a study's file names it (kdbench methods dkd shows the presets')."
    console.print(f"\n{said}", markup=False)
    console.print("Joined by +, as in logit+at, they have the terms of both, each with its own weight.", markup=False)
    others = "and any classifier of torchvision or timm, as torchvision:resnet18"
    console.print(f"networks: {', '.join(MODELS)}; {others}", markup=False, soft_wrap=True)


def _settings(known: Any) -> str:
    defaults = known.defaults()
    return ", ".join(f"{name} {defaults[name]:g}" if name in defaults else name for name in known.names())


def _joined(kind: "type[Method]") -> str:
    """Say what a joined method is made of: its parts' terms, and what is done to the answers that they are shown."""
    from kdbench.kd.methods import METHODS

    parts = [METHODS[name] for name in kind.name.split("+")]
    shown = [part for part in parts if part.wraps and f"{part.title} + " in kind.title]
    terms = [part for part in parts if part not in shown]
    of = " and ".join(part.title for part in terms)
    return f"The terms of {of}" + "".join(f", of answers that {part.title} changes first" for part in shown) + "."


_PARTS = {"labels": "the labels", "ids": "the images' ids", "views": "the images"}
_STAGES = {"all": "the features of every stage", "last": "the features of the last stage"}


def _show(kind: "type[Method]") -> None:
    """Print one method: its file's first lines, what it reads, and its settings beside those of the presets."""
    from kdbench.harness.cli.tables import Column, show_table

    console = stdout()
    console.print(f"[bold]{kind.name}[/]: {kind.title} ({kind.paper})\n")
    module = inspect.getmodule(kind)
    about = _joined(kind) if "+" in kind.name else None if module is None else module.__doc__
    console.print(inspect.cleandoc(about or "its file has no docstring") + "\n", markup=False)
    read = [_PARTS[part] for part in kind.needs] + ([_STAGES[kind.stages]] if kind.stages in _STAGES else [])
    if read:
        console.print(f"reads, beside the logits: {', '.join(read)}", markup=False)
    trained = "yes, in the student's optimizer and under its clip" if kind.has_projectors else "none"
    console.print(f"projectors: {trained}\n", markup=False)
    presets, defaults = _in_presets(kind.name), kind.Settings.defaults()
    columns = [Column("setting", names=True), Column("default"), *(Column(preset) for preset in presets)]
    rows = [
        (word, f"{defaults[word]:g}" if word in defaults else "-", *(f"{table[word]:g}" for table in presets.values()))
        for word in kind.Settings.names()
    ]
    show_table(console, columns, rows)
    if by_pair := [preset for preset in presets if _differs_by_pair(preset, kind.name)]:
        console.print(f"\nFor some pairs, other values stand in {' and '.join(by_pair)}.", markup=False)
    missing = [word for word in kind.Settings.names() if word not in defaults]
    if missing:
        console.print("\nA setting whose default is - must stand in a study's file, for example:", markup=False)
        first: dict[str, Any] = next(iter(presets.values()), {})
        table = f'"{kind.name}"' if "+" in kind.name else kind.name  # a bare key of TOML has no +
        lines = [f"[method.{table}]", *(f"{word} = {first.get(word, 1):g}" for word in missing)]
        console.print("\n".join(f"    {line}" for line in lines), markup=False)


def _in_presets(method: str) -> dict[str, dict[str, Any]]:
    """Return the settings that a method has in each preset that names any."""
    from kdbench.harness.plan.outline import PRESETS
    from kdbench.harness.plan.preset import load_preset
    from kdbench.kd.methods import read_settings

    presets = {name: load_preset(name) for name in PRESETS}
    named = {name: preset.named(preset.method, method) for name, preset in presets.items()}
    return {name: asdict(read_settings(method, values)) for name, values in named.items() if values}


def _differs_by_pair(preset: str, method: str) -> bool:
    from kdbench.harness.plan.preset import load_preset

    asked = load_preset(preset)
    return any(asked.named(tables, method) for tables in asked.pair.values())
