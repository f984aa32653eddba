"""kdbench verify: whether a study's files are what kdbench wrote."""

from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from kdbench.harness.cli.common import (
    JSON_OPTION,
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    print_json,
    stdout,
    studies,
)
from kdbench.harness.cli.help import explained
from kdbench.harness.options import one_line


@explained(
    "verify",
    examples=[
        ("check the studies in the folder runs", "kdbench verify"),
        ("check one study of another folder, as JSON", "kdbench verify --runs results --study quick-digits --json"),
    ],
)
@RUNS_OPTION
@STUDY_OPTION
@METHOD_OPTION
@JSON_OPTION
def command(runs: Path, study: str | None, as_json: bool) -> int:
    """Check that nobody changed a study's files: records, curves, weights and tables.

    Each file is compared with the digest that was written beside it, and with the other files: a score with its
    curve, results.csv with the records, a teacher with the students that learned from it. Who changes a file and its
    digest as well is not seen here; `kdbench reproduce --trials N` trains some of the study again and compares.

    Exit codes: 0 if everything is as it was written; 1 if not; 2 for bad input.
    """
    from kdbench.harness.analysis.verify import verify

    found = [verify(find_study(runs, name)) for name in ([study] if study is not None else studies(runs))]
    whole = not any(one.problems for one in found)
    if as_json:
        print_json({"schema": "kdbench.verify/1", "whole": whole, "studies": [asdict(one) for one in found]})
        return 0 if whole else 1
    console = stdout()
    for one in found:
        counted = f"{one.records} records, {one.files} files beside them"
        if one.problems:
            console.print(f"[bold]{escape(one.study)}[/]: [red]{len(one.problems)} not as written[/] ({counted})")
        else:
            console.print(f"[bold]{escape(one.study)}[/]: as it was written ({counted})")
        for problem in one.problems:
            console.print(f"  {escape(one_line(problem.said))}", soft_wrap=True)
        if one.sealed < one.records:
            console.print(
                f"  {one.records - one.sealed} records of an older kdbench carry no digests: of these only ranges, "
                "names and agreement were checked",
                style="dim",
                soft_wrap=True,
            )
    return 0 if whole else 1
