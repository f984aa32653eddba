"""The options by which a user says what a training is meant to be."""

from collections.abc import Callable
from typing import Any

import rich_click as click

from kdbench.harness.cli.common import finite
from kdbench.harness.cli.completion import one_of

MEANT = "What the training is meant to be"
"The group of these options."

_OPTIONS = (
    click.option(
        "--max-norm",
        type=float,
        callback=finite,
        metavar="NORM",
        panel=MEANT,
        help="Gradients are to be clipped to this norm.",
    ),
    click.option(
        "--clip-scope",
        metavar="SCOPE",
        panel=MEANT,
        shell_complete=one_of("global", "per_group"),
        help="--max-norm applies to all parameters at once (global, the default) or to each group (per_group).",
    ),
    click.option(
        "--temperature",
        type=float,
        callback=finite,
        metavar="T",
        panel=MEANT,
        help="The soft targets are to have this temperature.",
    ),
    click.option(
        "--alpha",
        type=float,
        callback=finite,
        metavar="WEIGHT",
        panel=MEANT,
        help="The distillation term is to have this weight, and the label loss 1 - WEIGHT.",
    ),
    click.option(
        "--kd-weight",
        type=float,
        callback=finite,
        metavar="WEIGHT",
        panel=MEANT,
        help="The distillation term is to have this weight; nothing is said of the label loss.",
    ),
    click.option(
        "--form",
        metavar="own|decoupled",
        panel=MEANT,
        shell_complete=one_of("own", "decoupled"),
        help="The term is to have another form than T^2 KL: decoupled, or one of your own that no audit knows.",
    ),
    click.option("--student", metavar="NAME", panel=MEANT, help="Variable or class of the network that is trained."),
    click.option("--teacher", metavar="NAME", panel=MEANT, help="Variable or class of the network that teaches."),
)
NAMES = ("max_norm", "clip_scope", "temperature", "alpha", "kd_weight", "form", "student", "teacher")
"What the command is handed by them."


def meant_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
