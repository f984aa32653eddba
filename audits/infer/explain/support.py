"""Which rows the distillation term gives a gradient to, and which the labels do: of answers by token, row by row."""

from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.heads import Head
from kdbench.audits.infer.explain.parts import Gradients
from kdbench.audits.infer.explain.rest import Rest
from kdbench.audits.infer.explain.rows import spread


class Support(NamedTuple):
    """The rows of one head, by what gives them a gradient."""

    lead: tuple[int, ...]
    "The shape of the logits without the classes."
    distilled: Tensor
    "By row (N,), the largest number of the distillation's gradient."
    labelled: Tensor | None
    "By row (N,), the largest number of the labels' gradient; None where no label loss reaches these logits."
    asked: tuple[Tensor, Tensor]
    "Some rows that labels reach, and the class that each is drawn to."


def support_of(head: Head, gradients: Gradients, rest: Rest) -> Support | None:
    """Return which rows of a head get a gradient; None where the labels' part of it is not known."""
    if not rest.known or gradients.of_labels is None:
        return None
    layout, none = rest.layout, torch.zeros(0, dtype=torch.long)
    if not head.labels:
        return Support(layout.lead, rest.sizes.largest, None, (none, none))
    part = gradients.of_labels.detach()
    labelled = torch.linalg.vector_norm(part, float("inf"), layout.dim, dtype=torch.float32).flatten().cpu().double()
    rows = spread((labelled > 0).nonzero().flatten(), layout.classes)
    # A cross-entropy draws to one class alone, so there its gradient is least, however the labels were handed over.
    asked = layout.take(part, rows).argmin(1).cpu() if len(rows) else none
    return Support(layout.lead, rest.sizes.largest, labelled, (rows.cpu(), asked))
