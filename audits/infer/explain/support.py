"""Which rows the distillation term gives a gradient to, and which the labels do: of answers by token, row by row."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.heads import Head
from kdbench.audits.infer.explain.rest import Rest


class Support(NamedTuple):
    """The rows of one head, by what gives them a gradient."""

    lead: tuple[int, ...]
    "The shape of the logits without the classes."
    distilled: Tensor
    "By row (N,), the largest number of the distillation's gradient."
    labelled: Tensor | None
    "By row (N,), whether it gets any of the labels' gradient; None where no label loss reaches these logits."
    asked: tuple[Tensor, Tensor]
    "Some rows that labels reach, and the class that each is drawn to."


def support_of(head: Head, rest: Rest) -> Support | None:
    """Return which rows of a head get a gradient; None where the labels' part of it is not known."""
    if not rest.known or rest.labels is None:
        return None
    if not head.labels:
        return Support(rest.layout.lead, rest.sizes.largest, None, rest.labels.asked)
    labelled = torch.zeros(rest.layout.rows, dtype=torch.bool)
    labelled[rest.labels.rows.cpu()] = True
    return Support(rest.layout.lead, rest.sizes.largest, labelled, rest.labels.asked)
