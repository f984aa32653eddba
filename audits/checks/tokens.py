"""Which tokens of a language model are distilled, and with which weight each."""

from collections import defaultdict

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, undecided
from kdbench.audits.checks.reading import term_place
from kdbench.audits.checks.words import FEWEST, Seen, by_labels_handed, tokens_seen
from kdbench.audits.infer.coverage import Coverage
from kdbench.audits.infer.tokens import Features
from kdbench.audits.trace import Sight, Trace

_EQUAL = 3e-3
"Share by which two weights read off gradients may differ and be one: each is read to a thousandth or better."
_OTHER_COUNT = 0.05
"Share by which two numbers of tokens must differ, so that a weight that goes with them tells itself from an equal one."
_AGREE = 2
"Backwards that must show a slip of a term whose form is not read."
_TEXTS = 3
"Texts whose weights must go with their lengths: two might by chance."
_PROMPT = 2
"Words of a prompt, in the mean, from which it is one."
_MOST = 0.5
"Part of the padding, or of the prompts, that must be distilled."
_WRITTEN = 2e-5
"Share by which a weight may be off a number of two digits, as people write them: one in 400 is by chance."
_PIECES = 6
"Heads of one window from which more may have been left out than were looked at."
_NO_TOKENS = (
    "no term over rows of tokens was read: the student is shown no texts, its answers by token are not taught, or the "
    "labels' part of what they get is not known"
)


@audit(
    "KD351",
    severity="warn",
    phase="first",
    follows=("KD352", "KD313", "KD305"),
    mend="divide the sum over tokens by the tokens of the whole optimizer step (all its micro-batches, pieces and "
    "processes), as Trainer's num_items_in_batch counts them",
)
def token_weights(trace: Trace) -> Verdict:
    """In one optimizer step each token that is distilled has one weight.

    Warns where each micro-batch is divided by its own tokens, each text by its own, or the term by padding too; an
    error where each piece of one sequence is. Decided only where micro-batches, pieces or texts had different numbers
    of tokens: equal numbers prove nothing.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    seen = tokens_seen(trace)
    if not seen:
        return undecided("out-of-scope", _NO_TOKENS)
    read = [(s, t) for s, t in seen if t.is_read]
    if not read:
        return undecided("form-not-recognised", "the distillation term was not recognised, so no token's weight was")
    if (verdict := _by_texts(trace, read)) is not None:
        return verdict
    alike = False
    for together in _steps(read):
        verdict = _within(trace, together)
        if verdict is not None and verdict.status == "fail":
            return verdict
        alike = alike or (verdict is not None and verdict.status == "pass")
    if (verdict := _diluted(trace, read)) is not None:
        return verdict
    return _rest(read, alike)


def _steps(read: Seen) -> list[Seen]:
    """Return what belongs together: rows from one module in one step, whose term has one form."""
    groups: dict[tuple[object, ...], Seen] = defaultdict(list)
    for s, t in read:
        if t.weight is not None and t.tokens:
            groups[s.step, t.source, t.form, t.temperature].append((s, t))
    return list(groups.values())


def _loose(seen: Seen) -> float:
    """Return the tolerance on weights: in half precision they are read no better."""
    return max(_EQUAL, *(2 * t.residual for _, t in seen))


def _are_one(values: list[float], tolerance: float) -> bool:
    return min(values) > 0 and max(values) <= (1 + tolerance) * min(values)


def _differ(counts: list[float], tolerance: float, least: float = _OTHER_COUNT) -> bool:
    return min(counts) > 0 and max(counts) >= (1 + max(least, 4 * tolerance)) * min(counts)


def _by_texts(trace: Trace, read: Seen) -> Verdict | None:
    """Judge weights that are each text's own."""
    for s, t in read:
        loose = _loose([(s, t)])
        texts = [x for x in t.samples if x.spread <= loose]
        if len(texts) < _TEXTS or not _differ([x.tokens for x in texts], loose):
            continue
        if _are_one([x.weight * x.tokens for x in texts], loose):
            fewest, most = (f(texts, key=lambda x: x.tokens) for f in (min, max))
            return failed(
                f"the term is the mean over {t.texts} texts of each one's mean: a token of the text of {fewest.tokens} "
                f"weighs {fewest.weight / most.weight:.3g} times one of the text of {most.tokens}",
                {"tokens": [x.tokens for x in texts], "weights": [x.weight for x in texts]},
                term_place(trace, s),
            )
    return None


def _within(trace: Trace, together: Seen) -> Verdict | None:
    """Judge the weights in one step; None where they say nothing."""
    loose = _loose(together)
    counts, weights = [float(t.tokens) for _, t in together], [t.weight or 0.0 for _, t in together]
    places = [float(t.places) for _, t in together]
    if len(together) < 2 or not _differ(counts, loose):
        return None
    if _are_one(weights, loose):
        return passed("one weight")
    if len({s.number for s, _ in together}) == 1 and not _are_pieces(together):
        return None  # several answers of one module, as to two texts, or at several depths
    own = _are_one([w * n for w, n in zip(weights, counts, strict=True)], loose)
    all_places = _differ(places, loose) and _are_one([w * n for w, n in zip(weights, places, strict=True)], loose)
    if not own and not all_places:
        return None
    at, pieces = together[0][0], _are_pieces(together)
    what, by = "piece of the sequence" if pieces else "micro-batch", "tokens" if own else "places, padding too"
    numbers = counts if own else places
    said = (
        f"each {what} is divided by its own {by}: in one step of {len(together)}, a token weighs "
        f"{max(weights) / min(weights):.3g} times another ({int(min(numbers))} to {int(max(numbers))} of them)"
    )
    first = together[0][1]
    of_terms = (first.label_weight or 0.0) + weights[0] * counts[0]
    if own and not pieces and at.micro > 1 and abs(of_terms - 1) <= loose:
        said += f"; and nothing divides the sum by the {at.micro} backwards of a step"
    observed = {"tokens": counts, "weights": weights, "step": at.step}
    return failed(said, observed, term_place(trace, at), "error" if pieces else None)


def _are_pieces(together: Seen) -> bool:
    """Say whether these are pieces of one sequence: they begin at different places."""
    starts = [t.coverage.start for _, t in together if t.coverage is not None]
    return len(starts) > 1 and len(set(starts)) == len(starts)


def _diluted(trace: Trace, read: Seen) -> Verdict | None:
    """Judge a term that is divided by all places, of which padding has no part in it or in the labels' loss."""
    beside = [(s, t) for s, t in read if t.weight and t.label_weight and t.tokens < t.places and t.texts]
    if len(beside) < 2:
        return None
    loose = _loose(beside)
    labels = [t.label_weight or 0.0 for _, t in beside]
    weights, counts = [t.weight or 0.0 for _, t in beside], [float(t.tokens) for _, t in beside]
    acting = [w * n for w, n in zip(weights, counts, strict=True)]
    if not _are_one(labels, loose) or not _differ(acting, loose, 0.0):
        return None
    for cut in (0, 1):
        places = [float(t.places - cut * t.texts) for _, t in beside]
        meant = [w * n for w, n in zip(weights, places, strict=True)]
        if not _are_one(meant, _EQUAL):
            continue
        if not _differ(places, loose) and not _is_written(meant[0]):
            continue  # a constant that somebody chose
        return failed(
            f"the term is divided by all {int(places[0])} places, padding too, and the labels' loss by its tokens: "
            f"beside the labels' weight {labels[0]:.3g} the distillation acts with {min(acting):.3g} to "
            f"{max(acting):.3g}, as padding goes, instead of {meant[0]:.3g}",
            {"tokens": counts, "places": places, "weights": acting},
            term_place(trace, beside[0][0]),
        )
    return None


def _is_written(x: float) -> bool:
    return abs(float(f"{x:.1e}") - x) <= _WRITTEN * abs(x)


def _rest(read: Seen, alike: bool) -> Verdict:
    """Say that the weights are one, or what is missing to say so."""
    if any(t.weight is None for _, t in read):
        return undecided("form-not-recognised", "tokens have weights of their own, by no rule that is known")
    several = read[0][0].micro > 1
    if alike:
        return passed("in each step seen, every token has one weight, however many there are")
    if not several and any(t.fewest is not None and t.most is not None and t.fewest < t.most for _, t in read):
        return passed("the tokens of texts of different lengths have one weight")
    numbers = sorted({t.tokens for _, t in read})
    if several:
        return undecided(
            "not-in-these-steps",
            f"a step has {read[0][0].micro} backwards; no two of one step were seen that teach different numbers of "
            f"tokens ({', '.join(map(str, numbers[:6]))}) with weights that tell how they are divided",
            "steps",
        )
    return undecided(
        "not-in-these-steps",
        "all texts seen have as many tokens, which proves nothing of how they are divided",
        "steps",
    )


@audit(
    "KD352",
    severity="error",
    phase="first",
    follows=("KD313", "KD305"),
    mend="mask = labels[:, 1:] != -100 belongs to logits[:, :-1], of the student and of the teacher; average over "
    "logits[:, :-1][mask]",
)
def token_mask(trace: Trace) -> Verdict:
    """The tokens that are distilled are those that are labelled, or all that are no padding.

    Fails where padding is distilled, where the mask is not shifted with the logits, where the last piece of a sequence
    is dropped, and where a mask is made of a network's answer and the number that marks what has no label. Warns where
    prompts are distilled that labels leave out, which may be meant; where labelled tokens at the end are not
    distilled; where the word that ends a text is also the one that pads, and is left out with it; where hidden states
    of padding are compared; and where places of zeros alone are distilled that the other losses leave out.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    if (blind := next((s.blind_mask for s in trace.losses.sights if s.blind_mask is not None), None)) is not None:
        return failed(
            f"a mask compares the {blind.whose}'s answer with {blind.number:g}, which marks {blind.places} places "
            "without a label in the labels and is no answer: the mask is the same everywhere, and leaves out none of "
            "them",
            {"number": blind.number, "places": blind.places},
            blind.where,
        )
    for s, f in ((s, s.frames) for s in trace.losses.sights if s.frames is not None):
        if f.beyond >= FEWEST and f.heard > _MOST * f.beyond:
            return failed(
                f"padding is distilled: {f.heard} of {f.beyond} frames beyond the lengths that {f.told} is given get a "
                "gradient of it",
                {"padding": f.beyond, "padding_distilled": f.heard},
                term_place(trace, s),
            )
    for e in (s.empty_places for s in trace.losses.sights if s.empty_places is not None):
        if e.places >= FEWEST and e.distilled > _MOST * e.places:
            return failed(
                f"padding is distilled: {e.distilled} of {e.places} places that hold nothing but zeros get a gradient "
                "of the distillation term, and none of the other losses, which leave them out",
                {"padding": e.places, "padding_distilled": e.distilled},
                e.where,
                "warn",  # zeros may be values
            )
    if (verdict := by_labels_handed(trace)) is not None:
        return verdict
    read = [(s, t.coverage) for s, t in tokens_seen(trace) if t.coverage is not None and t.is_known]
    features = [(s, f) for s in trace.losses.sights for f in s.token_features]
    # Whatever the form: what is left without the labels' part begins and ends one place late in each text.
    late = [
        (s, t.coverage) for s, t in tokens_seen(trace) if t.coverage is not None and t.coverage.late and not t.is_known
    ]
    if len(late) >= _AGREE and (verdict := _wrong(trace, *late[0])) is not None:
        return verdict
    if not read and not features:
        if not tokens_seen(trace):
            return undecided("out-of-scope", _NO_TOKENS)
        said = "which tokens the logits belong to, or which the term gives a gradient, was not seen"
        return undecided("form-not-recognised", said)
    for s, c in read:
        if (verdict := _wrong(trace, s, c)) is not None:
            return verdict
    if (verdict := _dropped(trace)) is not None:
        return verdict
    for s, c in read:
        if (verdict := _doubtful(trace, s, c)) is not None:
            return verdict
    for s, f in features:
        if f.padding >= FEWEST and f.padding_compared > _MOST * f.padding:
            return _of_features(s, f)
    return _what_is_distilled([c for _, c in read], [f for _, f in features])


def _wrong(trace: Trace, s: Sight, c: Coverage) -> Verdict | None:
    """Judge what cannot be meant."""
    place = term_place(trace, s)
    if c.padding >= FEWEST and c.padding_distilled > _MOST * c.padding:
        says = "the attention mask is 0 there" if c.how == "attention mask" else "no label is there"
        return failed(
            f"padding is distilled: {c.padding_distilled} of {c.padding} places of padding ({says}) take part, among "
            f"{c.distilled} places in all",
            {"padding": c.padding, "padding_distilled": c.padding_distilled, "distilled": c.distilled},
            place,
        )
    if c.moved >= FEWEST:
        return failed(
            f"the mask belongs to other texts: in {c.moved} texts the places that are distilled are those that another "
            f"text has labels at, so {c.undistilled} labelled places get nothing",
            {"texts": c.moved, "labelled": c.labelled, "undistilled": c.undistilled},
            place,
            mend="keep the rows of the mask in the order of the logits' rows",
        )
    if c.late:
        return failed(
            "the mask is not shifted with the logits: each text is distilled one place late, from the word after its "
            f"first labelled one on ({c.undistilled} labelled places get nothing)",
            {"labelled": c.labelled, "undistilled": c.undistilled, "distilled": c.distilled},
            place,
        )
    return None


def _dropped(trace: Trace) -> Verdict | None:
    """Judge a step whose pieces end before the sequence does, by less than a piece."""
    groups: dict[tuple[int, int], list[tuple[Sight, Coverage]]] = defaultdict(list)
    last = max(s.step for s in trace.losses.sights)
    unread = {s.step for s in trace.losses.sights if not s.tokens or any(t.coverage is None for t in s.tokens)}
    for s, t in tokens_seen(trace):
        if t.coverage is not None and s.step < last and s.step not in unread:
            groups[s.step, t.source].append((s, t.coverage))
    for (step, _), pieces in groups.items():
        ends = max((c for _, c in pieces), key=lambda c: c.start + c.width)
        end, windows = ends.start + ends.width, {s.number for s, _ in pieces}
        if len(pieces) < 2 or len(pieces) >= _PIECES * len(windows) or len({c.start for _, c in pieces}) != len(pieces):
            continue
        if not 0 < ends.length - 1 - end < ends.width or ends.beyond < FEWEST:
            continue
        return failed(
            f"the last piece of the sequence is dropped: the {len(pieces)} pieces of a step end at place {end} of "
            f"{ends.length - 1}, and the {ends.beyond} words after it are not distilled",
            {"pieces": len(pieces), "end": end, "length": ends.length, "words": ends.beyond, "step": step},
            term_place(trace, pieces[-1][0]),
        )
    return None


def _doubtful(trace: Trace, s: Sight, c: Coverage) -> Verdict | None:
    """Judge what is mostly a slip and may be meant."""
    place = term_place(trace, s)
    if c.tail is not None and c.undistilled >= FEWEST:
        return failed(
            f"{c.undistilled} of {c.labelled} labelled places are not distilled: none from place {c.tail} of "
            f"{c.length} on, where before it all are",
            {"labelled": c.labelled, "undistilled": c.undistilled, "tail": c.tail},
            place,
            "warn",
        )
    if c.endless >= FEWEST:
        return failed(
            "the word that ends a text is also the one that pads, and is left out with the padding: in all "
            f"{c.endless} texts that end with it (number {c.end}) it is neither labelled nor distilled, so the student "
            "does not learn where to end",
            {"texts": c.endless, "word": c.end},
            place,
            "warn",
            mend="take the padding from the attention mask, not from the word's number",
        )
    # A word before the first label is that with which texts begin, not a prompt.
    if c.prompt >= max(FEWEST, _PROMPT * (c.ended + c.full)) and c.prompt_distilled > _MOST * c.prompt:
        return failed(
            f"prompts are distilled although the labels leave them out: {c.prompt_distilled} of {c.prompt} places "
            f"before the first label. That can be a choice: then waive it",
            {"prompt": c.prompt, "prompt_distilled": c.prompt_distilled, "labelled": c.labelled},
            place,
            "warn",
            mend="mask = labels[:, 1:] != -100, for the distillation as for the labels' loss",
        )
    # A mask of all words teaches the last one of every text; one that is not shifted, of padded texts alone.
    if c.full and not c.full_distilled and c.ended and c.ended_distilled == c.ended and c.labelled is not None:
        return failed(
            f"the mask is not shifted with the logits: in each of {c.ended} padded texts the last word is distilled, "
            "whose next one is padding, and in no full text",
            {"padded_texts": c.ended, "full_texts": c.full, "distilled": c.distilled},
            place,
            "warn",
        )
    return None


def _of_features(s: Sight, f: Features) -> Verdict:
    return failed(
        f"hidden states of padding are compared ({f.name}): {f.padding_compared} of {f.padding} places of padding",
        {"padding": f.padding, "padding_compared": f.padding_compared},
        f.where or s.where,
        "warn",
    )


def _what_is_distilled(read: list[Coverage], features: list[Features]) -> Verdict:
    """Say which tokens are distilled, or what is missing to say whether they are the right ones."""
    beside = [c for c in read if c.labelled is not None]
    padded = [c for c in read if c.how is not None and c.padding]
    if beside and all(c.distilled == c.labelled and not c.undistilled for c in beside):
        return passed("the tokens that are distilled are those that are labelled")
    if padded:
        return passed("no padding is distilled")
    if features and not read:
        return passed("no hidden states of padding are compared")
    if beside and not any(c.undistilled for c in beside):
        return passed("all tokens that are labelled are distilled, and no padding was seen")
    return undecided("not-in-these-steps", "no padding was seen, and labels do not tell the tokens apart", "steps")
