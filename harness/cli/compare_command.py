"""kdbench compare: two arms of a study over its seeds."""

from pathlib import Path

import click

from harness.cli.common import ALLOW_OPTION, JSON_OPTION, RUNS_OPTION, STUDY_OPTION, find_study, print_json, stdout


@click.command("compare")
@click.argument("a")
@click.argument("b")
@RUNS_OPTION
@STUDY_OPTION
@ALLOW_OPTION
@JSON_OPTION
def command(a: str, b: str, runs: Path, study: str | None, allowed: tuple[str, ...], as_json: bool) -> None:
    """Compare B against A: variants (corrected, bugged), faults, or methods (baseline, logit, feature).

    All comparisons that the two words name are one family (Holm). Every difference is B minus A.
    """
    from harness import compare as arms

    trials = arms.read_study(find_study(runs, study))
    entries = arms.compare_arms(trials, arms.pairs_of_arms(trials, a, b), allowed)
    if as_json:
        print_json(arms.as_object(trials.decision, entries))
        return
    from harness.cli.show import show_comparisons

    show_comparisons(stdout(), entries, trials.decision.margin_pp, f"{b} against {a}, {trials.folder.path.name}")
