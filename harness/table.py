"""Compare groups of runs in anybody's table of results: a column that says the group, one the seed, one the metric."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import stats
from harness.compare import entry
from kd.errors import InputError, unknown

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns say what."""

    group: str
    seed: str
    metric: str
    family: str | None = None
    "Within each of whose values groups are compared; all those comparisons are one family."


def read_csv(path: Path) -> list[Row]:
    """Return a CSV file's rows; a cell that is empty is None, a number is a number."""
    import pandas as pd

    if not path.is_file():
        raise InputError(f"--csv {path} does not exist")
    try:
        table = pd.read_csv(path)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"--csv {path} cannot be read as a table: {str(error).splitlines()[0]}") from error
    return rows_of(table)


def rows_of(table: Any) -> list[Row]:
    """Return a pandas table's rows, what is missing as None."""
    return [
        {str(name): None if _missing(value) else value for name, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def compare(
    rows: Sequence[Row],
    columns: Columns,
    baseline: str,
    *,
    margin: float,
    alpha: float,
    allowed: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Compare every other group with the baseline; return the entries of kdbench.compare/1, in the metric's own units.

    Raises InputError where a column is not there, a group has a seed twice, the baseline is none of the groups, or two
    groups differ in another column as well: in one that is the same within each of them and not between them.
    """
    _check(rows, columns)
    groups: dict[str, dict[str, dict[str, Row]]] = {}
    for number, row in enumerate(rows, 2):
        family = "" if columns.family is None else str(row[columns.family])
        group, seed = str(row[columns.group]), str(row[columns.seed])
        seeds = groups.setdefault(family, {}).setdefault(group, {})
        if seed in seeds:
            where = f" of {columns.family} {family}" if columns.family else ""
            raise InputError(
                f"line {number}: {columns.group} {group}{where} has {columns.seed} {seed} twice; "
                "one run a seed, or name what tells them apart: --family COLUMN"
            )
        seeds[seed] = row
    everything = {group for by_group in groups.values() for group in by_group}
    if baseline not in everything:
        raise unknown(f"--baseline ({columns.group})", baseline, sorted(everything))
    found = []
    for family, by_group in groups.items():
        if baseline not in by_group:
            raise InputError(f"{columns.family} {family} has no {columns.group} {baseline} to compare with")
        for group in by_group:
            if group == baseline:
                continue
            differing = _other_differences(by_group[baseline], by_group[group], columns)
            refused = {name: values for name, values in differing.items() if name not in allowed}
            if refused:
                listed = "; ".join(f"{name}: {a} against {b}" for name, (a, b) in refused.items())
                raise InputError(
                    f"{baseline} and {group} differ in more than {columns.group}: {listed}. Compare runs that "
                    f"are alike, or say --allow-difference {min(refused)}"
                )
            (values_a, missing_a), (values_b, missing_b) = (
                _values(by_group[name], columns.metric) for name in (baseline, group)
            )
            comparison = stats.compare(values_a, values_b, margin, alpha)
            comparison.warnings.extend(f"allowed to differ: {n}: {a} against {b}" for n, (a, b) in differing.items())
            if comparison.constant is not None:
                still = baseline if comparison.constant == "a" else group
                comparison.warnings.append(f"{still} does not vary over its seeds")
            missing = [{"arm": "a", **m} for m in missing_a] + [{"arm": "b", **m} for m in missing_b]
            if missing:
                comparison.warnings.append(f"{len(missing)} runs have no {columns.metric} and are missing from n")
            found.append((family, group, [values_a, values_b], missing, comparison))
    if not found:
        raise InputError(f"{columns.group} has one value, {baseline}; there is nothing to compare it with")
    ps = {i: row[4].welch_p for i, row in enumerate(found) if row[4].welch_p is not None}
    adjusted = dict(zip(ps, stats.holm([p for p in ps.values() if p is not None], len(found)), strict=True))
    return [
        entry(baseline, group, family, "", values, missing, comparison, adjusted.get(i), len(found), alpha)
        for i, (family, group, values, missing, comparison) in enumerate(found)
    ]


def _check(rows: Sequence[Row], columns: Columns) -> None:
    if not rows:
        raise InputError("the table has no rows")
    options = {"--group": columns.group, "--seed": columns.seed, "--metric": columns.metric, "--family": columns.family}
    for option, name in options.items():
        if name is not None and name not in rows[0]:
            raise unknown(f"column ({option})", name, list(rows[0]))
    for number, row in enumerate(rows, 2):
        for name in (columns.group, columns.seed, columns.family):
            if name is not None and row[name] is None:
                raise InputError(f"line {number}: {name} is empty")
        value = row[columns.metric]
        if value is not None and not isinstance(value, int | float):
            raise InputError(f"line {number}: {columns.metric} is {value!r}; it must be a number, or empty")


def _values(by_seed: Mapping[str, Row], metric: str) -> tuple[list[float], list[dict[str, Any]]]:
    values = [float(row[metric]) for row in by_seed.values() if row[metric] is not None and math.isfinite(row[metric])]
    lost = [seed for seed, row in by_seed.items() if row[metric] is None or not math.isfinite(row[metric])]
    return values, [{"seed": seed, "status": "no value"} for seed in lost]


def _other_differences(a: Mapping[str, Row], b: Mapping[str, Row], columns: Columns) -> dict[str, tuple[str, str]]:
    """Return the columns that each group holds still and the two hold at different values."""
    ours = (columns.group, columns.seed, columns.metric, columns.family)
    found = {}
    for name in next(iter(a.values())):
        seen = [{_plain(row.get(name)) for row in group.values()} for group in (a, b)]
        if (
            name not in ours
            and not name.startswith("metrics.")
            and all(len(values) == 1 for values in seen)
            and seen[0] != seen[1]
        ):
            found[name] = (str(*seen[0]), str(*seen[1]))
    return found


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def read_mlflow(uri: str, experiment: str, metric: str) -> list[Row]:
    """Return the runs of an MLflow experiment as rows: params.NAME, metrics.NAME and the code's version.

    A run that did not finish has no `metric`, so that it is counted as missing.
    """
    import mlflow

    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            names = sorted(e.name for e in client.search_experiments())
            raise unknown("experiment", experiment, names)
        runs: list[Any] = []
        token = None
        while token is None or token:
            page = client.search_runs([found.experiment_id], max_results=1000, page_token=token)
            runs += page
            token = page.token or ""
    except mlflow.exceptions.MlflowException as error:
        raise InputError(f"--mlflow {uri}: {str(error).splitlines()[0]}") from error
    rows: list[Row] = []
    for run in runs:
        row: dict[str, Any] = {f"params.{name}": value for name, value in run.data.params.items()}
        row |= {f"metrics.{name}": value for name, value in run.data.metrics.items()}
        row["code"] = run.data.tags.get("mlflow.source.git.commit")
        if run.info.status != "FINISHED":
            row[metric] = None
        rows.append(row)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]
