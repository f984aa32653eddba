"""Which tokens does the distillation of a language model teach, and with which weight each?"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from kdbench.audits.infer.backwards import gradients_of
from kdbench.audits.infer.coverage import Coverage, coverage_of, distilled_rows, late_by_mask, placed
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.infer.observer import Observer
from kdbench.audits.infer.roles import Cast
from kdbench.audits.infer.words import Shown, shown_in
from kdbench.audits.observe.windows import DISTANCES, FunctionCall, RawWindow
from kdbench.audits.trace import Sight
from kdbench.audits.updates import Where

_UNKNOWN = ("nothing", "unknown", "permuted", "across")
"What no form explains, row by row."
_UNREAD = (*_UNKNOWN, "negative", "sum")
"What has no one coefficient a row."
_FEWEST = 2
"Rows of one text that must be looked at to tell its weight."
_HEARD = 1e-3
"Part of the usual gradient of features from which a place is compared: as for rows of logits."


@dataclass(frozen=True)
class Sample:
    """One text whose tokens have a weight of their own."""

    tokens: int
    weight: float
    spread: float
    "Of its tokens' weights, the largest distance from their mean, relative to it."


@dataclass(frozen=True)
class Copied:
    """Labels that are the words in their own place."""

    own: float
    "The teacher's log-probability of the word in its own place, in the mean."
    following: float
    "The same of the word that follows it."
    tokens: int
    where: Where | None = None
    "Of the labels' loss."


@dataclass(frozen=True)
class Foretold:
    """What answers say of the texts that they are used for: probabilities, in the mean over some tokens."""

    following: float
    "Of the word that follows."
    own: float
    "Of the word in its own place."
    beyond: float
    "Of the word after the one that follows."
    elsewhere: float
    "Of the words that follow in other texts."
    sure: float
    "Of a word drawn as they say: where they are right, the word that follows has as much."
    tokens: int
    by_labels: bool
    "Whether labels say that it is the word that follows which is to be told."
    stored: bool
    "Whether they are stored; a live teacher's are read by their words only where labels tell."
    chance: float
    "Of any word, where all are as likely."


@dataclass(frozen=True)
class Features:
    """Hidden states of tokens that are compared."""

    name: str
    where: Where | None
    padding: int
    padding_compared: int


@dataclass
class Tokens:
    """What the rows of one head get in one window."""

    source: int
    "The module that gave the logits."
    form: str
    temperature: tuple[float, float] | None
    residual: float
    tokens: int
    "Rows that are distilled, and all rows."
    places: int
    weight: float | None
    "Of each token, where all have one: what the term's gradient is times."
    label_weight: float | None
    samples: list[Sample] = field(default_factory=list)
    "Where they have not."
    fewest: int | None = None
    "Tokens distilled of the text that has the fewest, and of the one that has the most."
    most: int | None = None
    texts: int = 0
    "How many texts there are."
    coverage: Coverage | None = None
    copied: Copied | None = None
    foretold: Foretold | None = None

    @property
    def is_known(self) -> bool:
        """Whether a form explains what each row gets."""
        return self.form not in _UNKNOWN

    @property
    def is_read(self) -> bool:
        """Whether that is one form, so that each row has a coefficient."""
        return self.form not in _UNREAD


class TokensSeen(Observer):
    """Counts the tokens that each window of a language model's distillation teaches."""

    def __init__(self) -> None:
        self._steps = 0
        self._shown: Shown | None = None
        "The last texts: of the pieces of a sequence, only the first window shows them."

    def restart(self) -> None:
        """Count from the beginning."""
        self._steps, self._shown = 0, None

    def step(self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
        """Take in that a step ends what belongs together."""
        self._steps += 1
        self._shown = None

    def window(self, raw: RawWindow, cast: Cast, sight: Sight) -> None:
        """Read the rows of a window."""
        sight.step = self._steps
        if not sight.explanations and not sight.terms:
            return
        shows = any(c.parent is None and not c.fed.params and raw.root.calls >> c.index & 1 for c in raw.calls)
        for e in sight.explanations:
            shown = shown_in(raw, e.call) or (None if shows else self._shown)
            tokens = None if shown is None else _tokens(e, shown, cast.cached, [mask.cpu() for mask in raw.masks])
            if tokens is None:
                continue
            self._shown = shown
            if tokens.copied is not None:
                where = next((label.call.where for label in cast.labels), None)
                tokens.copied = replace(tokens.copied, where=where)
            sight.tokens.append(tokens)
        if sight.terms and (shown := shown_in(raw, None)) is not None:
            sight.token_features = _features(raw, cast, shown)


def _tokens(e: Explanation, shown: Shown, stored: bool, masks: list[Tensor]) -> Tokens | None:
    """Return what one head's rows get; None where its rows are no tokens."""
    support = e.support
    if support is None or e.form == "nothing":
        return None
    rows, texts = len(support.distilled), len(shown.ids)
    if len(support.lead) == 1 and rows in (shown.ids.numel(), texts * (shown.ids.shape[1] - 1)):
        support = support._replace(lead=(texts, rows // texts))
    if len(support.lead) == 1 and rows <= texts:
        return None  # a row a text: a class of it
    live = distilled_rows(support)
    even = not e.uneven and e.coefficients is not None and len(e.coefficients) > 0
    made = Tokens(
        e.source,
        e.form,
        e.temperature,
        e.residual,
        int(live.sum()),
        rows,
        float(e.coefficients[0]) if even and e.coefficients is not None else None,
        e.label_weight,
        texts=texts,
    )
    place = placed(support, shown.ids)
    if len(support.lead) == 2 and support.lead[0] == texts:
        by_text = live.reshape(support.lead).sum(1)
        made.fewest, made.most = int(by_text.min()), int(by_text.max())
        if e.uneven and made.is_read:
            made.samples = _samples(e, by_text, support.lead[1])
    if place is not None:
        by_mask = late_by_mask(masks, support, shown.ids) if place == (0, None) else None
        made.coverage = coverage_of(by_mask or support, shown, *((0, 1) if by_mask is not None else place))
        if place[1] == 0 and support.lead[1] == shown.ids.shape[1] and made.is_read:
            made.copied = _copied(e, shown, support.lead[1])
        told = stored or place[1] == 1
        if told and place[0] == 0 and support.lead[1] >= shown.ids.shape[1] - 1 and made.is_known:
            made.foretold = _foretold(e, shown, support.lead[1], place[1] == 1, stored)
    return made


def _samples(e: Explanation, by_text: Tensor, width: int) -> list[Sample]:
    """Return the weights of the texts of which several rows were looked at."""
    if e.coefficients is None or e.coefficient_rows is None:
        return []
    of_text = e.coefficient_rows.cpu() // width
    found = []
    for text in of_text.unique().tolist():
        own = e.coefficients.cpu()[of_text == text]
        if len(own) >= _FEWEST:
            mean = float(own.mean())
            spread = float((own - mean).abs().max()) / (abs(mean) or 1.0)
            found.append(Sample(int(by_text[text]), mean, spread))
    return found


def _copied(e: Explanation, shown: Shown, width: int) -> Copied | None:
    """Return how likely the teacher finds the words in their own place, and those that follow."""
    logits, rows = e.teacher_logits, e.coefficient_rows
    if logits is None or rows is None:
        return None
    answers = logits.detach()
    if len(answers) == shown.ids.numel():
        answers = answers[rows.to(answers.device)]
    rows, answers = rows.cpu(), answers.cpu()
    text, place = rows // width, rows % width
    inside = (place + 1 < width).nonzero().flatten()
    if shown.padding is not None:
        padded = shown.padding[text[inside], place[inside] + 1]
        inside = inside[~padded]
    if len(answers) != len(rows) or not len(inside):
        return None
    said = answers[inside].double().log_softmax(1)
    at = torch.arange(len(inside))
    own, following = (shown.ids[text[inside], place[inside] + by].long() for by in (0, 1))
    if int(max(own.max(), following.max())) >= said.shape[1]:
        return None
    return Copied(float(said[at, own].mean()), float(said[at, following].mean()), len(inside))


def _foretold(e: Explanation, shown: Shown, width: int, by_labels: bool, stored: bool) -> Foretold | None:
    """Return how likely answers find the words of the texts that they are used for, and those of others."""
    logits, rows = e.teacher_logits, e.coefficient_rows
    if logits is None or rows is None:
        return None
    rows = rows.cpu()
    if len(logits) == width * len(shown.ids):
        logits = logits[rows.to(logits.device)]
    if len(logits) != len(rows):
        return None
    text, place = rows // width, rows % width
    inside = (place + 2 < shown.ids.shape[1]).nonzero().flatten()
    if shown.padding is not None:
        inside = inside[~shown.padding[text[inside], place[inside] + 2]]
    if len(inside) < _FEWEST:
        return None
    p, text, place = logits.detach()[inside.to(logits.device)].cpu().double().softmax(1), text[inside], place[inside]
    words = [shown.ids[text, place + by].long() for by in (0, 1, 2)]
    other = text[:, None] != text[None, :]
    if max(int(w.max()) for w in words) >= p.shape[1] or not bool(other.any()):
        return None
    at = torch.arange(len(p))
    own, following, beyond = (float(p[at, w].mean()) for w in words)
    return Foretold(
        following,
        own,
        beyond,
        float(p[:, words[1]][other].mean()),
        float((p * p).sum(1).mean()),
        len(p),
        by_labels,
        stored,
        1 / p.shape[1],
    )


def _features(raw: RawWindow, cast: Cast, shown: Shown) -> list[Features]:
    """Return the distances of hidden states by token (B, L, D), and whether padding is among what they compare."""
    padding = shown.padding
    answers = [c.output[0].shape for g in cast.students for c in g.calls if c.output is not None]
    by_token = any(len(shape) == 3 and shape[:2] == shown.ids.shape for shape in answers)
    labelled = [
        label.logits.numel() // label.classes for label in cast.labels if label.logits is not None and label.classes
    ]
    if padding is None or not (by_token or any(rows > len(shown.ids) for rows in labelled)):
        return []
    widths = {label.classes for label in cast.labels}
    found = []
    for f in cast.soft:
        shapes = [shape for _, _, shape in f.operands[:2]]
        if f.name not in (*DISTANCES, "sub", "__sub__", "rsub") or len(shapes) < 2:
            continue
        if any(len(s) != 3 or s[:2] != tuple(shown.ids.shape) or s[2] in widths for s in shapes):
            continue
        compared = _places(raw, f, shown)
        if compared is not None and bool(compared.any()):
            found.append(Features(f.name, f.where, int(padding.sum()), int((compared & padding).sum())))
    return found


def _places(raw: RawWindow, f: FunctionCall, shown: Shown) -> Tensor | None:
    """Return which places of the texts (B, L) a distance is taken over; None where that cannot be seen."""
    out = f.out
    if not isinstance(out, Tensor) or not out.requires_grad or len(raw.roots) != 1:
        return None
    (w,) = gradients_of(raw.roots[0], out)
    if w is None or not bool((w != 0).any()):
        return None
    if out.ndim == 0:  # a sum or a mean over all that it was given; where both were masked to one, nothing is compared
        mine, its = (t for t, *_ in f.operands[:2])
        return None if mine is None or its is None else (mine.detach() != its.detach()).any(2).cpu()
    if tuple(out.shape[:2]) != tuple(shown.ids.shape):
        return None
    size = w.detach().float().abs().reshape(*shown.ids.shape, -1).amax(2).cpu()
    return size > _HEARD * float(size.max())
