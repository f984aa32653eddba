"""Which network gave the stored answers that a student is taught by, and to which samples?"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.audits.infer.blank import FEW_CLASSES, blank_rows
from kdbench.audits.infer.layers import shown_to
from kdbench.audits.infer.observer import EXPLAINED, Observer
from kdbench.audits.infer.roles import Cast, Group
from kdbench.audits.observe.readable import is_readable
from kdbench.audits.observe.rows import row_keys
from kdbench.audits.observe.taint import Taint
from kdbench.audits.observe.windows import SOFTMAXES, ModuleCall, RawWindow
from kdbench.audits.trace import Sight, Trace

_NETWORKS = 8
"Networks whose answers are kept: a teacher, the students before, and some room."
_NUMBERS_KEPT = 2**27
"Numbers kept of one network, half a gigabyte: hidden states are wider than answers."
_ROWS_KEPT = 100_000
"Answers kept of one network: a common data set, in some hundred megabytes at most."
_LARGEST = 2**25
"Numbers in a batch up to which its rows are told apart; above, digesting them would hold up the script."
_AGAINST = ("kl_div", "cross_entropy", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
"Losses whose operands may be stored answers."
_COMPARED = 4096
"Answers up to which all are compared in every window that may be one of labels."
_FEWEST = 8
"Rows below which a match may be chance."
_MOST_KNOWN = 0.9
"Share of the rows that must be recognised: the rest may be padding, or samples that were never answered."
_SAME = 0.999
"Cosine above which two answers, centred, are one: half precision leaves more than this, other samples less."


_EXACT, _ONE_SCALE = 1 - 1e-6, 1e-3
"""The same where nothing was rounded, and the share by which what all rows are divided by may vary: rows of few classes
are alike by chance."""


class Stored(Observer):
    """Keeps what networks said that learned nothing by it, and finds it again where a student is taught by it."""

    def __init__(self, trace: Trace, taint: Taint) -> None:
        self._trace, self._taint = trace, taint
        self._answers: list[tuple[nn.Module, dict[bytes, Tensor]]] = []
        "By network, what it said of each sample."
        self.source: Callable[[], Any] = lambda: None
        "Returns the data set that was gone through last, where that is seen."
        self.handed_out: Callable[[Tensor], bool] = lambda batch: False
        "Says whether a batch is what a loader gave last, and nothing was made of it since."
        self._sources: dict[int, list[Any]] = {}
        "By network, the data sets that it was asked about; the answers are kept as long."

    def answered(self, raw: RawWindow, call: ModuleCall) -> None:
        """Keep what a network that learns nothing says of each sample."""
        if not may_be_stored(call) or call.value is None:
            return
        table = next((t for m, t in self._answers if m is call.module), None)
        if table is None:
            self._answers = [*self._answers[1 - _NETWORKS :], (call.module, table := {})]
        source, known = self.source(), self._sources.setdefault(id(call.module), [])
        if source is not None and all(source is not s for s in known):
            known.append(source)
        if len(table) < _ROWS_KEPT:
            rows = call.value.cpu().flatten(1)
            if len(table) * rows.shape[1] < _NUMBERS_KEPT:
                table.update(zip(row_keys(call.given[0]), rows.unbind(0), strict=True))

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Say whether stored answers were recognised."""
        if cast.stored_rows is None:
            self.recognise(raw, cast)
        sight.cached_rows, sight.blank_rows = cast.stored_rows, cast.blank_rows
        if cast.cached and cast.stored_rows is None and len(self._trace.losses.sights) < EXPLAINED:
            sight.cached_views = self._views(raw, cast)

    def _views(self, raw: RawWindow, cast: Cast) -> tuple[int, int] | None:
        """Return how many rows of a batch are taught by what a network said of inputs that the student is not shown,
        and of how many: both went through one data set, so it gives other views of its samples each time."""
        source = self.source()
        for module, table in self._answers if source is not None else ():
            if len(table) < _FEWEST or all(source is not s for s in self._sources.get(id(module), ())):
                continue
            said = torch.stack(list(table.values())).float()
            for x in shown_to(raw, self._taint, cast.student_mask):
                keys = row_keys(x) if x.ndim and is_readable(x) else []
                if len(keys) < _FEWEST or any(key in table for key in keys) or not self.handed_out(x):
                    continue
                for t in self._used(raw, cast):
                    share = _copies(t, said) if len(t) == len(keys) and t.shape[1] == said.shape[1] > 2 else 0.0
                    if share > _MOST_KNOWN:
                        return round(share * len(keys)), len(keys)
        return None

    def _used(self, raw: RawWindow, cast: Cast) -> list[Tensor]:
        """Return what may be stored answers among what the losses and softmaxes of a window took in, row by row."""
        return [
            t.detach().cpu().float().flatten(1)
            for f in raw.functions
            if raw.root.calls >> f.index & 1 and f.name in (*SOFTMAXES, *_AGAINST)
            for t, made, shape in f.operands[:2]
            if t is not None and t.is_floating_point() and not made.params & cast.student_mask and len(shape) > 1
        ]

    def recognise(self, raw: RawWindow, cast: Cast) -> None:
        """Find the network that stored answers came from: each is what it was seen to say of some sample."""
        if not cast.cached or len(self._trace.losses.sights) >= EXPLAINED:
            return
        shapes = [shape for f in raw.functions if f.name in _AGAINST for _, _, shape in f.operands[:2]]
        used = self._used(raw, cast)
        for module, table in self._answers:
            mask = self._taint.mask(module.parameters())
            if mask & cast.student_mask or not table:
                continue
            for x in shown_to(raw, self._taint, cast.student_mask):
                keys = row_keys(x) if x.ndim and is_readable(x) else []
                rows = _held_against(table, keys, cast.doubtful)
                if rows is None:
                    continue
                for t in used:
                    if len(keys) != len(t) or t.shape[1] != rows.said.shape[1] or len(keys) < _FEWEST:
                        continue
                    match = _matches(t, rows.said)
                    known = [i for i, place in enumerate(rows.own) if place >= 0 and bool(match[i].any())]
                    cast.blank_rows = cast.blank_rows or _blank_among(t, rows, match)
                    if len(known) < _MOST_KNOWN * len(keys):
                        continue
                    differ = sum(not bool(match[i, rows.own[i]]) for i in known)
                    cast.stored_rows = (len(known), differ)
                    if not any(g.mask & mask for g in cast.teachers):
                        cast.teachers.append(Group(mask, module))
                    if all(place >= 0 for place in rows.own) and any(len(shape) == 2 for shape in shapes):
                        cast.stored = rows.said[rows.own]
                    return


class _Rows(NamedTuple):
    """What a network said of some samples, and where among it each sample of a batch is."""

    said: Tensor
    own: list[int]


def _held_against(table: dict[bytes, Tensor], keys: list[bytes], doubtful: bool) -> _Rows | None:
    """Return what answers to a batch may be compared with: all that a network said; of much, where most of it may be
    labels, what it said of these very samples."""
    known = [key for key in keys if key in table]
    if len(known) < _MOST_KNOWN * len(keys):
        return None
    among = dict.fromkeys(known) if doubtful and len(table) > _COMPARED else table
    places = {key: i for i, key in enumerate(among)}
    return _Rows(torch.stack([table[key] for key in among]).float(), [places.get(key, -1) for key in keys])


def _blank_among(used: Tensor, rows: _Rows, match: Tensor) -> tuple[int, int] | None:
    """Return how many stored answers hold one number for every class, and among how many, where the others are what the
    network said of their samples, and of those samples it said something; None where that is not so."""
    empty = blank_rows(used) & (used.shape[1] >= FEW_CLASSES)
    others = [i for i, place in enumerate(rows.own) if not empty[i] and place >= 0 and bool(match[i, place])]
    lost = [i for i, place in enumerate(rows.own) if empty[i] and place >= 0 and not bool(blank_rows(rows.said[place]))]
    whole = len(others) + len(lost) >= _MOST_KNOWN * len(used)
    return (len(lost), len(used)) if lost and len(others) >= _FEWEST and whole else None


def may_be_stored(call: ModuleCall) -> bool:
    """Say whether an answer learns nothing and is one row to each sample, so that it may be stored for later."""
    if call.grad or call.value is None or call.value.ndim < 2 or not call.given:
        return False
    first = call.given[0]
    return first.ndim > 0 and len(first) == len(call.value) and first.numel() <= _LARGEST and is_readable(first)


def _matches(used: Tensor, said: Tensor) -> Tensor:
    """Say which of the answers (M, C) each stored row (N, C) is, be it divided by T or the softmax of that."""

    return torch.stack([_unit(form) @ _unit(said).T > _SAME for form in _forms(used)]).any(0)


def _forms(used: Tensor) -> list[Tensor]:
    return [used, used.log()] if bool((used > 0).all()) else [used]


def _unit(rows: Tensor) -> Tensor:
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _copies(used: Tensor, said: Tensor) -> float:
    """Return the part of the rows (M, C) that are each one of the answers (N, C), all divided by one number."""
    best = 0.0
    for form in _forms(used):
        closeness, at = (_unit(form) @ _unit(said).T).max(1)
        scales = (form - form.mean(1, keepdim=True)).norm(dim=1) / (said - said.mean(1, keepdim=True)).norm(dim=1)[at]
        alike = (scales / scales.median().clamp_min(1e-12) - 1).abs() < _ONE_SCALE
        best = max(best, float((alike & (closeness > _EXACT)).float().mean()))
    return best
