"""The options that lay out a study, shared by the commands that train one."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION, RUNS_OPTION, finite

if TYPE_CHECKING:
    from kdbench.harness.plan.plan import Preset
    from kdbench.harness.study import Request

_OPTIONS = (
    click.option(
        "--preset", "preset_name", default="quick", show_default=True, metavar="quick|cifar10|paper|FILE.toml"
    ),
    click.option("--dataset", metavar="digits|cifar10|cifar100|folder", help="Instead of the preset's."),
    click.option("--data", "data_root", type=click.Path(path_type=Path), metavar="DIR", help="Where the images lie."),
    click.option("--pair", "pairs", multiple=True, metavar="TEACHER-STUDENT", help="e.g. r50-r18; may be repeated."),
    click.option("--method", "methods", multiple=True, metavar="NAME", help="See kdbench methods; may be repeated."),
    click.option("--seeds", metavar="0-2", help="Numbers and ranges."),
    click.option("--epochs", type=click.IntRange(1), help="Of the students."),
    click.option("--teacher-epochs", type=click.IntRange(1), help="Of the teachers."),
    click.option("--width", "base_width", type=click.IntRange(1), help="Channels of the first stage."),
    click.option("--train-size", type=click.IntRange(1), help="Images trained on."),
    click.option("--val-size", type=click.IntRange(1), help="Images, cut from the train set, that choose the epoch."),
    click.option("--max-norm", type=float, callback=finite, help="Bound on the gradient's norm."),
    click.option("--precision", metavar="fp32|tf32|bf16|fp16"),
    click.option("--fold-teacher", is_flag=True, default=None, help="Batch norms folded into its convolutions."),
    click.option("--compile", is_flag=True, default=None, help="Networks behind torch.compile."),
    click.option("--graphs", is_flag=True, default=None, help="Kernels in CUDA graphs: same bits, faster on a GPU."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of the processor, a trial."),
    click.option("--device", default="cpu", show_default=True, metavar="cpu|cuda"),
    click.option(
        "--workers",
        type=click.IntRange(1),
        help="Trials at a time. Default: one a core; one on a GPU; a cluster's threads.",
    ),
    click.option("--teacher-weights", type=click.Path(path_type=Path), metavar="FILE", help="A trained teacher."),
    click.option("--teacher-sha256", metavar="HEX", help="What the file's hash must be."),
    FAULTS_OPTION,
    METHOD_OPTION,
    MODEL_OPTION,
    RUNS_OPTION,
)


def study_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a study; what was asked for is read by :func:`requested`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def requested(
    asked: dict[str, Any], arms: Sequence[str | None], *, named_fault: bool, controls: bool = True
) -> "Request":
    """Return the study that the options of :func:`study_options` ask for, with these faults as arms."""
    from kdbench.harness.plan.plan import load_preset
    from kdbench.harness.study import Request

    asked = dict(asked)
    taken = {name: asked.pop(name) for name in ("dataset", "data_root", "device", "workers", "threads", "runs")}
    brought = asked.pop("teacher_weights"), asked.pop("teacher_sha256")
    preset = _change(load_preset(asked.pop("preset_name")), **asked)
    if taken["data_root"] is None and taken["dataset"] in (None, preset.dataset):
        taken["data_root"] = preset.data
    taken["dataset"] = taken["dataset"] or preset.dataset
    return Request(
        preset,
        arms,
        named_fault,
        **taken,
        teacher_weights=brought[0],
        teacher_sha256=brought[1],
        command=typed(),
        controls=controls,
    )


def typed() -> str:
    """Return the command as it was typed."""
    return shlex.join(["kdbench", *sys.argv[1:]])


def _change(
    preset: "Preset",
    pairs: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: str | None,
    teacher_epochs: int | None,
    **recipe: Any,
) -> "Preset":
    """Apply the options to the preset."""
    from kdbench.harness.plan.plan import check_method, parse_seeds, split_pair

    for pair in pairs:
        split_pair(pair)
    for method in methods:
        check_method(method)
    given = {name: value for name, value in recipe.items() if value is not None}
    teacher = {**preset.teacher, **({"epochs": teacher_epochs} if teacher_epochs is not None else {})}
    return replace(
        preset,
        pairs=tuple(dict.fromkeys(pairs)) or preset.pairs,
        methods=tuple(dict.fromkeys(methods)) or preset.methods,
        seeds=parse_seeds(seeds) if seeds is not None else preset.seeds,
        recipe=replace(preset.recipe, **given),
        teacher=teacher,
    )
