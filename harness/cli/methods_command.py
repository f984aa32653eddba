"""kdbench methods: what can be trained, and what each method reads from a study's file."""

from typing import Any

from kdbench.harness.cli.common import JSON_OPTION, METHOD_OPTION, MODEL_OPTION, print_json, stdout
from kdbench.harness.cli.help import explained


@explained(
    "methods",
    examples=[
        ("list what there is", "kdbench methods"),
        ("list it together with a method of your own", "kdbench methods --method-file my_method.py"),
    ],
)
@METHOD_OPTION
@MODEL_OPTION
@JSON_OPTION
def command(as_json: bool) -> None:
    """List the methods with the settings that a study file may give them, and the networks for --pair."""
    from kdbench.kd.methods import METHODS
    from kdbench.kd.models import MODELS

    if as_json:
        methods = [
            {
                "name": name,
                "title": kind.title,
                "paper": kind.paper,
                "soft": kind.soft.value,
                "projectors": kind.has_projectors,
                "stages": kind.stages,
                "teacher": kind.needs_teacher,
                "settings": {word: kind.Settings.defaults().get(word) for word in kind.Settings.names()},
            }
            for name, kind in METHODS.items()
        ]
        print_json({"schema": "kdbench.methods/1", "methods": methods, "networks": [*MODELS]})
        return
    from rich.markup import escape

    from kdbench.harness.cli.tables import Column, show_table

    columns = [
        Column("method", names=True),
        Column("title", names=True),
        Column("source", wraps=True),
        Column("settings", wraps=True),
    ]
    rows = [(name, escape(kind.title), escape(kind.paper), _settings(kind.Settings)) for name, kind in METHODS.items()]
    console = stdout()
    show_table(console, columns, rows)
    console.print("\nA setting without a value has no default: a study's file names it.", markup=False)
    console.print("Joined by +, as in logit+at, they have the terms of both, each with its own weight.", markup=False)
    others = "and any classifier of torchvision or timm, as torchvision:resnet18"
    console.print(f"networks: {', '.join(MODELS)}; {others}", markup=False, soft_wrap=True)


def _settings(known: Any) -> str:
    defaults = known.defaults()
    return ", ".join(f"{name} {defaults[name]:g}" if name in defaults else name for name in known.names())
