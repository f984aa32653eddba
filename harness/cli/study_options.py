"""The options that lay out a study, shared by the commands that train one."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from kdbench.harness.cli.common import FAULTS_OPTION, METHOD_OPTION, MODEL_OPTION, RUNS_OPTION, finite
from kdbench.harness.cli.completion import complete_method, complete_preset, one_of
from kdbench.harness.plan.outline import asked_seeds
from kdbench.kd.errors import InputError

if TYPE_CHECKING:
    from kdbench.harness.plan.preset import Preset
    from kdbench.harness.study import Request

STUDY, TRAINING, SPEED, MACHINE = "What is trained", "How it is trained", "Number format and speed", "Machine"
"Groups of options."

_OPTIONS = (
    click.option(
        "--preset",
        "preset_name",
        default="quick",
        show_default=True,
        metavar="NAME|FILE",
        panel=STUDY,
        shell_complete=complete_preset,
        help="Start from preset quick, methods, cifar10, paper, cifar100-crd or cifar100-slim, or from a study file.",
    ),
    click.option(
        "--dataset",
        metavar="NAME",
        panel=STUDY,
        shell_complete=one_of("digits", "cifar10", "cifar100", "folder"),
        help="Train on digits, cifar10, cifar100 or folder (images of your own) instead of the preset's data set.",
    ),
    click.option(
        "--data",
        "data_root",
        type=click.Path(path_type=Path),
        metavar="DIR",
        panel=STUDY,
        help="Read the images from this folder.",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(8, 1024),
        metavar="PIXELS",
        panel=STUDY,
        help="Resize the folder's images to this height and width (by default 32).",
    ),
    click.option(
        "--pair",
        "pairs",
        multiple=True,
        metavar="TEACHER-STUDENT",
        panel=STUDY,
        help="Train this pair of networks, such as r50-r18; may be repeated.",
    ),
    click.option(
        "--method",
        "methods",
        multiple=True,
        metavar="NAME",
        panel=STUDY,
        shell_complete=complete_method,
        help="Train by this method (kdbench methods lists them); may be repeated.",
    ),
    click.option(
        "--seeds",
        metavar="RANGE",
        panel=STUDY,
        help="Train with these seeds: 0-4 for five seeds, 7-7 for the seed 7 alone. A lone number is refused.",
    ),
    click.option("--epochs", type=click.IntRange(1), metavar="N", panel=TRAINING, help="Epochs of the students."),
    click.option(
        "--teacher-epochs", type=click.IntRange(1), metavar="N", panel=TRAINING, help="Epochs of the teachers."
    ),
    click.option(
        "--width",
        "base_width",
        type=click.IntRange(1),
        metavar="N",
        panel=TRAINING,
        help="Channels of the first stage of every network.",
    ),
    click.option("--train-size", type=click.IntRange(1), metavar="N", panel=TRAINING, help="Images to train on."),
    click.option(
        "--val-size",
        type=click.IntRange(1),
        metavar="N",
        panel=TRAINING,
        help="Validation images, which choose the epoch; they are cut from the train set.",
    ),
    click.option(
        "--max-norm",
        type=float,
        callback=finite,
        metavar="NORM",
        panel=TRAINING,
        help="Clip the gradients to this norm.",
    ),
    click.option(
        "--teacher-weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        panel=TRAINING,
        help="Use this trained teacher instead of training one.",
    ),
    click.option(
        "--teacher-sha256", metavar="HEX", panel=TRAINING, help="Refuse a teacher's file that has another SHA-256 hash."
    ),
    click.option(
        "--precision",
        metavar="FORMAT",
        panel=SPEED,
        shell_complete=one_of("fp32", "tf32", "bf16", "fp16"),
        help="Train in fp32, tf32, bf16 or fp16.",
    ),
    click.option(
        "--fold-teacher",
        is_flag=True,
        default=None,
        panel=SPEED,
        help="Fold the teacher's batch norms into its convolutions.",
    ),
    click.option("--compile", is_flag=True, default=None, panel=SPEED, help="Run the networks through torch.compile."),
    click.option(
        "--graphs/--no-graphs",
        default=None,
        panel=SPEED,
        help="Replay the kernels from CUDA graphs: the same bits, faster. Default on a GPU where that hides no fault.",
    ),
    click.option(
        "--device",
        default="cpu",
        show_default=True,
        metavar="NAME",
        panel=MACHINE,
        shell_complete=one_of("cpu", "cuda"),
        help="Train on cpu or cuda.",
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        metavar="N",
        panel=MACHINE,
        help="Processor threads of each trial.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        metavar="N",
        panel=MACHINE,
        help="Trials at a time; by default one a core, one on a GPU, or a cluster's threads.",
    ),
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
    from kdbench.harness.plan.preset import load_preset
    from kdbench.harness.study import Request

    asked = dict(asked)
    taken = {
        name: asked.pop(name) for name in ("dataset", "data_root", "image_size", "device", "workers", "threads", "runs")
    }
    brought = asked.pop("teacher_weights"), asked.pop("teacher_sha256")
    preset = _change(load_preset(asked.pop("preset_name")).on(taken["device"]), **asked)
    _refuse_without_teacher(preset, asked, brought[0])
    if taken["data_root"] is None and taken["dataset"] in (None, preset.dataset):
        taken["data_root"] = preset.data
        taken["image_size"] = taken["image_size"] or preset.image_size
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


def _refuse_without_teacher(preset: "Preset", asked: dict[str, Any], weights: Path | None) -> None:
    """Raise InputError for an option of the teacher's that would do nothing in this study."""
    from kdbench.kd.methods import METHODS

    if asked["teacher_epochs"] is not None and weights is not None:
        raise InputError("--teacher-epochs does nothing with --teacher-weights, which is trained; leave one out")
    if any(METHODS[method].needs_teacher for method in preset.methods):
        return
    given = {
        "--teacher-weights": weights,
        "--teacher-epochs": asked["teacher_epochs"],
        "--fold-teacher": asked["fold_teacher"],
    }
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} does nothing here: no method of this study has a teacher; leave it out")


def _change(
    preset: "Preset",
    pairs: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: str | None,
    teacher_epochs: int | None,
    **recipe: Any,
) -> "Preset":
    """Apply the options to the preset."""
    from kdbench.harness.plan.preset import check_method, split_pair

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
        seeds=asked_seeds(seeds) if seeds is not None else preset.seeds,
        recipe=replace(preset.recipe, **given),
        teacher=teacher,
    )
