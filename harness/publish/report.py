"""A study as a page: whether the code was clean, what the accuracies say, and how sure that is.

Everything is read from the records. The page is one file and works offline.
"""

import calendar
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from kdbench.harness import faults, loading
from kdbench.harness.analysis import compare, selection_bias, stats
from kdbench.harness.analysis.arms import summary, teacher_row, with_effects
from kdbench.harness.analysis.because import Because, because
from kdbench.harness.analysis.best import best_of_pairs
from kdbench.harness.analysis.controls import controls
from kdbench.harness.analysis.headline import headline
from kdbench.harness.analysis.over_pairs import OVER_PAIRS, over_pairs
from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, TeacherRow
from kdbench.harness.analysis.study_table import Trials, commands, order, read_study, scores, teacher_folders
from kdbench.harness.options import escaped
from kdbench.harness.plan.plan import Arm
from kdbench.harness.publish import figures, first_screen, paper
from kdbench.harness.records.record import Metrics, Result, StudyFolder
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS

_MEANING = {
    "different": "a difference of this size would be rare if there were none",
    "equivalent": "the difference is smaller than the margin",
    "both": "there is a difference, and it is smaller than the margin",
    "undecided": "these seeds cannot tell; this does not mean that there is no effect",
    "undefined": "the comparison cannot be made; the notes below the table say why",
}


_DRAWN = ("curve.jsonl", "norms.csv", "test_curve.jsonl")
"What a report draws beside the results: none of it is drawn where it is not what the trial wrote."
_EFFECTS = {
    "invalid": "the decision that the bug replaces was never asked for, so the arm says nothing of the bug",
    "dormant": "the bug changed no weight and no score",
    "latent": "the bug changed the weights, and the accuracy is equivalent at the margin",
    "visible": "the accuracy differs",
    "undecided": "the bug changed the weights, and these seeds cannot tell what that does to the accuracy",
}


def read(study: Trials, allowed: Sequence[str] = ()) -> dict[str, Any]:
    """Return everything that the page shows of a study; arms may differ in what is `allowed`, which it then notes."""
    compare.check_allowed((spec for trials in study.arms.values() for spec, _ in trials.values()), allowed)
    for spec, result in (trial for trials in study.arms.values() for trial in trials.values()):
        if result is not None:
            study.folder.trial(spec.key).refuse_changed(result, _DRAWN)
    arms = summary(study)
    if not any(arm.mean is not None for arm in arms):
        raise InputError(f"{study.folder.path.name} has no finished trial yet; kdbench status shows how far it is")
    bugs = compare.compare_arms(study, compare.bug_pairs(study.arms), allowed, refuse=False)
    gains = compare.compare_arms(study, compare.gain_pairs(study.arms), allowed, refuse=False)
    arms = with_effects(arms, bugs)
    teachers, seen = _teachers(study), controls(study, allowed)
    reasons = because(study, [folder for _, folder in teacher_folders(study)], seen)
    found = {
        "study": study.folder.path.name,
        "headline": headline(arms, reasons, gains, bugs, seen, study.decision.margin_pp),
        "decision": study.decision,
        "arms": arms,
        "bugs": bugs,
        "gains": gains,
        "over_pairs": over_pairs(gains),
        "over_pairs_notes": OVER_PAIRS,
        "best": best_of_pairs(gains),
        "controls": seen,
        "teachers": teachers,
        "reasons": _by_row(reasons),
        "capacity": _capacity(study, gains, teachers),
        "fidelity": _fidelity(study),
        "per_class": _per_class(study, teachers),
        "published": paper.beside(study, arms, teachers, gains),
        "norms": paper.norms(study),
        "choice": selection_bias.read(study),
        "environment": _environment(study),
        "commands": commands(study.folder),
        "command": _command(study, allowed),
        "setting": _setting(study),
        "about": _about(study),
        "state": _state(arms),
    }
    claims = [
        {"title": title, "summary": first_screen.counted(rows), "rows": first_screen.claims(rows)}
        for title, rows in (("Does distillation gain anything?", gains), ("Do the bugs matter?", bugs))
    ]
    meanings = {c.verdict: _MEANING[c.verdict] for c in [*gains, *bugs]}
    code = first_screen.code_lines(study, arms, teachers, reasons, seen)
    return {**found, "claims": claims, "meanings": meanings, "code": code}


def _command(study: Trials, allowed: Sequence[str]) -> str:
    words = [f"kdbench report {study.folder.path.name}{loading.as_options('faults', 'methods', whole=False)}"]
    return " ".join([*words, *(f"--allow-difference {name}" for name in allowed)])


def _state(arms: Sequence[ArmRow]) -> dict[str, int]:
    scored = [value for arm in arms for value in arm.test_accuracy]
    return {"trials": len(scored), "missing": sum(value is None for value in scored)}


def _teachers(study: Trials) -> list[TeacherRow]:
    rows = [teacher_row(arch, folder) for arch, folder in teacher_folders(study)]
    return sorted(rows, key=lambda row: (row.arch, row.fault or "", row.seed))


def _by_row(reasons: Sequence[Because]) -> dict[tuple[str, str, str | None], list[Because]]:
    """Return the reasons of each teacher and arm."""
    found: dict[tuple[str, str, str | None], list[Because]] = {}
    for one in reasons:
        if one.whose != "control":
            found.setdefault((one.pair, one.method, one.fault), []).append(one)
    return found


@dataclass(frozen=True)
class Capacity:
    """A pair's teacher, its baseline, their gap, and which method gained most; in percent, and percentage points."""

    pair: str
    teacher: float | None
    baseline: float | None
    gap: float | None
    gains: dict[str, float]
    "By the method's title."
    best: str | None
    verdict: stats.Verdict | None
    "On the best."


def _capacity(study: Trials, gains: Sequence[ComparisonRow], teachers: Sequence[TeacherRow]) -> list[Capacity]:
    """Return by pair: teacher, baseline, their gap, and which method gained most."""
    rows = []
    by_arch = {t.arch: t.test_accuracy for t in teachers if not t.fault}
    for pair in dict.fromkeys(arm.pair for arm in study.arms):
        teacher = by_arch.get(pair.split("-")[0])
        arm = study.arms.get(Arm(None, pair, "baseline"))
        values = scores(arm) if arm else []
        baseline = fmean(values) if values else None
        mine = {g.method: g.difference_pp for g in gains if g.pair == pair and g.difference_pp is not None}
        best = max(mine, key=mine.__getitem__, default=None)
        gap = teacher - baseline if teacher is not None and baseline is not None else None
        rows.append(
            Capacity(
                pair,
                teacher,
                baseline,
                gap,
                gains={METHODS[method].title: gain for method, gain in mine.items()},
                best=METHODS[best].title if best is not None else None,
                verdict=next((g.verdict for g in gains if (g.pair, g.method) == (pair, best)), None),
            )
        )
    return rows


def _fidelity(study: Trials) -> list[dict[str, Any]]:
    """Return how close each arm's students come to their teacher: agreement in percent, KL in nats; mean and sd."""
    rows = []
    for arm in sorted(study.arms, key=order):
        seen = [m for m in _metrics(study, arm) if m.agreement is not None]
        if seen:
            values = {name: [getattr(m, name) for m in seen] for name in ("agreement", "kl_t1", "kl_t4")}
            spread = {name: (fmean(of), stdev(of) if len(of) > 1 else None) for name, of in values.items()}
            rows.append({"pair": arm.pair, "method": METHODS[arm.method].title, "arm": arm.label, **spread})
    return rows


def _metrics(study: Trials, arm: Arm) -> list[Metrics]:
    return [r.metrics for _, r in study.arms.get(arm, {}).values() if r is not None and r.metrics is not None]


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MOST_CLASSES = 12


def _per_class(study: Trials, teachers: Sequence[TeacherRow]) -> dict[str, Any] | None:
    """Return the corrected arms' accuracy by class, mean over seeds, with the difference from the pair's baseline.

    Of more classes than a table can bear, those whose difference is largest in any arm.
    """
    means = {arm: _class_means(_metrics(study, arm)) for arm in sorted(study.arms, key=order) if not arm.fault}
    means = {arm: values for arm, values in means.items() if values}
    if not means:
        return None
    largest = [0.0] * max(map(len, means.values()))
    rows: list[dict[str, Any]] = []
    for teacher in teachers:
        result = study.folder.trial(teacher.key).result()
        if not teacher.fault and result is not None and result.metrics is not None:
            alone = [(value, None) for value in result.metrics.per_class]
            rows.append({"pair": teacher.arch, "method": "Teacher", "cells": alone})
    for arm, values in means.items():
        base = means.get(Arm(None, arm.pair, "baseline"), []) if arm.method != "baseline" else []
        less = [None if a is None or b is None else a - b for a, b in zip(values, base, strict=False)]
        for i, difference in enumerate(less):
            largest[i] = max(largest[i], abs(difference or 0.0))
        cells = [(value, less[i] if less else None) for i, value in enumerate(values)]
        rows.append({"pair": arm.pair, "method": METHODS[arm.method].title, "cells": cells})
    count = len(largest)
    shown = sorted(sorted(range(count), key=lambda i: (-largest[i], i))[:_MOST_CLASSES])
    names = _CIFAR10 if _setting(study)["data"] == "cifar10" else [str(i) for i in range(count)]
    for row in rows:
        cells = [row["cells"][i] for i in shown]
        row["cells"] = [{"mean": mean, "less": less, "heat": _heat(less, max(largest))} for mean, less in cells]
    return {"classes": [names[i] for i in shown], "of": count, "rows": rows}


def _class_means(metrics: list[Metrics]) -> list[float | None]:
    by_class = zip(*(m.per_class for m in metrics), strict=True)
    return [fmean(v for v in of if v is not None) if any(v is not None for v in of) else None for of in by_class]


def _heat(difference: float | None, largest: float) -> str:
    """Return the name of a cell's colour: up or down, in three steps of the largest difference."""
    step = math.ceil(3 * abs(difference) / largest) if difference and largest else 0
    return f"{'up' if difference and difference > 0 else 'down'}{step}" if step else ""


def _setting(study: Trials) -> dict[str, Any]:
    """Return in what the trials stand, each point with all its values."""
    specs = [spec for by_seed in study.arms.values() for spec, _ in by_seed.values()]
    values: dict[str, list[Any]] = {
        "data": [spec.dataset for spec in specs],
        "images": [f"{spec.recipe.train_size:,}" for spec in specs],
        "epochs": [spec.recipe.epochs for spec in specs],
        "width": [spec.recipe.base_width for spec in specs],
        "seeds": [len(by_seed) for by_seed in study.arms.values()],
    }
    return {name: " or ".join(map(str, dict.fromkeys(of))) for name, of in values.items()}


def _about(study: Trials) -> dict[str, str]:
    """Return when, with which kdbench and on what the trials ran; what the records do not say is left out."""
    results = [r for by_seed in study.arms.values() for _, r in by_seed.values() if r is not None]
    days = sorted({str(r.times["started"])[:10] for r in results if "started" in r.times})
    found = {
        "run on": " to ".join(_day(day) for day in dict.fromkeys([*days[:1], *days[-1:]])),
        "kdbench": ", ".join(_values(results, "kdbench")),
        "device": ", ".join(_values(results, "device_name")),
    }
    return {name: said for name, said in found.items() if said}


def _day(iso: str) -> str:
    """Return a day as it is read: 29 November 2026."""
    year, month, day = map(int, iso.split("-"))
    return f"{day} {calendar.month_name[month]} {year}"


def _values(results: Sequence[Result], name: str) -> list[str]:
    return sorted({str(r.environment[name]) for r in results if r.environment.get(name) is not None})


def _environment(study: Trials) -> dict[str, list[str]]:
    """Return what the trials ran on, each name with all its values."""
    names = {
        "kdbench": "kdbench",
        "device_name": "device",
        "torch": "torch",
        "torchvision": "torchvision",
        "python": "Python",
        "threads": "threads per trial",
        "code_digest": "digest of the code",
        "git_commit": "commit",
        "git_dirty": "changed since the commit",
    }
    found: dict[str, set[str]] = {name: set() for name in names}
    data = set()
    for trials in study.arms.values():
        for spec, result in trials.values():
            data.add(f"{spec.dataset} {spec.data_digest[:16]}")
            for name in names if result is not None else ():
                found[name].add(_plain(result.environment.get(name)))  # type: ignore[union-attr]
    seen = {names[name]: sorted(values) for name, values in found.items() if values}
    return {**seen, "digest of the data": sorted(data)}


def _plain(value: Any) -> str:
    if value is None:
        return "not recorded"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


# -- pages


def html(found: Mapping[str, Any], pictures: Mapping[str, figures.Picture]) -> str:
    """Return the page as one HTML file; a figure that is missing is left out."""
    every = {name: pictures.get(name) for name in figures.FIGURES}
    return str(_template("report.html.j2").render(**_context(found), pictures=every))


def markdown(found: Mapping[str, Any]) -> str:
    """Return the page as Markdown, without figures."""
    return str(_template("report.md.j2").render(**_context(found))).strip() + "\n"


def _mean_sd(value: tuple[float | None, float | None], places: int = 2) -> str:
    mean, sd = value
    if mean is None:
        return ""
    return f"{mean:.{places}f}" + ("" if sd is None else f" ± {sd:.{places}f}")


def _in_html(value: Any) -> Any:
    """Return a value as a page may have it, which Jinja escapes: without control characters."""
    return escaped(value) if type(value) is str else value


def in_markdown(value: Any) -> Any:
    """Return a value as Markdown may have it: a name makes no table cell, no link and no HTML. Markup is let be."""
    if type(value) is not str:
        return value
    text = re.sub(r"\||\](?=[(\[:])", r"\\\g<0>", str(_in_code(value)))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text)  # what begins a tag; less than is let be


def _in_code(value: str) -> Any:
    """Return a text as a line of code in Markdown may have it."""
    from markupsafe import Markup

    return Markup(escaped(" ".join(value.splitlines())))


def _template(name: str) -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    place = resources.files("kdbench.harness.publish.pages")
    environment = Environment(
        loader=FunctionLoader(lambda n: (place / n).read_text(encoding="utf-8")),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_in_html if name.endswith(".html.j2") else in_markdown,
    )
    environment.filters["mean_sd"] = _mean_sd
    environment.filters["plain"] = _in_code
    environment.filters["pp"] = lambda value: "" if value is None else f"{value:+.2f}"
    environment.filters["acc"] = lambda value: "" if value is None else f"{value:.2f}"
    environment.filters["p"] = lambda value: "" if value is None else f"{value:.2g}"
    environment.filters["point"] = lambda found: ", ".join(f"{name} {value:g}" for name, value in found.items())
    environment.filters["seeds"] = lambda seeds: (
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"
    )
    environment.filters["chances"] = lambda pair: "{:.2f} to {:.2f}".format(*pair)
    environment.filters["span"] = lambda pair: "" if pair is None else "{:+.2f} to {:+.2f}".format(*pair)
    return environment.get_template(name)


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    fired = sorted(
        {i for arm in [*found["arms"], *found["teachers"]] for i in (*arm.failed_findings, *arm.consequences)}
    )
    notes = dict.fromkeys(w for c in [*found["gains"], *found["bugs"]] for w in c.warnings)
    titles = {name: METHODS[name].title for name in [*METHODS, *(arm.method for arm in found["arms"])]}
    stories = {arm.fault: faults.get(arm.fault).story for arm in found["arms"] if arm.fault}
    audits = {id: name for name, id in faults.audit_ids().items() if id in fired}
    return {
        **found,
        "effects": _EFFECTS,
        "gained": list(dict.fromkeys(title for row in found["capacity"] for title in row.gains)),
        "fired": fired,
        "audits": audits,
        "notes": list(notes),
        "titles": titles,
        "best_in_words": [best.in_words(titles) for best in found["best"]],
        "stories": stories,
    }


class Written(NamedTuple):
    """The page of a study."""

    paths: list[Path]
    headline: str


def write(folder: StudyFolder, output: Path, allowed: Sequence[str] = ()) -> Written:
    """Write report.html and report.md of a study into a folder; `allowed` is as in :func:`read`."""
    study = read_study(folder)
    found = read(study, allowed)
    claimed = found["norms"]["claim"]["value"] if found["norms"] and found["norms"]["text"] else None
    pages = {"report.html": html(found, figures.draw(study, found["gains"], claimed)), "report.md": markdown(found)}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"no page can be written into {output} ({error.strerror}); name another --output") from error
    return Written([output / name for name in pages], found["headline"].text)
