"""kdbench compare: two arms of a study over its seeds, or groups of anybody's runs."""

from pathlib import Path
from typing import Any

import click

from kdbench.harness.cli.common import (
    ALLOW_OPTION,
    FAULTS_OPTION,
    JSON_OPTION,
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    alpha_option,
    find_study,
    finite,
    named_options,
    print_json,
    stdout,
)
from kdbench.kd.errors import InputError


@click.command("compare")
@click.argument("a", required=False)
@click.argument("b", required=False)
@RUNS_OPTION
@STUDY_OPTION
@FAULTS_OPTION
@METHOD_OPTION
@ALLOW_OPTION
@click.option(
    "--csv",
    "csv",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="CSV or TSV file with one run a line, instead of a study.",
)
@click.option("--mlflow", "uri", metavar="URI", help="MLflow server or database with runs, instead of a study.")
@click.option("--experiment", metavar="NAME", help="With --mlflow: which experiment.")
@click.option("--group", metavar="COLUMN", help="Column that says a run's group.")
@click.option("--baseline", metavar="NAME", help="Group that every other group is compared with.")
@click.option("--seed", metavar="COLUMN", help="Column that tells a group's runs apart.")
@click.option("--metric", metavar="COLUMN", help="Column with the metric that is compared.")
@click.option("--family", metavar="COLUMN", help="Column of settings; groups are compared within each of its values.")
@click.option("--where", "conditions", multiple=True, metavar="COLUMN=VALUE", help="Only these runs; may be repeated.")
@click.option(
    "--margin",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    help="Differences smaller than this do not matter, in the metric's units.",
)
@alpha_option("Significance level of the table's family of comparisons; a study declares its own.")
@JSON_OPTION
@click.pass_context
def command(
    ctx: click.Context,
    a: str | None,
    b: str | None,
    runs: Path,
    study: str | None,
    allowed: tuple[str, ...],
    csv: Path | None,
    uri: str | None,
    as_json: bool,
    **table: Any,
) -> None:
    """Compare B against A: variants (corrected, bugged), faults, or methods.

    Every difference is B minus A. p is always adjusted for the whole family that the study declared: every bugged arm
    against its corrected one, or every method against its baseline.

    With --csv or --mlflow leave A and B out. Every group of the table is compared with the baseline:

      kdbench compare --csv runs.csv --group method --baseline plain --seed seed --metric accuracy --margin 0.5
    """
    given = named_options(ctx)
    if csv is not None or uri is not None:
        if a is not None:
            raise InputError(f"{a}: arms of a study are not named beside --csv or --mlflow; name groups with --group")
        foreign = next((given[name] for name in ("runs", "study") if name in given), None)
        if foreign is not None:
            raise InputError(f"{foreign} goes with arms of a study, not with --csv or --mlflow; leave it out")
        _compare_table(csv, uri, allowed, as_json, **table)
        return
    of_tables = next((given[name] for name in table if name in given), None)
    if of_tables is not None:
        raise InputError(
            f"{of_tables} goes with --csv or --mlflow; arms of a study are named (kdbench compare A B), and how to "
            "decide was declared with it"
        )
    if a is None or b is None:
        raise InputError("name two arms (kdbench compare corrected bugged), or a table of runs with --csv")
    from kdbench.harness.analysis import compare
    from kdbench.harness.analysis.study_table import read_study

    trials = read_study(find_study(runs, study))
    entries, family = compare.compare_within_family(trials, compare.pairs_of_arms(trials, a, b), allowed)
    if as_json:
        print_json(compare.as_object(trials.decision, entries, family))
        return
    from kdbench.harness.cli.comparisons import conclude, show_comparisons, show_groups

    console, margin = stdout(), trials.decision.margin_pp
    show_groups(console, entries)
    show_comparisons(console, entries, margin, f"{b} against {a}, {trials.folder.path.name}", family)
    conclude(console, entries, margin, family)


def _compare_table(
    csv: Path | None,
    uri: str | None,
    allowed: tuple[str, ...],
    as_json: bool,
    *,
    experiment: str | None,
    group: str | None,
    baseline: str | None,
    seed: str | None,
    metric: str | None,
    family: str | None,
    margin: float | None,
    alpha: float,
    conditions: tuple[str, ...],
) -> None:
    from kdbench.harness.analysis import external_runs as table

    if csv is not None and uri is not None:
        raise InputError("--csv and --mlflow are two tables; name one")
    if csv is not None and experiment is not None:
        raise InputError("--experiment goes with --mlflow, not with --csv; leave it out")
    if csv is None and experiment is None:
        raise InputError("--experiment: say which experiment of the MLflow server")
    rows = table.read_csv(csv) if csv is not None else None
    if group is None or baseline is None or seed is None or metric is None:
        names = {"--group": group, "--baseline": baseline, "--seed": seed, "--metric": metric}
        missing = ", ".join(name for name, value in names.items() if value is None)
        have = f"; {csv.name} has the columns {', '.join(rows[0].cells)}" if csv is not None and rows else ""
        raise InputError(
            f"{missing}: say which columns hold group, seed and metric, and which group is the baseline{have}"
        )
    if margin is None:
        raise InputError("--margin: say which differences do not matter, in the metric's units and before you look")
    if rows is None:
        rows = table.read_mlflow(str(uri), str(experiment), metric)
    columns = table.Columns(group, seed, metric, family)
    entries = table.compare(
        table.where(rows, conditions), columns, baseline, margin=margin, alpha=alpha, allowed=allowed
    )
    if as_json:
        print_json(
            {
                "schema": "kdbench.compare/1",
                "metric": metric,
                "alpha": alpha,
                "margin_pp": margin,
                "family": len(entries),
                "comparisons": [entry.as_json() for entry in entries],
            }
        )
        return
    from kdbench.harness.cli.comparisons import conclude, show_comparisons, show_groups

    where = csv.name if csv is not None else experiment
    console, title = stdout(), f"{metric} of every {group} against {entries[0].a}, {where}"
    pair = family or "pair"
    show_groups(console, entries, unit="", pair=pair, group=group)
    show_comparisons(console, entries, margin, title, unit="", pair=pair, group=group)
    conclude(console, entries, margin, unit="")
