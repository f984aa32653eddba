"""Compare groups of runs in anybody's table of results: a column that says the group, one the seed, one the metric."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from kdbench.harness.analysis import stats
from kdbench.harness.analysis.family import Judged, as_family
from kdbench.harness.analysis.rows import ComparisonRow, Missing
from kdbench.kd.errors import InputError, unknown

_NO_VALUE = ("", "nan", "na", "n/a", "none", "null")
"What stands in the metric's column of a run that has none, in any case of letters."
_LARGEST = 1e150
"Beyond this the square of a value is no number."


class Row(NamedTuple):
    """One run."""

    place: str | int
    "Its line, or as an error names it."
    cells: Mapping[str, Any]
    "By column; None where the run has no such entry."

    @property
    def where(self) -> str:
        """As an error names it."""
        return f"line {self.place}" if isinstance(self.place, int) else self.place


@dataclass(frozen=True)
class Columns:
    """Which columns say what."""

    group: str
    seed: str
    metric: str
    family: str | None = None
    "Within each of whose values groups are compared; all those comparisons are one family."


def read_csv(path: Path) -> list[Row]:
    """Return a file's rows, every cell as its text; InputError where a line does not fit the header.

    Columns are separated by commas; by tabs in a file .tsv or .tab, or with tabs and no comma in its header; or by
    semicolons, if its header has those and neither of the others.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(path, file.readline())
            file.seek(0)
            reader = csv.DictReader(file, strict=True, delimiter=delimiter)
            names = list(reader.fieldnames or [])
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise InputError(f"--csv {path}: two columns are called {twice!r}; rename one")
            if len(names) == 1:
                raise InputError(
                    f"--csv {path}: the header has one column, {names[0]!r}; separate columns by commas, tabs or "
                    "semicolons"
                )
            return list(_rows(reader, path, len(names)))
    except FileNotFoundError:
        raise InputError(f"--csv {path} does not exist") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--csv {path} cannot be read as a table: {error}") from error


def _delimiter(path: Path, header: str) -> str:
    if "\t" in header and (path.suffix.lower() in (".tsv", ".tab") or "," not in header):
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _rows(reader: "csv.DictReader[str]", path: Path, columns: int) -> Iterator[Row]:
    known: dict[str, str] = {}  # most cells of a large table repeat another; each text is kept once
    for cells in reader:
        more = cells.pop(None, None)  # where csv puts what is beyond the header
        if more is not None or None in cells.values():
            which = "more" if more is not None else "fewer"
            raise InputError(f"--csv {path}: line {reader.line_num} has {which} cells than the header's {columns}")
        yield Row(reader.line_num, {name: known.setdefault(text, text) for name, text in cells.items()})


def where(rows: Sequence[Row], conditions: Sequence[str]) -> list[Row]:
    """Return the rows that satisfy every condition, each written COLUMN=VALUE; InputError if none does."""
    for condition in conditions:
        name, equals, value = condition.partition("=")
        if not equals:
            raise InputError(f"--where {condition}: write it as COLUMN=VALUE")
        if rows and name not in rows[0].cells:
            raise unknown("column (--where)", name, list(rows[0].cells))
        kept = [row for row in rows if _text(row.cells[name]) == value]
        if rows and not kept:
            raise unknown(f"--where {name}", value, sorted({_text(row.cells[name]) for row in rows}))
        rows = kept
    return list(rows)


def compare(
    rows: Sequence[Row],
    columns: Columns,
    baseline: str,
    *,
    margin: float,
    alpha: float,
    allowed: Sequence[str] = (),
) -> list[ComparisonRow]:
    """Compare every other group with the baseline; return the entries of kdbench.compare/1, in the metric's own units.

    Raises InputError where a column is not there, a group has a seed twice, the baseline is none of the groups, or two
    groups differ in another column as well: in one that is the same within each of them and not between them. A column
    that is the same within one of them only is remarked on. `baseline` may be empty: the runs whose group is.
    """
    _check(rows, columns, baseline)
    for name in allowed:
        if name not in rows[0].cells:
            raise unknown("difference", name, rows[0].cells, "--allow-difference")
    families = _grouped(rows, columns)
    everything = {group for groups in families.values() for group in groups}
    if baseline not in everything:
        raise unknown(f"--baseline ({columns.group})", baseline, sorted(everything))
    found = []
    for family in sorted(families, key=_natural):
        groups = families[family]
        if baseline not in groups:
            raise InputError(
                f"{columns.family} {family} has no {columns.group} {_named(baseline)} to compare with; "
                f"leave it out with --where {columns.family}=VALUE"
            )
        found += [
            _judged(groups, (baseline, group), family, columns, margin, alpha, allowed)
            for group in sorted(groups.keys() - {baseline}, key=_natural)
        ]
    if not found:
        raise InputError(f"{columns.group} has one value, {baseline}; there is nothing to compare it with")
    return as_family(found, alpha)


class _Group(NamedTuple):
    """The runs of one group, by seed."""

    rows: dict[str, Row]
    values: dict[str, float | None]
    "The metric's; None where a run has none."

    def in_order(self) -> list[tuple[str, float | None]]:
        """Return seeds and values as they are read: seeds that are numbers by size, before names."""
        return sorted(self.values.items(), key=lambda item: _natural(item[0]))


def _grouped(rows: Sequence[Row], columns: Columns) -> dict[str, dict[str, _Group]]:
    """Return the rows by family and group; InputError where a group has a seed twice, or a metric is no number."""
    families: dict[str, dict[str, _Group]] = {}
    for row in rows:
        family = "" if columns.family is None else _text(row.cells[columns.family])
        name, seed = _text(row.cells[columns.group]), _text(row.cells[columns.seed])
        groups = families.setdefault(family, {})
        group = groups.get(name)
        if group is None:
            group = groups[name] = _Group({}, {})
        if seed in group.rows:
            of = f" of {columns.family} {family}" if columns.family else ""
            another = "another --family" if columns.family else "--family COLUMN"
            raise InputError(
                f"{row.where}: {columns.group} {name}{of} has {columns.seed} {seed} twice; one run a seed, or name "
                f"what tells them apart: {another}, or --where COLUMN=VALUE"
            )
        group.rows[seed], group.values[seed] = row, _number(row, columns.metric)
    return families


def _judged(
    groups: Mapping[str, _Group],
    names: tuple[str, str],
    family: str,
    columns: Columns,
    margin: float,
    alpha: float,
    allowed: Sequence[str],
) -> Judged:
    """Compare two groups of a family; what they must not differ in is an InputError."""
    a, b = names
    differing, remarks = _other_differences(groups[a].rows, groups[b].rows, columns, names)
    refused = {name: values for name, values in differing.items() if name not in allowed}
    if refused:
        listed = "; ".join(f"{name}: {x} against {y}" for name, (x, y) in refused.items())
        options = " ".join(f"--allow-difference {name}" for name in refused)
        raise InputError(
            f"{_named(a)} and {b} differ in more than {columns.group}: {listed}. Compare runs that "
            f"are alike, or say {options}"
        )
    first, second = (groups[name].in_order() for name in names)
    values = [[value for _, value in group if value is not None] for group in (first, second)]
    comparison = stats.compare(values[0], values[1], margin, alpha)
    comparison.warnings.extend(f"allowed to differ: {n}: {x} against {y}" for n, (x, y) in differing.items())
    comparison.warnings.extend(remarks)
    if comparison.constant is not None:
        still = a if comparison.constant == "a" else b
        comparison.warnings.append(f"{_named(still)} does not vary over its seeds")
    missing = [*_missing("a", first), *_missing("b", second)]
    if missing:
        comparison.warnings.append(f"{len(missing)} runs have no {columns.metric} and are missing from n")
    return Judged(_named(a), b, family, "", values, missing, comparison)


def _check(rows: Sequence[Row], columns: Columns, baseline: str) -> None:
    if not rows:
        raise InputError("the table has no rows")
    options = {"--group": columns.group, "--seed": columns.seed, "--metric": columns.metric, "--family": columns.family}
    for option, name in options.items():
        if name is not None and name not in rows[0].cells:
            raise unknown(f"column ({option})", name, list(rows[0].cells))
    named = {option: name for option, name in options.items() if name is not None and option != "--metric"}
    if not baseline:
        del named["--group"]
    for row in rows:
        for option, name in named.items():
            if _text(row.cells[name]):
                continue
            mend = "; are these runs the baseline? --baseline ''" if option == "--group" else ""
            raise InputError(f"{row.where}: {name} is empty{mend}")


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _named(group: str) -> str:
    return group or "(empty)"


def _natural(text: str) -> tuple[int, float, str]:
    """Order numbers by size, before names."""
    number = _parsed(text)
    return (0, number, text) if isinstance(number, float) and math.isfinite(number) else (1, 0.0, text)


def _parsed(value: Any) -> float | str:
    """Return a number where the text is one: 0.10 and .1 are one setting. A nan, which equals nothing, stays text."""
    text = _text(value)
    try:
        number = float(text)
    except ValueError:
        return text
    return text if math.isnan(number) else number


def _number(row: Row, metric: str) -> float | None:
    """Return the metric's value; None where there is none, or it is infinite or no number."""
    text = _text(row.cells[metric])
    if text.lower() in _NO_VALUE:
        return None
    value = _parsed(text)
    if isinstance(value, str):
        hint = ", with a point before its decimals" if "," in text else ""
        raise InputError(f"{row.where}: {metric} is {text!r}; it must be a number{hint}, or empty")
    if not math.isfinite(value):
        return None
    if abs(value) > _LARGEST:
        raise InputError(f"{row.where}: {metric} is {text}, which is too large to be squared")
    return value


def _missing(name: Literal["a", "b"], group: Sequence[tuple[str, float | None]]) -> list[Missing]:
    return [Missing(name, seed, "no value") for seed, value in group if value is None]


def _other_differences(
    a: Mapping[str, Row], b: Mapping[str, Row], columns: Columns, names: tuple[str, str]
) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Return the columns that each group holds still and the two hold at different values; and what else is suspect.

    That is a column which one group holds still and the other sets at several values, repeated as a setting's are, and
    seeds of which one group alone has a run.
    """
    ours = (columns.group, columns.seed, columns.metric, columns.family)
    found, remarks = {}, []
    for name in next(iter(a.values())).cells:
        if name in ours or name.startswith(("metrics.", "tags.")):
            continue
        cells = [dict.fromkeys(row.cells[name] for row in group.values()) for group in (a, b)]
        seen = [{_parsed(value): _text(value) for value in different} for different in cells]
        if seen[0].keys() == seen[1].keys():
            continue
        sizes = [len(values) for values in seen]
        if sizes == [1, 1]:
            found[name] = (_named(*seen[0].values()), _named(*seen[1].values()))
        elif min(sizes) == 1 and any(1 < n <= (len(g) + 1) / 2 for n, g in zip(sizes, (a, b), strict=True)):
            said = [
                f"{' or '.join(map(_named, sorted(values.values(), key=_natural)))} in {_named(group)}"
                for values, group in zip(seen, names, strict=True)
            ]
            remarks.append(f"{name} is {said[0]}, and {said[1]}: these runs may differ in more than {columns.group}")
    if a.keys() & b.keys():  # where none is shared, each group has seeds of its own
        for group, other, name in ((a, b, names[1]), (b, a, names[0])):
            if lacking := sorted(group.keys() - other.keys(), key=_natural):
                remarks.append(f"{_named(name)} has no run of {columns.seed} {', '.join(lacking)}")
    return found, remarks


def read_mlflow(uri: str, experiment: str, metric: str) -> list[Row]:
    """Return the runs of an MLflow experiment: params.NAME, metrics.NAME, tags.NAME, and the code's and data's version.

    A run that did not finish has no `metric`, so that it is counted as missing. InputError where the database is not
    there (MLflow would make one), the server does not answer, or there is no such experiment.
    """
    scheme, path = urlsplit(uri).scheme, uri.removeprefix("sqlite:///").removeprefix("file://")
    if scheme in ("", "file", "sqlite") and uri != "databricks" and not Path(path).exists():
        raise InputError(f"--mlflow {uri}: {path} does not exist")
    import mlflow

    from kdbench.harness.records import tracking  # noqa: F401  # first: MLflow is to say at once that a server is down

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
    rows = []
    for run in runs:
        cells: dict[str, Any] = {f"params.{name}": value for name, value in run.data.params.items()}
        cells |= {f"metrics.{name}": value for name, value in run.data.metrics.items()}
        cells |= {f"tags.{name}": value for name, value in run.data.tags.items() if not name.startswith("mlflow.")}
        cells["code"] = run.data.tags.get("mlflow.source.git.commit", run.data.tags.get("git_commit"))
        data = [f"{used.dataset.name} {used.dataset.digest}" for used in run.inputs.dataset_inputs]
        cells["data"] = ", ".join(sorted(data)) or None
        if run.info.status != "FINISHED":
            cells[metric] = None
        rows.append(Row(f"run {run.info.run_name or run.info.run_id}", cells))
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    return [Row(row.where, {name: row.cells.get(name) for name in columns}) for row in rows]
