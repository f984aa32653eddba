"""A teacher's answers held against labels: how often they agree, and what each class is called."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_CROSSED = 256
"Classes up to which it is counted which is called which: of more, a thousand labels hold too few of each."
_FEWEST = 5
"Labels of a class from which its commonest answer is one."
_MOST = 0.5
"Part of a class's answers beyond which one number is its name."


@dataclass(frozen=True)
class Hits:
    """The teacher's answers against the labels, counted on the device."""

    right: Tensor
    by_class: Tensor
    said: Tensor | None = None
    "How often each class was the teacher's answer."
    crossed: Tensor | None = None
    "How often what is labelled one class was called another (C, C); None where there are many classes."

    @classmethod
    def of(cls, logits: Tensor, labels: Tensor) -> "Hits":
        """Count answers (n, C) by their labels (n,); a label beyond the classes is one to ignore."""
        classes, labels = logits.shape[1], labels.to(logits.device).long()
        counts = (labels >= 0) & (labels < classes)
        labels, said = labels[counts], logits.argmax(1)[counts]
        crossed = None
        if classes <= _CROSSED:
            crossed = torch.bincount(labels * classes + said, minlength=classes * classes).reshape(classes, classes)
        by_class, answers = (torch.bincount(x, minlength=classes) for x in (labels, said))
        return cls((said == labels).sum(), by_class, answers, crossed)

    def __add__(self, other: "Hits") -> "Hits":
        """Return the counts of both, of as many classes."""
        said = None if self.said is None or other.said is None else self.said + other.said
        crossed = None if self.crossed is None or other.crossed is None else self.crossed + other.crossed
        return Hits(self.right + other.right, self.by_class + other.by_class, said, crossed)


class Renumbered(NamedTuple):
    """Classes that a teacher numbers in another way than the labels do."""

    names: dict[int, int]
    "The teacher's number for what is labelled so, where it is another one."
    right: int
    "Of the labels of these classes: how many it is right on by its own numbers,"
    wrong: int
    "by the labels',"
    n: int
    "and in all."


def renumbered(crossed: Tensor | None) -> Renumbered | None:
    """Return which classes have other numbers with the teacher; None where none has, or it cannot be told.

    Whoever takes one class for another does not take that one for the first: so most of what is labelled one class has
    one name each, no two the same, and but for one these names are labels of classes that have another name themselves.
    """
    if crossed is None:
        return None
    table = crossed.cpu()
    n, best = table.sum(1), table.argmax(1)
    named = {c: int(best[c]) for c in range(len(table)) if n[c] >= _FEWEST and table[c, best[c]] > _MOST * n[c]}
    other = {c: name for c, name in named.items() if c != name}
    moved = sum(name in other for name in other.values())
    if len({*named.values()}) < len(named) or moved < max(1, len(other) - 1):
        return None
    labels, names = list(other), list(other.values())
    right, wrong = int(table[labels, names].sum()), int(table[labels, labels].sum())
    return Renumbered(other, right, wrong, int(n[labels].sum()))
