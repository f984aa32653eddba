"""From where on each place of a text may look back, as the masks say that a network is handed."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kdbench.audits.infer.layers import descendants
from kdbench.audits.infer.words import are_words
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.windows import ModuleCall, RawWindow
from kdbench.audits.trace import Inputs

_FORBIDS = -1e3
"What is added to a score that a mask forbids is this or less."
_FEWEST = 4
"Places of all texts that must look at other words: one or two may be a matter of where a text begins."


def other_context(raw: RawWindow, students: list[ModuleCall], teachers: list[ModuleCall]) -> Inputs | None:
    """Say how many places of one text see other words before them in the teacher than in the student.

    None where they see the same, where masks cannot be read, and where one network looks a fixed number of words back,
    as it may be made to.
    """
    for s in students:
        for t in teachers:
            ids = next((x for x in s.given if are_words(x)), None)
            if ids is None or not any(x.shape == ids.shape and torch.equal(x, ids.to(x.device)) for x in t.given):
                continue
            mine, its = (_first_seen(raw, call, ids) for call in (s, t))
            if mine is None or its is None:
                continue
            real = _told_padding(raw, s, ids) & _told_padding(raw, t, ids)
            more, fewer = (its < mine) & real, (its > mine) & real
            if int((more | fewer).sum()) < _FEWEST or not (_are_beginnings(mine, real) and _are_beginnings(its, real)):
                continue
            whose, by = ("teacher", more) if int(more.sum()) >= int(fewer.sum()) else ("student", fewer)
            other = "student" if whose == "teacher" else "teacher"
            return Inputs(
                "context",
                f"at {int(by.sum())} of {int(real.sum())} places the {whose} looks at padding or at other texts before "
                f"its own, which the {other}'s mask leaves out",
            )
    return None


def looks_behind(raw: RawWindow, students: list[ModuleCall], teachers: list[ModuleCall]) -> Inputs | None:
    """Say how many texts end in padding that the teacher looks at, where a mask keeps the student from it.

    Both are of one class, one text is shown to both, and only the student is handed the mask; the masks that layers of
    the student are handed let a place look ahead. None where the masks of layers cannot be read: of a network that
    looks back alone, padding behind a text is nothing to it.
    """
    for s in students:
        for t in teachers:
            ids = next((x for x in s.given if are_words(x)), None)
            if ids is None or type(s.module) is not type(t.module):
                continue
            if not any(x.shape == ids.shape and torch.equal(x, ids.to(x.device)) for x in t.given):
                continue
            told = _told_padding(raw, s, ids)
            padded = int((~told[:, -1]).sum())
            handed = any(x.shape == ids.shape and is_readable(x) and _is_mask(x) for x in t.given)
            if padded < _FEWEST or handed or not _looks_ahead(raw, s, told) or _hides(raw, t, told):
                continue
            return Inputs(
                "context",
                f"{padded} of {len(ids)} texts end in padding: the teacher, which is handed no mask, looks at it, and "
                "the student's mask leaves it out",
            )
    return None


def _layer_masks(raw: RawWindow, call: ModuleCall, told: Tensor) -> Iterator[Tensor]:
    """Yield which places may be looked at (B, Q, L) by the masks that layers below a call are handed."""
    for value in (t for c in descendants(raw, [call]) for t in c.given if t.ndim == 4):
        if value.shape[0] not in (1, len(told)) or value.shape[3] != told.shape[1] or not is_readable(value):
            continue
        if value.dtype == torch.bool or (value.is_floating_point() and float(value.min()) <= _FORBIDS):
            allowed = value if value.dtype == torch.bool else value > _FORBIDS
            yield allowed.any(1).cpu()


def _looks_ahead(raw: RawWindow, call: ModuleCall, told: Tensor) -> bool:
    """Say whether layers of a network are kept from the padding, and the first place of a text may see its last."""
    last = told.int().sum(1) - 1
    for allowed in _layer_masks(raw, call, told):
        if allowed.shape[0] == len(told) and not bool((allowed.any(1) & ~told).any()):
            ahead = allowed[torch.arange(len(told)), 0, last]
            if bool(ahead[last > 0].all()):
                return True
    return False


def _hides(raw: RawWindow, call: ModuleCall, told: Tensor) -> bool:
    """Say whether a layer of a network is kept from any of the padding."""
    return any(bool((~allowed.any(1) & ~told).any()) for allowed in _layer_masks(raw, call, told))


def _first_seen(raw: RawWindow, call: ModuleCall, ids: Tensor) -> Tensor | None:
    """Return the first place (B, L) that each place looks at; None where that cannot be read."""
    seen: Tensor | None = None
    for mask in _square(descendants(raw, [call]), ids):
        allowed = mask if mask.dtype == torch.bool else mask > _FORBIDS
        first = allowed.any(1).int().argmax(2).cpu().expand(ids.shape)
        seen = first if seen is None else torch.minimum(seen, first)
    if seen is not None:
        return seen
    told = _told_padding(raw, call, ids)
    if not all(_tells_no_more(value, ids, told) for value in call.given):
        return None
    return told.int().argmax(1, keepdim=True).expand(ids.shape)


def _square(calls: list[ModuleCall], ids: Tensor) -> list[Tensor]:
    """Return the masks of each place against each (B, H, L, L) that these calls were handed, each once."""
    found: list[Tensor] = []
    for value in (t for c in calls for t in c.given if t.ndim == 4 and t.shape[2:] == (ids.shape[1],) * 2):
        if value.shape[0] not in (1, len(ids)) or not is_readable(value) or any(value is t for t in found):
            continue
        if value.dtype == torch.bool or (value.is_floating_point() and float(value.min()) <= _FORBIDS):
            found.append(value)
    return found


def _tells_no_more(value: Tensor, ids: Tensor, told: Tensor) -> bool:
    """Say whether an argument is the words, their labels, a mask of padding, or their places counted once."""
    if value.shape != ids.shape or not is_readable(value):
        return False
    own = value.detach().cpu()
    if _is_mask(own) or bool((own < 0).any()) or torch.equal(own, ids.cpu().to(own.dtype)):
        return True
    onward = (own[:, 1:] - own[:, :-1])[told[:, 1:] & told[:, :-1]]
    return not own.is_floating_point() and bool((onward >= 0).all())


def _is_mask(value: Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all())


def _told_padding(raw: RawWindow, call: ModuleCall, ids: Tensor) -> Tensor:
    """Return which places (B, L) a network is told are words: all where it is told nothing."""
    # What an embedding is asked for is no mask: segments are 0 and 1 too.
    tables = [c for c in descendants(raw, [call]) if isinstance(c.module, nn.Embedding)]
    for value in call.given:
        if any(given is value for c in tables for given in c.given):
            continue
        if value.shape == ids.shape and is_readable(value) and _is_mask(value) and not bool((value == 0).all(1).any()):
            return value.detach().cpu().bool()
    return torch.ones(ids.shape, dtype=torch.bool)


def _are_beginnings(first: Tensor, real: Tensor) -> bool:
    """Say whether places look back to where a text begins: from one to the next that stays, or is the place itself."""
    here = torch.arange(first.shape[1]).expand_as(first)
    stays = first[:, 1:] == first[:, :-1]
    begins = first[:, 1:] == here[:, 1:]
    both = real[:, 1:] & real[:, :-1]
    return bool((stays | begins | ~both).all())
