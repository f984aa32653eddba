"""What a language model is shown: the numbers of its words, and which of them are padding."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.roles import Cast
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.windows import ModuleCall, RawWindow

_LEAST_RUN, _LEAST_LENGTHS = 3, 2
"""Padding that no mask tells of: words alike at the end of a text that are at least so many, and as many different
lengths of text; a word said twice is none."""

How = Literal["attention mask", "labels"]


class Shown(NamedTuple):
    """One batch of texts."""

    ids: Tensor
    "Numbers of words (B, L)."
    padding: Tensor | None
    "Which are padding (B, L); None where no mask says so."


def shown_in(raw: RawWindow, cast: Cast) -> Shown | None:
    """Return the texts that the student is shown in a window; None where it is shown none."""
    reached = [c for c in raw.calls if raw.root.calls >> c.index & 1 and not c.fed.params]
    mine = [c for g in cast.students for c in g.calls if c in reached]
    for call in [*mine, *reached]:
        ids = next((t for t in call.given if _are_words(t)), None)
        if ids is not None:
            ids = ids.detach().cpu()
            return Shown(ids, _masked(ids, [*mine, *reached]))
    return None


def _are_words(value: Tensor) -> bool:
    if value.ndim != 2 or value.dtype not in (torch.long, torch.int) or min(value.shape) < 1 or value.shape[1] < 2:
        return False
    return is_readable(value) and bool((value >= 0).all()) and bool((value > 1).any())


def _masked(ids: Tensor, calls: list[ModuleCall]) -> Tensor | None:
    """Return which words an argument of the network says are padding.

    Arguments of zeros and ones may be many things, as which of two texts a word is of. Where a mask is zero there is
    one and the same word, and nothing but more of it up to the end of the text, or up to its beginning.
    """
    for call in calls:
        for value in call.given:
            if value.shape != ids.shape or value is ids or not is_readable(value):
                continue
            mask = value.detach().cpu()
            padding = mask == 0
            if not bool(padding.any()) or not bool((padding | (mask == 1)).all()) or bool(padding.all()):
                continue
            if bool((ids[padding] == ids[padding][0]).all()) and _at_the_ends(padding):
                return padding
    return None


def _at_the_ends(padding: Tensor) -> bool:
    """Say whether what is no padding stands together in each text."""
    inside = (~padding).int()
    begins = (inside[:, 1:] > inside[:, :-1]).sum(1) + inside[:, 0]
    return bool((begins <= 1).all())


def run_of_one(ids: Tensor) -> Tensor | None:
    """Return the runs of one word at the ends (B, L), or at the beginnings, that look like padding."""
    for words in (ids, ids.flip(1)):
        last = int(words[:, -1].mode().values)
        run = (words.flip(1) == last).int().cumprod(1).flip(1).bool()
        lengths = run.sum(1)
        if int(lengths.max()) >= _LEAST_RUN and len(set(lengths.tolist())) >= _LEAST_LENGTHS:
            padding = run if words is ids else run.flip(1)
            return None if bool(padding.all(1).any()) else padding
    return None
