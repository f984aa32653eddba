"""A study as a page: what was claimed, how sure it is, and whether the code behind it was clean.

Everything is read from the records; the page is one file, works offline, and says of each figure where it came from.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from kdbench.harness import faults
from kdbench.harness.analysis import compare, selection_bias, stats
from kdbench.harness.analysis.arms import summary, teacher_row, with_effects
from kdbench.harness.analysis.controls import controls
from kdbench.harness.analysis.rows import ArmRow, ComparisonRow, ControlsRow, TeacherRow
from kdbench.harness.analysis.study_table import Trials, commands, order, read_study, scores
from kdbench.harness.plan.plan import Arm
from kdbench.harness.publish import figures, paper
from kdbench.harness.records.record import Metrics, Result, StudyFolder
from kdbench.harness.records.spec import Spec
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS

_MEANING = {
    "different": "so large a difference would be rare if there were none",
    "equivalent": "the difference is within the margin",
    "both": "a real difference, within the margin",
    "undecided": "these seeds cannot tell; it does not mean that there is no effect",
    "undefined": "nothing can be said; the notes say why",
}


def read(study: Trials) -> dict[str, Any]:
    """Return everything that the page shows of a study."""
    arms = summary(study)
    if not any(arm.mean is not None for arm in arms):
        raise InputError(f"{study.folder.path.name} has no finished trial yet; kdbench status shows how far it is")
    bugs = compare.compare_arms(study, compare.bug_pairs(study.arms), refuse=False)
    gains = compare.compare_arms(study, compare.gain_pairs(study.arms), refuse=False)
    arms = with_effects(arms, bugs)
    teachers, seen = _teachers(study), controls(study)
    found = {
        "study": study.folder.path.name,
        "decision": study.decision,
        "arms": arms,
        "bugs": bugs,
        "gains": gains,
        "controls": seen,
        "teachers": teachers,
        "capacity": _capacity(study, gains, teachers),
        "fidelity": _fidelity(study),
        "per_class": _per_class(study, teachers),
        "published": paper.beside(study, arms, teachers, gains),
        "norms": paper.norms(study),
        "choice": selection_bias.read(study),
        "environment": _environment(study),
        "commands": commands(study.folder),
        "setting": _setting(study),
        "state": _state(arms),
    }
    claims = [
        {"title": title, "summary": _counted(rows), "rows": _claims(rows)}
        for title, rows in (("Does distillation gain anything?", gains), ("Do the bugs matter?", bugs))
    ]
    meanings = {c.verdict: _MEANING[c.verdict] for c in [*gains, *bugs]}
    return {**found, "claims": claims, "meanings": meanings, "code": _code(study, arms, seen)}


def _counted(comparisons: Sequence[ComparisonRow]) -> str:
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


def _claims(comparisons: Sequence[ComparisonRow]) -> list[Claim]:
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
        verdict = of[0].told if len({c.told for c in of}) == 1 else _counted(of)
        open_ = all(c.verdict in _OPEN for c in of)
        rows.append(Claim(verdict, open_, f"{name}, {len(of)} comparisons{span}"))
    return rows


def _claim(c: ComparisonRow, pairs: int) -> Claim:
    """Return a comparison in a few words, with its verdict; of an open one, what these seeds could have seen."""
    method, where = METHODS[c.method].title, f"{c.pair}, " if pairs > 1 else ""
    what = f"{where}{method} against the baseline" if c.b == c.method else f"{where}{c.b} in {method}"
    low_high = "" if c.ci95_pp is None else " [{:+.2f}, {:+.2f}]".format(*c.ci95_pp)
    by = "" if c.difference_pp is None else f": {c.difference_pp:+.2f} pp{low_high}"
    power = f"under {c.mde_pp:.1f} pp easily missed" if c.verdict == "undecided" and c.mde_pp is not None else ""
    return Claim(c.told, c.verdict in _OPEN, f"{what}{by}", power)


def _state(arms: Sequence[ArmRow]) -> dict[str, int]:
    scored = [value for arm in arms for value in arm.test_accuracy]
    return {"trials": len(scored), "missing": sum(value is None for value in scored)}


def _code(study: Trials, arms: Sequence[ArmRow], controls: ControlsRow | None) -> list[dict[str, str]]:
    """Return what the audits and the controls say of the code, each with `yes`, `NO`, or `not yet`."""
    said = []

    def note(good: bool, waiting: bool, text: str) -> None:
        said.append({"word": "yes" if good else "not yet" if waiting else "NO", "text": text})

    for bugged, text in (
        (False, "corrected arms are proven clean"),
        (True, "bugged arms were caught by exactly the audits that their bug names"),
    ):
        rows = [row for row in arms if (row.fault is not None) == bugged]
        bad = [row for row in rows if not row.as_expected]
        running = [row for row in bad if _running(study.arms[Arm(row.fault, row.pair, row.method)])]
        if rows:
            note(not bad, len(bad) == len(running), f"{len(rows) - len(bad)} of {len(rows)} {text}")
    if controls is None:
        note(False, False, "no controls were run: the study was not shown to see anything")
        return said
    again, positive = controls.again, controls.positive
    verdict = again.verdict if again else "missing"
    how = "gave the same bits" if verdict == "identical" else f"is {verdict}"
    note(verdict == "identical", verdict == "missing", f"the same seed twice {how}")
    if positive is not None:
        senses = (("by its audit", positive.seen_by_audit), ("in accuracy", positive.seen_in_accuracy))
        text = ", ".join(f"{'seen' if seen else 'NOT seen'} {where}" for where, seen in senses)
        waiting = any(_running(trials) for trials in study.controls.values())
        text = f"the positive control ({positive.arm.fault}) was {text}"
        note(all(seen for _, seen in senses), waiting, text if not waiting else "the positive control is running")
    return said


def _running(trials: Mapping[int, tuple[Spec, Result | None]]) -> bool:
    return any(result is None for _, result in trials.values())


def _teachers(study: Trials) -> list[TeacherRow]:
    keys = {
        (spec.teacher.arch, spec.teacher.key)
        for trials in study.arms.values()
        for spec, _ in trials.values()
        if spec.teacher is not None and not spec.teacher.key.startswith("sha256:")
    }
    folders = [(arch, study.folder.trial(key)) for arch, key in sorted(keys)]
    return [teacher_row(arch, f) for arch, f in folders if (f.path / "spec.json").is_file()]


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


def _environment(study: Trials) -> dict[str, list[str]]:
    """Return what the trials ran on, each name with all its values."""
    names = {
        "device_name": "device",
        "torch": "torch",
        "torchvision": "torchvision",
        "python": "Python",
        "threads": "threads a trial",
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
                found[name].add(str(result.environment.get(name)))  # type: ignore[union-attr]
    seen = {names[name]: sorted(values) for name, values in found.items() if values}
    return {**seen, "digest of the data": sorted(data)}


# -- pages


def html(found: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page as one HTML file; a figure that is missing is left out."""
    every = {name: pictures.get(name, "") for name in figures.FIGURES}
    return str(_template("report.html.j2").render(**_context(found), pictures=every))


def markdown(found: Mapping[str, Any]) -> str:
    """Return the page as Markdown, without figures."""
    return str(_template("report.md.j2").render(**_context(found))).strip() + "\n"


def _mean_sd(value: tuple[float | None, float | None], places: int = 2) -> str:
    mean, sd = value
    if mean is None:
        return ""
    return f"{mean:.{places}f}" + ("" if sd is None else f" ± {sd:.{places}f}")


def _template(name: str) -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    place = resources.files("kdbench.harness.publish.pages")
    environment = Environment(
        loader=FunctionLoader(lambda n: (place / n).read_text(encoding="utf-8")),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mean_sd"] = _mean_sd
    environment.filters["pp"] = lambda value: "" if value is None else f"{value:+.2f}"
    environment.filters["acc"] = lambda value: "" if value is None else f"{value:.2f}"
    environment.filters["p"] = lambda value: "" if value is None else f"{value:.2g}"
    environment.filters["point"] = lambda found: ", ".join(f"{name} {value:g}" for name, value in found.items())
    environment.filters["span"] = lambda pair: "" if pair is None else "{:+.2f} to {:+.2f}".format(*pair)
    return environment.get_template(name)


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    fired = sorted({i for arm in found["arms"] for i in (*arm.failed_findings, *arm.consequences)})
    notes = dict.fromkeys(w for c in [*found["gains"], *found["bugs"]] for w in c.warnings)
    titles = {name: kind.title for name, kind in METHODS.items()}
    stories = {arm.fault: faults.get(arm.fault).story for arm in found["arms"] if arm.fault}
    sizes = {min(c.n) for c in [*found["gains"], *found["bugs"]]}
    alpha = found["decision"].alpha
    power = {n: stats.smallest_effect(n, alpha) for n in sorted(sizes) if n > 1}
    audits = {id: name for name, id in faults.audit_ids().items() if id in fired}
    return {
        **found,
        "gained": list(dict.fromkeys(title for row in found["capacity"] for title in row.gains)),
        "fired": fired,
        "audits": audits,
        "notes": list(notes),
        "titles": titles,
        "stories": stories,
        "power": power,
    }


def write(folder: StudyFolder, output: Path) -> list[Path]:
    """Write report.html and report.md of a study into a folder; return their paths."""
    study = read_study(folder)
    found = read(study)
    claimed = found["norms"]["claim"]["value"] if found["norms"] else None
    pages = {"report.html": html(found, figures.draw(study, found["gains"], claimed)), "report.md": markdown(found)}
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in pages.items():
            (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"no page can be written into {output} ({error.strerror}); name another --output") from error
    return [output / name for name in pages]
