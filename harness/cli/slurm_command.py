"""kdbench slurm: a study's jobs for a cluster's scheduler."""

from pathlib import Path

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import stdout
from kdbench.harness.cli.help import OUTPUT, explained
from kdbench.kd.errors import InputError

JOBS = "The jobs"
"A group of options."
_OWN = ("--method-file", "--model-file", "--faults")


@explained(
    "slurm",
    examples=[
        (
            "write the scripts for 32 jobs of two hours on a GPU each, and look at them",
            "kdbench slurm study.toml --array 32 --time 02:00:00 --gpus-per-task 1",
        ),
        ("hand them in as well", "kdbench slurm study.toml --array 8 --time 01:00:00 --submit"),
        (
            "with options of kdbench run behind two dashes",
            "kdbench slurm study.toml --array 8 --time 01:00:00 -- --device cuda",
        ),
    ],
)
@click.argument("study_file", metavar="STUDY.toml")
@click.argument("run_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- RUN OPTIONS]")
@click.option(
    "--array", type=click.IntRange(1, 10_000), required=True, metavar="N", panel=JOBS, help="Cut the study into N jobs."
)
@click.option("--time", required=True, metavar="TIME", panel=JOBS, help="Give each job this time, such as 02:00:00.")
@click.option(
    "--gpus-per-task", type=click.IntRange(1), metavar="N", panel=JOBS, help="Ask for so many GPUs for each job."
)
@click.option(
    "--cpus-per-task", type=click.IntRange(1), metavar="N", panel=JOBS, help="Ask for so many cores for each job."
)
@click.option(
    "--sbatch", "lines", multiple=True, metavar="OPTION", panel=JOBS, help="Add an option of sbatch; may be repeated."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("slurm"),
    show_default=True,
    metavar="DIR",
    panel=OUTPUT,
    help="Write the scripts and the logs of their jobs to this folder.",
)
@click.option("--submit", is_flag=True, panel=OUTPUT, help="Hand the jobs in.")
def command(
    study_file: str,
    run_options: tuple[str, ...],
    array: int,
    time: str,
    gpus_per_task: int | None,
    cpus_per_task: int | None,
    lines: tuple[str, ...],
    output: Path,
    submit: bool,
) -> None:
    """Write a study as jobs of Slurm: its teachers, then N shards, then the tables.

    Nothing is submitted without --submit. A job that is preempted, or whose time is up, writes its state, goes back
    into the queue, and goes on where it stopped.
    """
    from kdbench.harness.run import slurm

    _check_run([study_file, *run_options])
    jobs = slurm.Jobs(
        f"kdbench-{Path(study_file).stem}",
        [study_file, *run_options],
        Path.cwd(),
        output.resolve(),
        array,
        time,
        gpus_per_task,
        cpus_per_task,
        lines,
    )
    scripts = slurm.write(jobs)
    console = stdout()
    console.print(f"written: {escape(', '.join(str(output / path.name) for path in scripts.values()))}", soft_wrap=True)
    if submit:
        console.print(escape(slurm.submit(scripts["submit"])), soft_wrap=True)
    else:
        console.print(f"nothing is submitted; {escape(str(output / 'submit.sh'))} hands the jobs in", soft_wrap=True)


def _check_run(words: list[str]) -> None:
    """Refuse here what `kdbench run` would refuse on the cluster, as far as its command line and study file tell."""
    from kdbench.harness.cli.run_command import command as run
    from kdbench.harness.plan.preset import load_preset

    if not words[0].endswith(".toml"):
        raise InputError(f"{words[0]}: a study file ends in .toml; kdbench init writes one")
    asked = run.make_context("run", list(words), resilient_parsing=False).params
    for name in ("shard", "teachers", "scheduler"):
        if asked[name]:
            raise InputError(f"--{name} is for the scripts to say; leave it out")
    if not any(word.split("=")[0] in _OWN for word in words):  # else it may name what they hold
        load_preset(words[0])
