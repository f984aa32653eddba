"""kdbench verify: whether a study's files are what kdbench wrote."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import rich_click as click
from rich.markup import escape

from kdbench.harness.cli.common import (
    JSON_OPTION,
    METHOD_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    named_options,
    print_json,
    stdout,
    studies,
)
from kdbench.harness.cli.help import RECORDS, explained
from kdbench.harness.options import one_line
from kdbench.kd.errors import InputError

if TYPE_CHECKING:
    from kdbench.harness.analysis.verify import Verified


@explained(
    "verify",
    examples=[
        ("check the studies in the folder runs", "kdbench verify"),
        ("check an archive, and who signed it", "kdbench verify quick.zip --signed-by alice.pub"),
        ("check one study of another folder, as JSON", "kdbench verify --runs results --study quick-digits --json"),
    ],
)
@click.argument("archive", required=False, type=click.Path(path_type=Path), metavar="[ARCHIVE]")
@RUNS_OPTION
@STUDY_OPTION
@click.option(
    "--signed-by",
    type=click.Path(path_type=Path),
    metavar="KEYS",
    panel=RECORDS,
    help="Check that one of these public keys of OpenSSH signed the archive.",
)
@METHOD_OPTION
@JSON_OPTION
@click.pass_context
def command(
    ctx: click.Context, archive: Path | None, runs: Path, study: str | None, signed_by: Path | None, as_json: bool
) -> int:
    """Check that nobody changed a study's files: records, curves, weights and tables.

    The studies are those of the runs folder, or the one in an ARCHIVE that `kdbench bundle` packed.

    Each file is compared with the digest that was written beside it, and with the other files: a score with its
    curve, results.csv with the records, a teacher with the students that learned from it. Who changes a file and its
    digest as well is not seen here; `kdbench reproduce --trials N` trains some of the study again and compares.

    Exit codes: 0 if everything is as it was written; 1 if not; 2 for bad input.
    """
    given = named_options(ctx)
    from kdbench.harness.analysis.verify import VerifyObject, verify

    if archive is None and signed_by is not None:
        raise InputError("--signed-by goes with an archive: kdbench verify ARCHIVE --signed-by KEYS")
    if archive is not None:
        foreign = next((given[name] for name in ("runs", "study") if name in given), None)
        if foreign is not None:
            raise InputError(f"{foreign} goes with studies of a runs folder, not with an archive; leave one out")
        signer, found = _of_archive(archive, signed_by)
    else:
        signer = None
        found = [verify(find_study(runs, name)) for name in ([study] if study is not None else studies(runs))]
    whole = not any(one.problems for one in found)
    if as_json:
        print_json(asdict(VerifyObject("kdbench.verify/1", whole, found, signer)))
        return 0 if whole else 1
    console = stdout()
    if signer is not None:
        console.print(escape(f"{archive}: signed by {signer}"), soft_wrap=True)
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


def _of_archive(archive: Path, signed_by: Path | None) -> "tuple[str | None, list[Verified]]":
    """Return who signed an archive, and what is wrong in it; one that cannot be unpacked is an InputError."""
    import tempfile

    from kdbench.harness.analysis.verify import verify
    from kdbench.harness.archive.signing import check
    from kdbench.harness.archive.unpacking import unpack

    if not archive.exists():
        raise InputError(f"{archive} does not exist; name an archive that kdbench bundle wrote")
    signer = check(archive, signed_by) if signed_by is not None else None
    with tempfile.TemporaryDirectory(prefix="kdbench-") as place:
        return signer, [verify(unpack(archive, Path(place), lambda files: None).study.folder)]
