"""kdbench compare: two arms of a study over its seeds."""

from pathlib import Path

import click

from harness.cli.common import (
    ALLOW_OPTION,
    FAULTS_OPTION,
    JSON_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    print_json,
    stdout,
)


@click.command("compare")
@click.argument("a")
@click.argument("b")
@RUNS_OPTION
@STUDY_OPTION
@FAULTS_OPTION
@ALLOW_OPTION
@JSON_OPTION
def command(a: str, b: str, runs: Path, study: str | None, allowed: tuple[str, ...], as_json: bool) -> None:
    """Compare B against A: variants (corrected, bugged), faults, or methods (baseline, logit, feature).

    Every difference is B minus A. However few are asked for, p is adjusted for the whole family that was declared:
    every bugged arm against its corrected one, or every method against its baseline.
    """
    from harness import compare as arms

    trials = arms.read_study(find_study(runs, study))
    entries, family = arms.compare_within_family(trials, arms.pairs_of_arms(trials, a, b), allowed)
    if as_json:
        print_json(arms.as_object(trials.decision, entries, family))
        return
    from harness.cli.show import show_comparisons

    title = f"{b} against {a}, {trials.folder.path.name}"
    show_comparisons(stdout(), entries, trials.decision.margin_pp, title, family)
