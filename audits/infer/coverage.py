"""Which tokens of a text are distilled, held against which are labelled and which are padding."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdbench.audits.infer.explain.support import Support
from kdbench.audits.infer.words import How, Shown, run_of_one
from kdbench.audits.observe.windows import IGNORED

_SILENT = 1e-12
"Part of the largest gradient below which a row gets none: what a mask leaves out gets exactly 0, or underflow."
_HEARD = 1e-3
"Part of the usual gradient from which a row is surely distilled: rounding leaves far less."
_FEWEST, _SAME = 4, 0.99
"Labels that tell where in a text they belong, and the part of them that must be the words there."


@dataclass(frozen=True)
class Coverage:
    """Tokens of one head, counted."""

    how: How | None = None
    "What tells of the padding; None where nothing does."
    padding: int = 0
    "Places of padding that are followed by padding, or by nothing."
    padding_distilled: int = 0
    labelled: int | None = None
    "Places with a label; None where no label loss was seen at these logits."
    undistilled: int = 0
    "Of them, those that are not distilled."
    tail: int | None = None
    "The place from which on no labelled one is distilled, where before it all are."
    late: bool = False
    "Whether those distilled are the labelled ones, each one place too late."
    prompt: int = 0
    "Places before a text's first label, that have a next word."
    prompt_distilled: int = 0
    ended: int = 0
    "Padded texts; and those of them whose last word is distilled."
    ended_distilled: int = 0
    full: int = 0
    "Texts without padding at the end; and those whose last word is distilled."
    full_distilled: int = 0
    distilled: int = 0
    "All places that are distilled."
    start: int = 0
    "Where in the text these logits begin."
    width: int = 0
    "How many places they have."
    length: int = 0
    "Of the texts."
    beyond: int = 0
    "Words after the last of these places, that are no padding: each is one to be told."
    endless: int = 0
    "Padded texts that end with the very word that pads, if in none of them that word is labelled or distilled."
    end: int = 0
    "The number of that word."
    moved: int = 0
    "Texts whose distilled places are those that another text has labels at, if each text's are some other's."


def distilled_rows(support: Support) -> Tensor:
    """Return which rows of a head get any gradient from the distillation."""
    return support.distilled > _SILENT * (float(support.distilled.max()) or 1.0)


def placed(support: Support, ids: Tensor) -> tuple[int, int | None] | None:
    """Return where in the texts a head's logits begin, and by how much its labels are ahead of the words there.

    The labels tell: they are words of the text. Without them only logits of the whole text have a known place.
    """
    if len(support.lead) != 2 or support.lead[0] != len(ids) or support.lead[1] > ids.shape[1]:
        return None
    width, length = support.lead[1], ids.shape[1]
    rows, asked = support.asked
    sample, place = rows // width, rows % width
    for start in range(length - width + 1) if len(rows) >= _FEWEST else ():
        for ahead in (1, 0) if start == 0 else (1,):
            at = place + start + ahead
            inside = at < length
            same = int((ids[sample[inside], at[inside]] == asked[inside]).sum())
            # The last label may be a word that the network is not shown: text[:, 1:] beside text[:, :-1].
            if same >= _SAME * int(inside.sum()) and 2 * same >= len(rows):
                return start, ahead
    return (0, None) if width >= length - 1 else None


def late_by_mask(masks: list[Tensor], support: Support, ids: Tensor) -> Support | None:
    """Return the rows with what labels say that no loss was computed from, if just the rows one place later are taught;
    None else.

    The labels were asked for the places without one, as a mask is made; they are the words of the text, or those one
    place on.
    """
    width = support.lead[1]
    taught = distilled_rows(support).reshape(support.lead)
    for mask in masks:
        for words in _labelled_words(mask, ids):
            is_late = torch.equal(words[:, : width - 1], taught[:, : width - 1])
            if is_late and not bool(words[:, 0].all()):
                return support._replace(labelled=words[:, 1 : width + 1].flatten())
    return None


def _labelled_words(mask: Tensor, ids: Tensor) -> Iterator[Tensor]:
    """Yield which words of the texts have a label (B, L + 1), for each place at which such labels are these words."""
    has = mask != IGNORED
    if len(mask) != len(ids) or int(has.sum()) < _FEWEST or bool(has.all()):
        return
    length, wide = ids.shape[1], mask.shape[1]
    for by in range(length - wide + 1):
        same = int((ids[:, by : by + wide][has] == mask[has]).sum())
        if same >= _SAME * int(has.sum()):
            words = torch.zeros(len(ids), length + 1, dtype=torch.bool)
            words[:, by : by + wide] = has
            yield words


def coverage_of(support: Support, shown: Shown, start: int, ahead: int | None) -> Coverage:
    """Count the tokens of a head whose logits begin at `start`, and whose labels are `ahead` of the words."""
    labelled = None if support.labelled is None else support.labelled.reshape(support.lead)
    padding, how = _padding(shown, labelled, start)
    (width, length), live = (support.lead[1], shown.ids.shape[1]), distilled_rows(support).reshape(support.lead)
    usual = float(support.distilled[live.flatten()].median()) if bool(live.any()) else 0.0
    heard = live & (support.distilled.reshape(support.lead) > _HEARD * usual)
    ahead_of_all = torch.cat([~padding[:, 1:], torch.zeros(len(padding), 1, dtype=torch.bool)], 1)
    own, more = padding[:, start : start + width], ahead_of_all[:, start : start + width]
    empty = own & ~more  # before a text that is padded on the left stands one place that tells its first word
    found = {"padding": empty, "padding_distilled": empty & heard, "distilled": live}
    counts: dict[str, Any] = {name: int(value.sum()) for name, value in found.items()}
    if start + width == length and ahead == 1:
        counts |= _ends(padding, heard, start)
    beyond = int(ahead_of_all[:, start + width :].sum())
    made = replace(Coverage(how, start=start, width=width, length=length, beyond=beyond), **counts)
    if labelled is None:
        return made
    if how == "attention mask" and ahead == 1:
        made = replace(made, **_endless(shown, padding, labelled | live, start))
    # Labels on no padding are those of these texts; where the distillation is on padding, it is the mask that is not.
    may_move = bool((live & empty).any()) and not bool((labelled & own).any())
    return _beside_labels(made, labelled, live, heard, ~own & more, ahead, may_move)


def _endless(shown: Shown, padding: Tensor, taught: Tensor, start: int) -> dict[str, Any]:
    """Count the texts whose last word is the one that pads, and is not taught, though the word before it is."""
    last = (~padding).int().cumsum(1).argmax(1)
    place = last - 1 - start  # that tells the last word
    rows = torch.arange(len(padding))
    ends = padding[:, -1] & (place >= 1) & (place < taught.shape[1])
    if not bool(ends.any()):
        return {}
    pad = shown.ids[padding][0]
    ends &= shown.ids[rows, last] == pad
    told = taught[rows, place.clamp(0, taught.shape[1] - 1)] & ends
    before = taught[rows, (place - 1).clamp(0, taught.shape[1] - 1)] & ends
    return {} if bool(told.any()) else {"endless": int(before.sum()), "end": int(pad)}


def _ends(padding: Tensor, heard: Tensor, start: int) -> dict[str, int]:
    """Count the texts that padding follows, and those that it does not, and of both those whose last word is taught."""
    padded = padding[:, -1]
    last = (~padding).int().cumsum(1).argmax(1) - start
    rows = torch.arange(len(padding))
    told = heard[rows, last.clamp(0, heard.shape[1] - 1)] & (last >= 0)
    counted = {"ended": padded, "ended_distilled": padded & told, "full": ~padded, "full_distilled": ~padded & told}
    return {name: int(value.sum()) for name, value in counted.items()}


def _padding(shown: Shown, labelled: Tensor | None, start: int) -> tuple[Tensor, How | None]:
    """Return what is padding (B, L), and what says so: a mask, or else a run of one word that has no label."""
    if shown.padding is not None:
        return shown.padding, "attention mask"
    none = torch.zeros_like(shown.ids, dtype=torch.bool)
    run = run_of_one(shown.ids) if labelled is not None and bool(labelled.any()) else None
    if run is None or labelled is None:
        return none, None
    ahead = torch.cat([run[:, 1:], torch.ones(len(run), 1, dtype=torch.bool)], 1)
    empty = (run & ahead)[:, start : start + labelled.shape[1]]
    return (none, None) if bool((empty & labelled).any()) else (run, "labels")


def _beside_labels(
    made: Coverage,
    labelled: Tensor,
    live: Tensor,
    heard: Tensor,
    telling: Tensor,
    ahead: int | None,
    may_move: bool,
) -> Coverage:
    """Add what the labels say; `telling` are the places that have a next word, and rows of the mask `may_move`."""
    lost = labelled & ~live
    fields: dict[str, Any] = {"labelled": int(labelled.sum()), "undistilled": int(lost.sum())}
    if bool(lost.any()):
        if may_move and Counter(map(bytes, live.byte().numpy())) == Counter(map(bytes, labelled.byte().numpy())):
            fields["moved"] = int((live != labelled).any(1).sum())
        first = int(lost.any(0).int().argmax())
        fields["tail"] = made.start + first if first and not bool((labelled & live)[:, first:].any()) else None
    if ahead == 1:  # of other labels, as those of masked words, the places between say nothing
        before = labelled.int().cumsum(1) == 0
        prompt = telling & before & labelled.any(1, keepdim=True)
        moved = torch.zeros_like(labelled)
        moved[:, 1:] = labelled[:, :-1]
        fields["late"] = bool(prompt.any()) and bool(lost.any()) and torch.equal(moved[:, :-1], live[:, :-1])
        fields |= {"prompt": int(prompt.sum()), "prompt_distilled": int((prompt & heard).sum())}
    return replace(made, **fields)
