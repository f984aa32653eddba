"""A study in one or two sentences that a reader can quote: whether the code was right, and what distillation gained."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from kdbench.harness.analysis.because import Because, shared
from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, ControlsRow
from kdbench.kd.methods import METHODS

_MOST_NAMED = 4
"Comparisons up to which each is named; of more only the verdicts are counted."


Mark = Literal["good", "open", "bad"]


class Headline(NamedTuple):
    """The sentences, and how they are to be marked."""

    mark: Mark
    "open: the code is not proven clean, or nothing shows that the study could see a bug."
    text: str


def headline(
    arms: Sequence[ArmRow],
    reasons: Sequence[Because],
    gains: Sequence[ComparisonRow],
    bugs: Sequence[ComparisonRow],
    seen: ControlsRow | None,
    margin_pp: float,
) -> Headline:
    """Return the sentences: first the code, then the gains, or without gains the bugs.

    Nothing is said of gains while the code is not proven clean: then the accuracies are no evidence.
    """
    doubt = _doubt(reasons) or _doubt_of_controls(seen)
    if doubt is not None:
        return doubt
    good = "Code clean" if any(arm.fault is None for arm in arms) else "Every planted bug was caught"
    said = [f"{good}." if seen is not None else f"{good}, but no controls were run."]
    said += _gains(gains, margin_pp) if gains else _bugs(bugs)
    blind = seen is not None and seen.positive is not None and not seen.positive.seen_in_accuracy
    if blind:
        said.append("These seeds do not show even the severe control bug in accuracy.")
    return Headline("open" if blind or seen is None else "good", " ".join(said))


# -- the code


_DOUBTS: dict[str, tuple[Mark, str, str]] = {
    "failed": ("bad", "Bug found", " Fix it before you quote an accuracy."),
    "broken": ("open", "Code not proven clean", ""),
    "silent": ("open", "Code not proven clean", ""),
}
"By what is not as declared: the mark, how the sentence begins, and what follows it. All others are `Not as declared`."
_WEAK: tuple[Mark, str, str] = ("open", "Teacher too weak", " Train the teacher longer before you quote an accuracy.")


def _doubt(reasons: Sequence[Because]) -> Headline | None:
    """Return why the accuracies of these arms are not to be quoted yet; None if all are as declared."""
    found = [one for one in reasons if one.whose != "control"]
    if not found:
        return None
    every = shared(found)
    reason, rows = every[0]
    arms = _and([*rows[:2], *([f"{len(rows) - 2} more"] if len(rows) > 2 else [])])
    more = len(every) - 1
    rest = f" {more} other {'thing is' if more == 1 else 'things are'} not as declared." if more else ""
    if reason.kind in ("stopped", "unfinished"):
        count = sum(len(one.seeds) for one in found if one.kind == reason.kind)
        what = "could not run" if reason.kind == "stopped" else "still to run"
        return Headline("open", f"Not finished: {count} {'trial' if count == 1 else 'trials'} {what}.")
    mark, what, then = _WEAK if reason.weak_teacher else _DOUBTS.get(reason.kind, ("bad", "Not as declared", ""))
    why = f": {_sentence(reason.message)}" if reason.message else "."
    return Headline(mark, f"{what}: {reason.what} in {arms}{why}{then}{rest}")


def _doubt_of_controls(seen: ControlsRow | None) -> Headline | None:
    """Return why the controls leave the accuracies in doubt; None if they do not, or were not run."""
    if seen is None:
        return None
    again = seen.again.verdict if seen.again is not None else None
    if again == "differs":
        return Headline("bad", "Not reproducible: the same seed trained twice gave different weights.")
    if seen.positive is not None and not seen.positive.seen_by_audit:
        name = seen.positive.fault
        return Headline("bad", f"Not as declared: exactly its own audit should catch the severe control bug ({name}).")
    if again == "missing":
        return Headline("open", "Not finished: the control that trains one seed twice has not ended.")
    return None


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


# -- the gains, and the bugs


def _gains(gains: Sequence[ComparisonRow], margin: float) -> list[str]:
    """Return what is said of each method's gain, one sentence a verdict; of many only how often each verdict came."""
    if len(gains) > _MOST_NAMED:
        counts = [f"{_count(gains, told)} {told}" for told in sorted({g.told for g in gains})]
        return [f"The {len(gains)} gains over the baseline are {_and(counts)}, at {_seeds(gains)} seeds."]
    of = {verdict: [g for g in gains if g.verdict == verdict] for verdict in ("different", "both", "equivalent")}
    said = [_differs(g, gains, margin) for verdict in ("different", "both") for g in of[verdict]]
    if of["equivalent"]:
        verb = "is" if len(of["equivalent"]) == 1 else "are"
        said.append(
            f"{_names(of['equivalent'], gains)} {verb} equivalent to the baseline within ±{margin:g} pp "
            f"at {_seeds(of['equivalent'])} seeds."
        )
    undecided = [g for g in gains if g.verdict == "undecided"]
    if undecided:
        said.append(_undecided(undecided, gains, margin))
    said += [
        f"{_possessive([g], gains)} gain cannot be computed" + (f": {_sentence(g.warnings[0])}" if g.warnings else ".")
        for g in gains
        if g.verdict == "undefined"
    ]
    return said


def _differs(g: ComparisonRow, gains: Sequence[ComparisonRow], margin: float) -> str:
    assert g.difference_pp is not None  # a verdict that it differs is made of it
    verb = "gains" if g.difference_pp > 0 else "loses"
    low_high = " (95% interval {:+.2f} to {:+.2f})".format(*g.ci95_pp) if g.ci95_pp else ""
    small = f", less than the margin of {margin:g} pp" if g.verdict == "both" else ""
    return f"{_names([g], gains)} {verb} {abs(g.difference_pp):.2f} pp against the baseline{low_high}{small}."


def _undecided(some: Sequence[ComparisonRow], gains: Sequence[ComparisonRow], margin: float) -> str:
    """Return the sentence on undecided gains, with the seeds that would decide all of them, if that is known."""
    seeds = [g.seeds_for_power_80 for g in some]
    need = max((n for n in seeds if n is not None), default=0)
    known = None not in seeds and need > max(n for g in some for n in g.n)
    cost = f"; about {need} would decide ±{margin:g} pp" if known else ""
    noun, verb = ("gain", "is") if len(some) == 1 else ("gains", "are")
    return f"{_possessive(some, gains)} {noun} {verb} undecided at {_seeds(some)} seeds{cost}."


def _bugs(bugs: Sequence[ComparisonRow]) -> list[str]:
    """Return how often the bugs changed the accuracy, for a study without gains."""
    if not bugs:
        return ["There are no two arms to compare."]
    counts = [f"{told} in {_count(bugs, told)}" for told in sorted({b.told for b in bugs})]
    if len(bugs) == 1:
        return [f"The bugged arm was caught; against the corrected one its accuracy is {bugs[0].told}."]
    return [f"All {len(bugs)} bugged arms were caught; against the corrected ones the accuracy is {_and(counts)}."]


def _count(rows: Sequence[ComparisonRow], told: str) -> int:
    return sum(row.told == told for row in rows)


def _names(some: Sequence[ComparisonRow], gains: Sequence[ComparisonRow]) -> str:
    """Return the methods' titles, with the pair where the study has several."""
    several = len({g.pair for g in gains}) > 1
    return _and([METHODS[g.method].title + (f" ({g.pair})" if several else "") for g in some])


def _possessive(some: Sequence[ComparisonRow], gains: Sequence[ComparisonRow]) -> str:
    several = len({g.pair for g in gains}) > 1
    return _and([f"{METHODS[g.method].title}'s" + (f" ({g.pair})" if several else "") for g in some])


def _seeds(rows: Sequence[ComparisonRow]) -> str:
    sizes = sorted({n for row in rows for n in row.n})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
