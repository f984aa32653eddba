"""Property checks: a function of a training is called on made-up inputs and held to a rule; nothing is trained.

    finding = kdbench.audits.laws.check_weighting(my_loss)
    assert finding.status == "pass", finding.message

Each check calls a function of yours and returns a :class:`audits.finding.Finding`. If your function raises, or returns
what cannot be judged, the finding has status `error`. A check has the id and name of the audit that watches for the
same in a training, if there is one. The global random states (torch, CUDA if it is in use, numpy, random) are the same
afterwards; a generator that your function owns does move.
"""

from kdbench.audits.laws.aggregation import check_aggregation, check_spread
from kdbench.audits.laws.answers import OddAnswerError
from kdbench.audits.laws.augmentation import check_augmentation, check_workers
from kdbench.audits.laws.registry import LAWS, Law, law, same_random_state
from kdbench.audits.laws.schedule import check_group_schedule, check_schedule
from kdbench.audits.laws.seeds import check_seeds
from kdbench.audits.laws.selection import check_selection
from kdbench.audits.laws.soft_loss import check_soft_loss
from kdbench.audits.laws.splits import check_held_out, check_split
from kdbench.audits.laws.weighting import check_weighting

__all__ = [
    "LAWS",
    "Law",
    "OddAnswerError",
    "check_aggregation",
    "check_augmentation",
    "check_group_schedule",
    "check_held_out",
    "check_schedule",
    "check_seeds",
    "check_selection",
    "check_soft_loss",
    "check_split",
    "check_spread",
    "check_weighting",
    "check_workers",
    "law",
    "same_random_state",
]
