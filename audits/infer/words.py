"""What a language model is shown: the numbers of its words, and which of them are padding."""

from collections import Counter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.layers import descendants
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.windows import ModuleCall, RawWindow

_LEAST_RUN, _LEAST_LENGTHS = 3, 2
"""Padding that no mask tells of: words alike at the end of a text that are at least so many, and as many different
lengths of text; a word said twice is none."""

_COUNTING = 0.9
"Part of the steps upwards that are by one where whole numbers count: words of a text go on so by chance alone."

How = Literal["attention mask", "labels"]


class Shown(NamedTuple):
    """One batch of texts."""

    ids: Tensor
    "Numbers of words (B, L)."
    padding: Tensor | None
    "Which are padding (B, L); None where no mask says so."


def shown_in(raw: RawWindow, call: int | None) -> Shown | None:
    """Return the texts that were shown for the answer of a call; None where these were none, or several.

    They are what the call, or one around it, was given. Where that is nothing, as where the head is called by itself,
    they are what all networks in the window were shown, if that is one batch.
    """
    reached = [c for c in raw.calls if raw.root.calls >> c.index & 1 and not c.fed.params]
    around = _around(raw, call)
    own = [c for c in around if any(map(are_words, c.given))]
    below = descendants(raw, own[-1:]) if own else reached
    texts: list[Tensor] = []
    for value in (t.detach().cpu() for c in below for t in c.given if are_words(t)):
        if not any(_are_the_same(value, t) for t in texts):
            texts.append(value)
    if len(texts) != 1:
        return None  # an encoder's and a decoder's, or two batches
    (ids,) = texts
    same = [
        c for c in reached if any(t.shape == ids.shape and are_words(t) and torch.equal(t.cpu(), ids) for t in c.given)
    ]
    return Shown(ids, _masked(ids, [*same, *descendants(raw, same)]))


def _are_the_same(a: Tensor, b: Tensor) -> bool:
    """Say whether two batches hold the same texts, if in another order: a network may sort them by their lengths."""
    if a.shape != b.shape:
        return False
    return torch.equal(a, b) or Counter(row_keys(a)) == Counter(row_keys(b))


def _around(raw: RawWindow, call: int | None) -> list[ModuleCall]:
    """Return a call and those that it was made within, the innermost first."""
    by_index = {c.index: c for c in raw.calls}
    found: list[ModuleCall] = []
    while call is not None and call in by_index:
        found.append(by_index[call])
        call = by_index[call].parent
    return found


def are_words(value: Tensor) -> bool:
    """Say whether a tensor (B, L) names words by their numbers."""
    if value.ndim != 2 or value.dtype not in (torch.long, torch.int) or min(value.shape) < 1 or value.shape[1] < 2:
        return False
    if not is_readable(value) or not bool((value >= 0).all()) or not bool((value > 1).any()):
        return False
    return not _are_places(value)


def _are_places(value: Tensor) -> bool:
    """Say whether whole numbers count words instead of naming them: they go on by one, begin anew, or stand still."""
    onward = (value[:, 1:] - value[:, :-1]).flatten()
    onward = onward[onward > 0]
    return len(onward) == 0 or float((onward == 1).double().mean()) >= _COUNTING


def _masked(ids: Tensor, calls: list[ModuleCall]) -> Tensor | None:
    """Return which words an argument of a network says are padding.

    Arguments of zeros and ones may be many things, as which of two texts a word is of. Where a mask is zero, or where
    it is one, there is one and the same word, and nothing but more of it up to the end of the text, or up to its
    beginning.
    """
    for value in (t for c in calls for t in c.given if t.shape == ids.shape and is_readable(t)):
        mask = value.detach().cpu()
        if not bool(((mask == 0) | (mask == 1)).all()):
            continue
        for padding in (mask == 0, mask == 1):
            if not bool(padding.any()) or bool(padding.all(1).any()):
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
