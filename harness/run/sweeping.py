"""What dead runs left in a study: temporary files, the leases and the checkpoints of trials that are finished."""

import shutil

from kdbench.harness.records import temporaries
from kdbench.harness.records.lease import is_held, outlived
from kdbench.harness.records.record import FINAL, Folder, StudyFolder
from kdbench.kd.errors import InputError


def sweep(study: StudyFolder) -> int:
    """Remove what nobody needs any more from a study's folders; return how many things that were.

    Nothing of a trial is touched that a living process has the lease of, and no temporary file of a living process.
    """
    places = (study.path, study.path / "weights", *study.answers.glob("*/"))
    count = sum(temporaries.sweep(place) for place in places if place.is_dir())
    for place in (*(study.path / "trials").glob("*/"), *(study.path / "again").glob("*/")):
        count += temporaries.sweep(place)
        checkpoint = place / "checkpoint"
        folder = Folder(place)
        leases = outlived(folder)
        if not (leases or checkpoint.is_dir()) or is_held(folder) or not _is_final(folder):
            continue
        for path in leases:
            path.unlink(missing_ok=True)
        count += len(leases) + checkpoint.is_dir()
        shutil.rmtree(checkpoint, ignore_errors=True)
    return count


def _is_final(folder: Folder) -> bool:
    try:
        result = folder.result()
    except InputError:  # whoever reads the study says what is wrong with it
        return False
    return result is not None and result.status in FINAL
