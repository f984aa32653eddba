"""Logits that a head answers piece by piece: where the rows of one piece stand in the whole sequence.

A loop that never holds all logits at once hands its head some hidden states at a time. Which ones shows in the states:
they are rows of what the body answered. The teacher's answer to the same places is what each piece should meet.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.audits.infer.explain.heads import Answer, Head
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.windows import SMALL, ModuleCall, RawWindow


class Piece(NamedTuple):
    """The rows of one head among those of the whole answer."""

    rows: Tensor
    "By row (n,), its number in the whole."
    of: int
    "Rows of the whole."


def piece_of(raw: RawWindow, student: int, head: Head) -> Piece | None:
    """Return where a head's rows stand in what the student's body answered; None where it answered to all of that."""
    call = next((c for c in raw.calls if c.output is not None and c.output[0] is head.z), None)
    fed = call.given[0] if call is not None and call.given else None
    if call is None or fed is None or not fed.is_floating_point() or fed.ndim < 2 or fed.numel() > SMALL:
        return None
    if tuple(fed.shape[:-1]) != head.layout.lead:
        return None
    for body in reversed(raw.calls):
        whole = _states(body, student) if body.index < call.index else None
        if whole is None or whole.shape[-1] != fed.shape[-1] or whole.numel() <= fed.numel():
            continue
        if (rows := _places(whole, fed)) is not None:
            return Piece(rows, len(whole.reshape(-1, whole.shape[-1])))
    return None


def answers_to(piece: Piece, head: Head, answers: list[Answer]) -> list[Answer]:
    """Return the answers with those to the whole cut to the rows of a piece, which come first."""
    cut = []
    for answer in answers:
        rows = answer.values.reshape(-1, answer.values.shape[-1]) if answer.values.ndim > 1 else answer.values
        if answer.kind == "logits" and answer.among is None and len(rows) == piece.of:
            own = rows[piece.rows.to(rows.device)]
            cut.append(answer._replace(values=own.reshape(*head.layout.lead, own.shape[-1])))
    return [*cut, *answers]


def _states(call: ModuleCall, student: int) -> Tensor | None:
    """Return a student's answer that may be hidden states, be it the first of several as a recurrent layer returns."""
    out = call.outputs() if call.outputs is not None else None
    if out is None or not call.out.params & student or out.is_inference() or out.ndim < 2 or out.numel() > SMALL:
        return None
    return out if out.is_floating_point() and out.untyped_storage().size() else None


def _places(whole: Tensor, fed: Tensor) -> Tensor | None:
    """Return the number in `whole` (..., D) of each row of `fed`; None where one is not there.

    Of rows that are alike, as those of padding, each stands for one.
    """
    place: dict[bytes, list[int]] = {}
    for i, key in enumerate(row_keys(whole.detach().reshape(-1, whole.shape[-1]))):
        place.setdefault(key, []).append(i)
    found: list[int] = []
    for key in row_keys(fed.detach().reshape(-1, fed.shape[-1]).to(whole.dtype)):
        at = place.get(key)
        if not at:
            return None
        found.append(at.pop(0) if len(at) > 1 else at[0])
    return torch.tensor(found)
