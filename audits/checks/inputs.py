"""What the networks are shown, and whether answers belong to the samples that they are held against."""

from kdbench.audits.checks.catalogue import Verdict, audit, failed, no_distillation, passed, undecided
from kdbench.audits.checks.reading import DIRECT, term_place
from kdbench.audits.checks.words import copies_its_input, cut_wrongly, foretell
from kdbench.audits.finding import Severity
from kdbench.audits.infer.explain import Explanation
from kdbench.audits.lost import Repeated
from kdbench.audits.trace import Sight, Trace

_STANDING = 4
"Backwards after the first in which the teacher's side of a term stands still, though it answers each batch."
_STALE = 0.1
"Share of the stored answers recognised that may resemble another sample's more: some samples are alike."


@audit(
    "KD106",
    severity="warn",
    phase="first",
    mend="pair features of equal shape explicitly: a projector for the channels, a pooling for the resolution; of "
    "transformers, the answer of a block with that of a block",
)
def feature_pairing(trace: Trace) -> Verdict:
    """Features that are compared have one shape, and are what was taken.

    Broadcasting compares each with every other in silence; a module that works in place changes what a hook on the
    one before it was handed; a line that is run for several pairs compares each of them, and not one again and again.
    The embeddings of a teacher teach no block: they are what its first one is given; nor is
    each block of a student, up to its last, held against the teacher's block before the one that stands in its place.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    terms = [t for s in trace.losses.sights for t in s.terms if t.name in _DISTANCES]
    for ((passed_s, of_s), (passed_t, of_t)), where in (pair for s in trace.losses.sights for pair in s.depths.items()):
        if passed_s and not passed_t:
            return failed(
                f"the student's features behind its block {passed_s} of {of_s} are compared with what the teacher's "
                "first block is given, its embeddings: hidden_states[0] is the embeddings, and block i answers "
                "hidden_states[i]",
                {"student_blocks": [passed_s, of_s], "teacher_blocks": [passed_t, of_t]},
                where,
            )
    if (verdict := _one_block_early(trace.losses.sights[0]) or _again_and_again(trace.losses.sights)) is not None:
        return verdict
    if not terms:
        return undecided("out-of-scope", "no distance between features was seen")
    overwritten = next((s.overwritten for s in trace.losses.sights if s.overwritten is not None), None)
    if overwritten is not None:
        hooked, by = overwritten
        return failed(
            f"a hook on {hooked} is handed what {by} overwrites in place: the features compared are those after it; "
            "clone them in the hook, or hook what is meant",
            {"hooked": hooked, "overwritten_by": by},
            trace.losses.sights[0].where,
        )
    for t in terms:
        if len(t.shapes) == 2 and t.shapes[0] != t.shapes[1] and all(t.shapes):
            return failed(
                f"{t.name} compares features of shapes {t.shapes[0]} and {t.shapes[1]}, which torch broadcasts",
                {"shapes": [list(s) for s in t.shapes]},
                t.where,
            )
    return passed(f"features compared have one shape in {len(terms)} distances seen")


def _again_and_again(sights: list[Sight]) -> Verdict | None:
    """Judge a line that compares one pair of answers several times, each time that it was looked at."""
    if len(sights) < _SEVERAL or any(s.same_again is None for s in sights[:_SEVERAL]) or sights[0].same_again is None:
        return None
    times, where = sights[0].same_again
    return failed(
        f"one pair of answers is compared {times} times, by one line, and no other in its place",
        {"times": times},
        where,
        mend="compare each pair once; a lambda made in a loop takes what the loop's variable names last: bind it by "
        "lambda i=i: ...",
    )


def _one_block_early(sight: Sight) -> Verdict | None:
    """Judge a map from blocks to blocks that is one off throughout: embeddings are counted on one side only."""
    sizes = {(of_s, of_t) for (_, of_s), (_, of_t) in sight.depths}
    places = sorted((mine, theirs) for (mine, _), (theirs, _) in sight.depths if mine or theirs)
    if len(places) < _SEVERAL or len(sizes) != 1:
        return None
    of_s, of_t = sizes.pop()
    if of_t % of_s or any(theirs != of_t // of_s * mine - 1 for mine, theirs in places) or places[-1][0] != of_s:
        return None
    said = ", ".join(f"{mine} against {theirs}" for mine, theirs in places)
    return failed(
        f"each of the student's {of_s} blocks is held against the block before its place among the teacher's {of_t}: "
        f"{said}; hidden_states[0] is the embeddings, and block i answers hidden_states[i]",
        {"pairs": [list(p) for p in places], "blocks": [of_s, of_t]},
        next(iter(sight.depths.values())),
    )


def _asked_again(again: Repeated) -> Verdict:
    if again.how == "difference":
        return failed(
            "the teacher is asked twice with the same input, and one answer is taken from the other: nothing is left",
            {"relation": "repeated", "how": again.how},
            again.where,
            "error",
            mend="give the second call the input that it is meant to have, such as no condition",
        )
    if again.how == "twins":
        return failed(
            "two of the teachers that are mixed hold the same numbers throughout: they are one, and count as several",
            {"relation": "repeated", "how": again.how},
            again.where,
            mend="keep a copy of each: v.detach().clone() of each tensor of a state_dict, or copy.deepcopy(net)",
        )
    if again.how == "each":
        return failed(
            f"one teacher is asked {again.times} times with the same input, each answer teaches a part of the student "
            f"of its own, and {again.times - 1} networks like it are never asked",
            {"relation": "repeated", "how": again.how, "times": again.times},
            again.where,
            mend=_ASK_EACH,
        )
    return failed(
        "one teacher is asked several times with the same input, and its answers are mixed as if they were several",
        {"relation": "repeated", "how": again.how},
        again.where,
        mend=_ASK_EACH,
    )


_ALIKE = 3
"Backwards in which all rows must have been one."
_ASK_EACH = "ask each teacher: a function made in a loop calls what the loop's variable names last (net=net binds it)"
_SEVERAL = 2
"Pairs of blocks that show how they are paired."
_ITS_OWN = ("untrained", "vocabulary")
"Relations in which both are shown one batch all the same."
_UNREAD = ("nothing", "unknown", "permuted", "across")
"What is no form that is fitted to the teacher's rows one by one."
_SAME_ROWS = ("same", "untrained")
"Relations in which both are shown the rows of the batch in one order."
_DISTANCES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "sub", "__sub__", "rsub")


@audit(
    "KD304",
    severity="warn",
    phase="first",
    follows=("KD104",),
    mend="show both networks the same batch: one crop, one flip, one normalisation, unless the teacher needs its own",
)
def same_input(trace: Trace) -> Verdict:
    """Teacher and student are shown the same batch.

    Warns when, in the first distillation steps, inputs of one shape hold other values: another normalisation, another
    crop or flip; when the teacher is shown the student's words though it knows others, or with another attention mask,
    so that it looks at padding or at other texts; when it is shown the words of a text alone, and learned on that text
    with more, as segments; when both are shown several views, the teacher is an average, no label teaches, and no
    view's answer is held against another's; when one teacher is asked several times with one input, and its answers are
    mixed, or taken for those of teachers that nobody asks; when two teachers hold the same numbers; and when answers
    were stored once of a data set that gives its samples in other views each time. A teacher may have preprocessing of
    its own; then waive it. An error where one batch for both is declared, where of several inputs the student is never
    shown one, but another in its place, and where a teacher's answer is taken from itself.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    views = next((s for s in trace.losses.sights if s.cached_views is not None), None)
    if views is not None and views.cached_views is not None:
        rows, of = views.cached_views
        return failed(
            f"{rows} of {of} stored answers are what the teacher said of inputs that the student is not shown: the "
            "data set gives its samples in new views each time, and the answers were stored once",
            {"relation": "views", "rows": rows, "of": of},
            views.where,
            mend="store answers to samples that stay as they are, or ask the teacher about each view as it comes",
        )
    seen = [s for s in trace.losses.sights if s.inputs is not None]
    seen = [s for s in seen if s.inputs is not None and s.inputs.traced] or seen
    if not seen or _are_stored(trace.losses.sights):
        return undecided("no-teacher-seen", "no live teacher answered beside the student: nothing to compare")
    if (again := next((s.repeated for s in seen if s.repeated is not None), None)) is not None:
        return _asked_again(again)
    follows = trace.teacher.change is not None and trace.teacher.change.follows
    if follows and all(s.uncrossed for s in seen):
        return failed(
            f"both networks are shown {seen[0].uncrossed} views of the batch, and the student's answer to each is held "
            "against the averaged teacher's answer to the same view: no view is taught by another",
            {"relation": "uncrossed", "views": seen[0].uncrossed},
            term_place(trace, seen[0]),
            mend="hold the student's answer to view 1 against the teacher's answer to view 2, and the other way round",
        )
    for sight in seen:
        assert sight.inputs is not None
        if follows and sight.inputs.relation in ("flipped", "differ"):
            return undecided(
                "out-of-scope", "the teacher is an average of the student, which is often shown a view of its own"
            )
        if sight.inputs.relation == "crossed":
            return failed(
                f"the student is not shown what the teacher is: {sight.inputs.detail}",
                {"relation": "crossed", "detail": sight.inputs.detail},
                sight.where,
                "error",
            )
        if sight.inputs.relation == "lacking":
            return failed(
                f"the teacher is not told what it was trained with: {sight.inputs.detail}",
                {"relation": "lacking", "detail": sight.inputs.detail},
                sight.teacher_where or sight.where,
                mend="hand the teacher all that it was trained with, not what the student's forward takes",
            )
        if sight.inputs.relation == "context":
            return failed(
                f"the teacher is shown the student's words with another attention mask: {sight.inputs.detail}",
                {"relation": "context", "detail": sight.inputs.detail},
                sight.teacher_where or sight.where,
                mend="hand both networks the attention_mask that the tokenizer made for these words",
            )
        if sight.inputs.relation in ("flipped", "affine", "differ", "untrained", "vocabulary"):
            words = {
                "flipped": "mirrored",
                "affine": "normalised otherwise",
                "differ": "different",
                "untrained": "unfamiliar",
                "vocabulary": "another network's",
            }
            return failed(
                f"the teacher is shown {words[sight.inputs.relation]} inputs: {sight.inputs.detail}",
                {"relation": sight.inputs.relation, "detail": sight.inputs.detail},
                sight.teacher_where or sight.where,
                # What is unfamiliar to the teacher may still be one batch for both.
                "error" if trace.declared.same_input and sight.inputs.relation not in _ITS_OWN else None,
            )
    relations = {s.inputs.relation for s in seen if s.inputs is not None}
    if "view" in relations:
        return undecided(
            "out-of-scope",
            "student and teacher are shown views of one batch; whether they should differ cannot be seen",
        )
    if relations == {"shapes"}:
        detail = seen[0].inputs.detail if seen[0].inputs else ""
        return undecided(
            "out-of-scope", f"the inputs have another form ({detail}): the teacher has preprocessing of its own"
        )
    return passed("teacher and student are shown the same values")


def _are_stored(sights: list[Sight]) -> bool:
    """Say whether answers are stored: then the batches that were asked about while storing them are others.

    An answer that every student of several takes over in turn is no store.
    """
    taught: set[str] = set()
    "By the latest answer."
    for sight in sights:
        if not sight.cached:
            taught = set()
        elif not taught or sight.student in taught:
            return True
        taught.add(sight.student)
    return False


@audit(
    "KD305",
    severity="error",
    phase="first",
    mend="key stored answers by sample id, and never reorder one side of a batch alone; of texts, labels[:, 1:] go "
    "with logits[:, :-1] of both networks, and a wider vocabulary is cut at its end, before the softmax",
)
def alignment(trace: Trace) -> Verdict:
    """Each sample is taught by the teacher's answer to that very sample.

    Fails when all rows of the student's batch are one row and what teaches them differs, when the gradient of the term
    fits the teacher's rows in another order (the permutation is the proof), when an index moves the teacher's rows on
    every way to the student's features, when the teacher is shown the batch's rows in another order, when a student
    that has grown by classes learns the teacher's as its others, or when stored answers differ from what the teacher
    was seen to say of the same samples. Of a language model also when the
    labels' loss is not shifted, so that each place is asked for the word that it is shown, when an answer over more
    words was cut at the wrong end, and when stored answers foretell other words than the next ones of the texts that
    they are used for.
    """
    if not trace.losses.sights:
        return no_distillation(trace)
    alike = [s for s in trace.losses.sights[:_ALIKE] if s.one_row is not None]  # the first are read closely
    if len(alike) == _ALIKE:
        return failed(
            f"all {alike[0].one_row} rows that the student is shown are one and the same row, and the answers that "
            "teach them differ",
            {"rows": alike[0].one_row},
            alike[0].where,
            mend="keep a copy of each sample: obs.copy(), tensor.clone(); torch.from_numpy and views share the memory "
            "that the next sample is written to",
        )
    proven = False
    for sight in trace.losses.sights:
        turned = sight.inputs.permutation if sight.inputs is not None and sight.inputs.relation == "permuted" else None
        for e in sight.explanations:
            taught = e.permutation
            if turned and taught and all(turned[j] == i for i, j in enumerate(taught)):  # turned there and back again
                proven = True
                continue
            if e.block is not None and e.block[0] != e.block[1]:
                return _other_classes(sight, e.block, e.classes)
            if taught is not None or (turned is not None and e.form not in _UNREAD):
                return _moved(sight, e, taught or turned or [])
            proven = proven or (e.form not in _UNREAD and e.placed and not sight.cached)
        for t in sight.terms:
            unread = all(e.form == "nothing" for e in sight.explanations)
            if t.permutation or (turned is not None and t.kind == "feature" and unread):
                return failed(
                    "the teacher's features meet the student's in another order of rows", {"term": t.name}, t.where
                )
        fitted = any(e.form not in _UNREAD and e.placed for e in sight.explanations)  # row by row, so in place
        met = [t for t in sight.terms if t.reaches_student and (t.kind == "feature" or not fitted)]
        if sight.reindexed and met and sight.inputs is not None and sight.inputs.relation in _SAME_ROWS:
            what = "features" if met[0].kind == "feature" else "answers"
            return failed(
                f"the teacher's answers are read in another order of rows before they meet the student's {what}",
                {"term": met[0].name},
                met[0].where,
            )
        if turned is not None and not sight.explanations and not sight.terms:
            return failed(
                "the teacher is shown the batch's rows in another order",
                {"permutation": turned[:32]},
                sight.teacher_where or sight.where,
            )
        if sight.cached_rows is not None:
            rows_seen, differ = sight.cached_rows
            if differ > max(1, _STALE * rows_seen):
                return failed(
                    f"{differ} of {rows_seen} stored answers are what the teacher said of other samples",
                    {"recognised": rows_seen, "differing": differ},
                    sight.where,
                )
            proven = True
    if (standing := trace.losses.standing) is not None and standing.windows >= _STANDING:
        return failed(
            f"the teacher's side of the term ({standing.name}) is its answer to an earlier batch: bit for bit the same "
            f"in {standing.windows + 1} steps whose batches differ",
            {"term": standing.name, "steps": standing.windows + 1},
            standing.where,
            mend="empty the list that the hooks fill before each forward of the teacher",
        )
    if (words := cut_wrongly(trace) or copies_its_input(trace) or foretell(trace)) is not None:
        return words
    if proven:
        return passed("each row is taught by the teacher's answer to it")
    if all(s.cached for s in trace.losses.sights):
        return undecided(
            "no-teacher-seen", "the answers are stored, and the teacher was not seen to give them to these samples"
        )
    same_rows = any(s.inputs is not None and s.inputs.relation in _SAME_ROWS for s in trace.losses.sights)
    read = [e.form for s in trace.losses.sights for e in s.explanations if e.form != "nothing"]
    met = [t for s in trace.losses.sights for t in s.terms if t.kind == "feature" and t.reaches_student]
    moved = any(s.reindexed for s in trace.losses.sights)
    if same_rows and not read and not moved and met and all(t.whole_rows for t in met if t.name in DIRECT):
        return passed("teacher and student are shown the same rows, and no index moves them on the way to the loss")
    return undecided(
        "form-not-recognised", "the distillation term was not recognised, so its rows could not be told apart"
    )


def _other_classes(sight: Sight, block: tuple[int, int], classes: int) -> Verdict:
    """Tell which classes of a student that has grown its teacher's are held against, and which they are."""
    held, own = block
    return failed(
        f"the teacher's {classes} classes are the student's from {own} on, where both gave the very same answers; they "
        f"are held against its classes from {held} on",
        {"held_against": held, "own": own, "classes": classes},
        sight.where,
        mend=f"cut the student's answers to its classes {own} to {own + classes - 1}",
    )


def _moved(sight: Sight, e: Explanation, taught: list[int]) -> Verdict:
    """Tell which row is taught by another row's answer."""
    rows = e.permuted_rows if e.permuted_rows is not None else list(range(len(taught)))
    moved = [(i, j) for i, j in zip(rows, taught, strict=True) if i != j]
    observed = {"permutation": taught[:32], "rows": len(taught)}
    if e.shift is not None:
        ahead = f"i {'+' if e.shift > 0 else '-'} {abs(e.shift)}"
        said = (
            f"the student's token i is taught by the teacher's {ahead}, in {len(moved)} of {len(taught)} rows looked at"
        )
        return failed(said, {**observed, "shift": e.shift}, sight.where)
    (a, of_a), (b, of_b) = moved[:2] if e.permuted_rows is not None else [(i, taught[i]) for i in range(2)]
    return failed(
        f"{len(moved)} of {len(taught)} rows are taught by the teacher's answer to another sample: row {a} by "
        f"that to row {of_a}, row {b} by that to row {of_b}",
        observed,
        sight.where,
    )


@audit(
    "KD332",
    severity="error",
    phase="end",
    mend="split by sample id once, and build every loader from that split",
)
def split_hygiene(trace: Trace) -> Verdict:
    """No sample is both trained on and evaluated.

    Decided where the loaders' data sets are torch's own (subsets of one set, tensors), or their samplers draw from
    indices that are told. Accuracy on the training set itself, the very same data set object, is not meant; but where
    a script that ended by itself evaluated nothing that it did not train on, what it reports is no accuracy.
    """
    if trace.data.split_overlap is None:
        return undecided(
            "out-of-scope",
            "no evaluation loader over a subset or tensors was seen",
            "kdbench.check_split(train, evaluation)",
        )
    size, both, how, sure = trace.data.split_overlap
    observed = {"evaluation": size, "also_trained_on": both, "seen": how}
    if both:
        severity: Severity | None = None if sure else "warn"
        return failed(
            f"{both} of {size} samples of an evaluation set are trained on too ({how})",
            observed,
            trace.data.split_where,
            severity,
        )
    return passed(f"none of {size} evaluation samples is trained on ({how})", observed)
