"""The report's first screen: what the audits and controls say of the code, and each comparison in a line."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kdbench.harness.analysis.because import Because, Shared, shared
from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, ControlsRow, TeacherRow
from kdbench.harness.analysis.study_table import Trials
from kdbench.harness.records.record import Result
from kdbench.harness.records.spec import Spec
from kdbench.kd.methods import METHODS

# -- the code


@dataclass(frozen=True)
class CodeLine:
    """One thing that was declared of the code, and whether it is so."""

    word: str
    "yes, NO, undecided, or not yet."
    text: str
    because: Sequence[Shared] = ()
    "Of a NO: why."


def code_lines(
    study: Trials,
    arms: Sequence[ArmRow],
    teachers: Sequence[TeacherRow],
    reasons: Sequence[Because],
    seen: ControlsRow | None,
) -> list[CodeLine]:
    """Return what the audits and then the controls say of the code, each NO with its reasons."""
    teachers_why = [one for one in reasons if one.whose == "teacher"]
    said = []
    if teachers_why:
        said.append(_line(teachers_why, len(teachers), "teachers are as declared"))
    for bugged, text in (
        (False, "corrected arms are proven clean"),
        (True, "bugged arms were caught by exactly the audits that their bug names"),
    ):
        rows = [row for row in arms if (row.fault is not None) == bugged]
        bad = [one for one in reasons if one.whose == "arm" and (one.fault is not None) == bugged]
        if rows:
            said.append(_line(bad, len(rows), text))
    return said + _controls(study, seen, [one for one in reasons if one.whose == "control"])


def _line(bad: Sequence[Because], of: int, text: str) -> CodeLine:
    """Return the line of so many arms, with why some of them are not as declared."""
    text = f"{of - len({one.of for one in bad})} of {of} {text}"
    if bad and all(one.kind == "unfinished" for one in bad):
        return CodeLine("not yet", text)
    return CodeLine("NO" if bad else "yes", text, shared(bad))


def _controls(study: Trials, seen: ControlsRow | None, reasons: Sequence[Because]) -> list[CodeLine]:
    """Return what the controls showed, each NO with its reasons."""
    if seen is None:
        return [CodeLine("NO", "no controls were run, so nothing shows that this study can see a bug")]
    verdict = seen.again.verdict if seen.again else "missing"
    how = {
        "identical": ("yes", "the same seed trained twice gave the same weights, bit for bit"),
        "differs": ("NO", "the same seed trained twice gave different weights"),
        "undecidable": ("undecided", "the same seed trained twice gave other weights; this device may do so"),
        "missing": ("not yet", "the run that trains the same seed twice has not ended"),
    }  # fmt: skip
    said = [CodeLine(*how[verdict], shared(one for one in reasons if one.kind == "not-repeated"))]
    if seen.positive is None:
        return said
    name = seen.positive.fault
    if any(_running(trials) for trials in study.controls.values()):
        return [*said, CodeLine("not yet", f"the severe control bug ({name}) is still training")]
    why = [one for one in reasons if one.kind != "not-repeated"]
    by_audit = (
        "was caught by exactly its audit" if seen.positive.seen_by_audit else "was NOT caught by exactly its audit"
    )
    entry = seen.positive.comparison
    shows = "shows in accuracy" if seen.positive.seen_in_accuracy else "does NOT show in accuracy"
    by = "" if entry.difference_pp is None else f" ({entry.difference_pp:+.1f} pp, {entry.verdict})"
    good = seen.positive.seen_by_audit and seen.positive.seen_in_accuracy
    text = f"the severe control bug ({name}) {by_audit} and {shows}{by}"
    return [*said, CodeLine("yes" if good else "NO", text, shared(why))]


def _running(trials: Mapping[int, tuple[Spec, Result | None]]) -> bool:
    return any(result is None for _, result in trials.values())


# -- the comparisons


def counted(comparisons: Sequence[ComparisonRow]) -> str:
    """Return how often each verdict came: 1 different, lower; 2 undecided."""
    counts = Counter(c.told for c in comparisons)
    return "; ".join(f"{number} {verdict}" for verdict, number in sorted(counts.items()))


_OPEN = ("undecided", "undefined")
_MOST_CLAIMS = 8


@dataclass(frozen=True)
class Claim:
    """What is said of one comparison, or of several of a kind, in a line."""

    verdict: str
    open: bool
    "Whether these seeds decided nothing."
    text: str
    power: str = ""
    "Of an open one, what these seeds could have seen."


def claims(comparisons: Sequence[ComparisonRow]) -> list[Claim]:
    """Return the comparisons in a line each; of many, a line for each method or bug: one screen holds it."""
    pairs = len({c.pair for c in comparisons})
    if len(comparisons) <= _MOST_CLAIMS:
        return [_claim(c, pairs) for c in comparisons]
    groups: dict[str, list[ComparisonRow]] = {}
    for c in comparisons:
        groups.setdefault(METHODS[c.b].title if c.b in METHODS else c.b, []).append(c)
    rows = []
    for name, of in groups.items():
        if len(of) == 1:
            rows.append(_claim(of[0], pairs))
            continue
        found = sorted(c.difference_pp for c in of if c.difference_pp is not None)
        span = f": {found[0]:+.2f} to {found[-1]:+.2f} pp" if found else ""
        verdict = of[0].told if len({c.told for c in of}) == 1 else counted(of)
        open_ = all(c.verdict in _OPEN for c in of)
        rows.append(Claim(verdict, open_, f"{name}, {len(of)} comparisons{span}"))
    return rows


def _claim(c: ComparisonRow, pairs: int) -> Claim:
    """Return a comparison in a few words, with its verdict; of an open one, what these seeds could have seen."""
    method, where = METHODS[c.method].title, f"{c.pair}, " if pairs > 1 else ""
    what = f"{where}{method} against the baseline" if c.b == c.method else f"{where}{c.b} in {method}"
    low_high = "" if c.ci95_pp is None else " [{:+.2f}, {:+.2f}]".format(*c.ci95_pp)
    by = "" if c.difference_pp is None else f": {c.difference_pp:+.2f} pp{low_high}"
    power = f"differences under {c.mde_pp:.1f} pp are easily missed" if c.mde_pp is not None else ""
    if c.ci95_pp is not None and not c.ci95_pp[0] <= 0 <= c.ci95_pp[1] and c.holm_p is not None:
        power = f"the interval excludes 0, but p is {c.holm_p:.2g} when adjusted for all comparisons of its family"
    power = power if c.verdict == "undecided" else ""
    return Claim(c.told, c.verdict in _OPEN, f"{what}{by}", power)
