"""kdbench bundle: a study in one archive."""

from pathlib import Path

import click
from rich.markup import escape

from kdbench.harness.cli.common import (
    FAULTS_OPTION,
    METHOD_OPTION,
    MODEL_OPTION,
    RUNS_OPTION,
    STUDY_OPTION,
    find_study,
    stderr,
    stdout,
)


@click.command("bundle")
@RUNS_OPTION
@STUDY_OPTION
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE.zip|FILE.tar.gz",
    help="Default: the study's name, and .zip.",
)
@click.option("--weights", is_flag=True, help="With the selected weights of every trial.")
def command(runs: Path, study: str | None, output: Path | None, weights: bool) -> None:
    """Pack a study so that another machine reproduces it: kdbench reproduce FILE.

    The archive holds the records, exact versions, the digest of the data, and a page in plain words. It holds no image,
    no absolute path, and weights only if asked to. An unchanged study gives the same bytes.
    """
    from kdbench.harness.archive.bundle import pack

    folder = find_study(runs, study)
    written = pack(folder, output if output is not None else Path(f"{folder.path.name}.zip"), weights)
    for remark in written.remarks:
        stderr().print(f"note: {escape(remark)}", soft_wrap=True)
    size = written.path.stat().st_size / 1e6
    what = f"{written.trials} trials, {written.files} files, {size:.1f} MB"
    stdout().print(f"{escape(str(written.path))}: {what}, SHA-256 {written.sha256}", soft_wrap=True)
