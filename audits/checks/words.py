"""What language models are taught word by word: by which words of the teacher, and at which places."""

from kdbench.audits.checks.catalogue import Verdict, failed, passed
from kdbench.audits.checks.reading import explained, term_place
from kdbench.audits.infer.tokens import Tokens
from kdbench.audits.trace import Sight, Trace

Seen = list[tuple[Sight, Tokens]]

FEWEST = 4
"Places from which a slip is told: one or two may be a matter of where a text begins."
_LIKELIER = 0.5
"By how much likelier, in the mean logarithm, the teacher must find the next word than the word in its own place."
_SUM = 2e-2
"Distance from one up to which what probabilities sum to is a small matter: half precision over a thousand classes."
_TOLD = 16
"Words that tell so."
_FORETOLD = 32
"Words that tell whether stored answers are those to these texts."
_RIGHT, _WRONG, _BY_FAR = 0.5, 0.25, 2.0
"""Of the likelihood that stored answers give to a word drawn as they say (the mean sum of their squares, which is what
calibrated answers give the right word, whatever the texts), the part from which a word is meant: a teacher may be twice
as sure as right. Below the other part it is not: none is four times as sure. And by how much one word must be likelier
than another."""
_LEARNED = 3.0
"Times chance that a live teacher must be sure of a word, so that what it finds likely says something."
_ELSEWHERE = 4.0
"By how much the right answers find a text's own words likelier than those of others; neighbours in a list are alike."
_HANDED = 0.02
"Part of the places that may go against the labels that a loss is handed: a gradient may round to nothing."


def tokens_seen(trace: Trace) -> Seen:
    return [(s, t) for s in trace.losses.sights for t in s.tokens]


def cut_wrongly(trace: Trace) -> Verdict | None:
    """Judge answers over more words than the student's, which were cut at the wrong end, or after the softmax; and a
    student's that were filled up with zeros."""
    for s, e in explained(trace):
        observed = {"words": e.classes, "teacher_words": e.wider}
        if e.cut == "front":
            return failed(
                f"the teacher's answer over {e.wider} words is cut at its front: each of the student's {e.classes} "
                f"words is taught by the word {e.wider - e.classes} further on",
                observed,
                term_place(trace, s),
            )
        if e.cut == "filled" and e.mass is not None:
            return failed(
                f"the student's logits over {e.classes} words are filled up with zeros to the teacher's {e.wider}: "
                f"words that it does not have take {e.mass:.3g} of its probability",
                {**observed, "lost": e.mass},
                term_place(trace, s),
                None if e.mass > _SUM else "warn",
                mend="cut the teacher's logits at their end instead: teacher[..., :student.shape[-1]]",
            )
        if e.cut == "after" and e.mass is not None:
            return failed(
                f"the teacher's probabilities over {e.wider} words are cut to {e.classes} after the softmax: they sum "
                f"to {e.mass:.6g}",
                {**observed, "sum": e.mass},
                term_place(trace, s),
                None if abs(e.mass - 1) > _SUM else "warn",
                mend="cut the logits, then take the softmax",
            )
    return None


def copies_its_input(trace: Trace) -> Verdict | None:
    """Judge labels that are the words in their own place, where the teacher tells the word that follows."""
    for s, t in tokens_seen(trace):
        c = t.copied
        if c is None or c.tokens < _TOLD or c.following - c.own < _LIKELIER:
            continue
        return failed(
            "the labels' loss is not shifted: each place is asked for the word that it is shown, so the student learns "
            f"to copy its input, and the teacher tells the next word (log-probability {c.following:.2g} in the mean, "
            f"against {c.own:.2g} of the word itself): labels[:, 1:] belong to logits[:, :-1]",
            {"own": c.own, "following": c.following, "tokens": c.tokens},
            c.where or s.where,
        )
    return None


def foretell(trace: Trace) -> Verdict | None:
    """Judge answers by what they say of the texts that they are used for; None where that decides nothing.

    A live teacher's are judged where it is shown the words at other places than the student, as behind a word that
    begins a text: shown the same, it may well find likely what it is shown.
    """
    seen = [(s, t.foretold) for s, t in tokens_seen(trace) if t.foretold is not None]
    stored = all(f.stored for _, f in seen)
    tokens = sum(f.tokens for _, f in seen)
    if tokens < _FORETOLD:
        return None
    if not stored and not all(f.by_labels and s.inputs is not None and s.inputs.relation == "shapes" for s, f in seen):
        return None

    def mean(name: str) -> float:
        return float(sum(getattr(f, name) * f.tokens for _, f in seen)) / tokens

    following, sure = mean("following"), mean("sure")
    said = {name: mean(name) for name in ("own", "following", "beyond", "elsewhere", "sure")}
    where, by_labels = term_place(trace, seen[0][0]), all(f.by_labels for _, f in seen)
    for name, sign, word in (("beyond", "+", "the word after the next one"), ("own", "-", "the word in its own place")):
        told = said[name]
        if told >= _RIGHT * sure and told > _BY_FAR * following and (by_labels or name == "beyond"):
            if not stored and sure < _LEARNED * seen[0][1].chance:
                break  # a teacher that knows nothing says nothing of where its answers belong
            whose = "stored answer" if stored else "teacher's answer"
            return failed(
                f"the student's token i is taught by the {whose} to i {sign} 1: the answers find {word} likely "
                f"({told:.2g} in the mean) and not the next one ({following:.2g})",
                {**said, "tokens": tokens},
                where,
            )
    if not stored:
        return None
    if following >= _RIGHT * sure and following > _BY_FAR * max(said["elsewhere"], said["beyond"]):
        return passed(f"the stored answers foretell the next words of these texts ({following:.2g} in the mean)")
    if by_labels and following < _WRONG * sure and following < _ELSEWHERE * said["elsewhere"]:
        return failed(
            f"the stored answers are those to other texts: they find the next words of these hardly likelier than "
            f"those of others ({following:.2g} and {said['elsewhere']:.2g} in the mean); answers as sure as these are "
            f"find the right ones likely ({sure:.2g})",
            {**said, "tokens": tokens},
            where,
        )
    return None


def by_labels_handed(trace: Trace) -> Verdict | None:
    """Judge a loss with a backward of its own by the labels that it is handed: they say which tokens it is to teach."""
    handed = [(s, e.handed) for s, e in explained(trace) if e.handed is not None]
    for s, h in handed:
        if h.untaught >= FEWEST and h.untaught > _HANDED * h.labelled:
            return failed(
                f"the loss is handed labels, and {h.untaught} of {h.labelled} labelled places get no gradient of it"
                + (f", and {h.taught} of {h.left_out} get one that the labels leave out" if h.taught else ""),
                {"labelled": h.labelled, "undistilled": h.untaught, "left_out": h.left_out, "distilled": h.taught},
                term_place(trace, s),
                mend="cut the labels where the hidden states are cut: labels[start:stop] with hidden[start:stop]",
            )
        if h.taught >= FEWEST and h.taught > _HANDED * h.left_out:
            return failed(
                f"the loss is handed labels, and {h.taught} of {h.left_out} places that they leave out get a gradient "
                "of it. That can be a choice: then waive it",
                {"left_out": h.left_out, "distilled": h.taught},
                term_place(trace, s),
                "warn",
            )
    if handed and len(handed) == len([1 for s in trace.losses.sights if s.explanations]):
        return passed("the tokens that are distilled are those whose labels the loss is handed")
    return None
