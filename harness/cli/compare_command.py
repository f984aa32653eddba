"""kdbench compare: two arms of a study over its seeds, or groups of anybody's runs."""

from pathlib import Path
from typing import Any

import rich_click as click

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
from kdbench.harness.cli.completion import complete_arm
from kdbench.harness.cli.help import DECISION, explained
from kdbench.kd.errors import InputError

TABLE = "Runs from anywhere (instead of A and B)"
"Group of options."


@explained(
    "compare",
    examples=[
        ("compare the bugged arms of a study with the corrected ones", "kdbench compare corrected bugged"),
        ("compare two methods of one of several studies", "kdbench compare baseline logit --study quick-digits"),
        (
            "compare groups of runs in a table",
            "kdbench compare --csv runs.csv --group method --baseline plain \\\n"
            "    --seed seed --metric accuracy --margin 0.5",
        ),
        (
            "compare runs of an MLflow server",
            "kdbench compare --mlflow http://127.0.0.1:5000 --experiment distil \\\n"
            "    --group method --baseline plain --seed seed --metric accuracy --margin 0.5",
        ),
    ],
)
@click.argument("a", required=False, shell_complete=complete_arm)
@click.argument("b", required=False, shell_complete=complete_arm)
@RUNS_OPTION
@STUDY_OPTION
@click.option(
    "--csv",
    "csv",
    type=click.Path(path_type=Path),
    metavar="FILE",
    panel=TABLE,
    help="Compare the runs in this CSV or TSV file, one run per line.",
)
@click.option("--mlflow", "uri", metavar="URI", panel=TABLE, help="Compare runs of this MLflow server or database.")
@click.option("--experiment", metavar="NAME", panel=TABLE, help="Choose the experiment of --mlflow.")
@click.option("--group", metavar="COLUMN", panel=TABLE, help="Column that says which group a run belongs to.")
@click.option("--baseline", metavar="NAME", panel=TABLE, help="Group that the others are compared with.")
@click.option("--seed", metavar="COLUMN", panel=TABLE, help="Column that tells the runs of a group apart.")
@click.option("--metric", metavar="COLUMN", panel=TABLE, help="Column of the score that is compared.")
@click.option(
    "--family", metavar="COLUMN", panel=TABLE, help="Compare groups within each value of this column, not across."
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="COLUMN=VALUE",
    panel=TABLE,
    help="Use only runs with this value; may be repeated.",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, min_open=True),
    callback=finite,
    metavar="SIZE",
    panel=DECISION,
    help="Ignore differences smaller than this, in the metric's units. Needed for a table; a study has its own.",
)
@alpha_option("Significance level, shared by the comparisons of a table; a study has its own.", DECISION)
@ALLOW_OPTION
@FAULTS_OPTION
@METHOD_OPTION
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
    """Compare arm B with arm A of a study: corrected, bugged, the name of a fault, or a method.

    Every difference is B minus A. The p values are adjusted for the whole family that the study declared, however few
    comparisons are shown: each bugged arm against its corrected one, or each method against the baseline.

    With --csv or --mlflow, leave out A and B: every group of that table is compared with its baseline.
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
    from kdbench.harness.analysis.best import best_of_pairs
    from kdbench.harness.analysis.compared import Compared
    from kdbench.harness.analysis.over_pairs import over_pairs
    from kdbench.harness.analysis.study_table import read_study

    trials = read_study(find_study(runs, study))
    entries, family = compare.compare_within_family(trials, compare.pairs_of_arms(trials, a, b), allowed)
    if as_json:
        decision = trials.decision
        found = Compared(decision.metric, decision.alpha, decision.margin_pp, family, entries)
        print_json(found.as_json())
        return
    from kdbench.harness.cli.comparisons import (
        conclude,
        show_best,
        show_comparisons,
        show_groups,
        show_over_pairs,
        shown,
    )

    console, margin, entries = stdout(), trials.decision.margin_pp, shown(entries)
    show_groups(console, entries)
    show_comparisons(console, entries, margin, f"{b} against {a}, {trials.folder.path.name}", family)
    if entries[0].b == entries[0].method:
        show_over_pairs(console, over_pairs(entries))
        show_best(console, best_of_pairs(entries))
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
    from kdbench.harness.analysis.best import best_of_pairs
    from kdbench.harness.analysis.compared import Compared
    from kdbench.harness.analysis.over_pairs import over_pairs

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
        print_json(Compared(metric, alpha, margin, len(entries), entries).as_json())
        return
    from kdbench.harness.cli.comparisons import (
        conclude,
        show_best,
        show_comparisons,
        show_groups,
        show_over_pairs,
        shown,
    )

    where, entries = csv.name if csv is not None else experiment, shown(entries)
    console, title = stdout(), f"{metric} of every {group} against {entries[0].a}, {where}"
    pair = family or "pair"
    show_groups(console, entries, unit="", pair=pair, group=group)
    show_comparisons(console, entries, margin, title, unit="", pair=pair, group=group)
    show_over_pairs(console, over_pairs(entries), "", pair)
    show_best(console, best_of_pairs(entries), named=False)
    conclude(console, entries, margin, unit="")
