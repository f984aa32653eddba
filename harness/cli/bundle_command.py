"""kdbench bundle: a study in one archive."""

from pathlib import Path

import rich_click as click
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
from kdbench.harness.cli.help import OUTPUT, explained


@explained(
    "bundle",
    examples=[
        ("pack the only study in the folder runs", "kdbench bundle"),
        ("choose the study and the archive's name", "kdbench bundle --study quick-digits --output quick.tar.gz"),
        ("sign it with a key of OpenSSH, which says who packed it", "kdbench bundle --sign ~/.ssh/id_ed25519"),
        ("train it again elsewhere and compare", "kdbench reproduce quick.tar.gz"),
    ],
)
@RUNS_OPTION
@STUDY_OPTION
@FAULTS_OPTION
@METHOD_OPTION
@MODEL_OPTION
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    panel=OUTPUT,
    help="Name of the archive, which ends in .zip or .tar.gz; by default the study's name and .zip.",
)
@click.option("--weights", is_flag=True, panel=OUTPUT, help="Pack the selected weights of every trial as well.")
@click.option(
    "--sign",
    "key",
    type=click.Path(path_type=Path),
    metavar="KEY",
    panel=OUTPUT,
    help="Sign the archive with this key of OpenSSH; the signature is a file beside it, with .sig after its name.",
)
def command(runs: Path, study: str | None, output: Path | None, weights: bool, key: Path | None) -> None:
    """Pack a study into one archive, from which another machine reproduces it.

    The archive holds the records, the exact versions, a digest of the data, and a page that explains it. It holds no
    images, no absolute paths, and no weights unless you ask for them. An unchanged study gives the same bytes.
    """
    from kdbench.harness.archive.bundle import pack
    from kdbench.harness.archive.signing import sign

    folder = find_study(runs, study)
    written = pack(folder, output if output is not None else Path(f"{folder.path.name}.zip"), weights)
    for remark in written.remarks:
        stderr().print(f"note: {escape(remark)}", soft_wrap=True)
    size = written.path.stat().st_size / 1e6
    what = f"{written.trials} trials, {written.files} files, {size:.1f} MB"
    stdout().print(f"{escape(str(written.path))}: {what}, SHA-256 {written.sha256}", soft_wrap=True)
    if key is not None:
        signature = sign(written.path, key)
        stdout().print(f"{escape(str(signature))}: its signature; send both files, and your public key", soft_wrap=True)
