"""A study as a page: what was claimed, how sure it is, and whether the code behind it was clean.

Everything is read from the records; the page is one file, works offline, and says of each figure where it came from.
"""

import base64
import io
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from harness import compare, faults, stats
from harness.compare import Trials
from harness.plan import Arm
from harness.record import StudyFolder
from kd.errors import InputError
from kd.methods import METHODS

METHOD_COLOURS = {"baseline": "#4b5563", "logit": "#1d4ed8", "feature": "#b45309"}
_MEANING = {
    "different": "so large a difference would be rare if there were none",
    "equivalent": "the difference is within the margin",
    "both": "a real difference, within the margin",
    "undecided": "these seeds cannot tell; it does not mean that there is no effect",
    "undefined": "nothing can be said; the notes say why",
}


def read(folder: StudyFolder) -> dict[str, Any]:
    """Return everything that the page shows of a study."""
    study = compare.read_study(folder)
    arms = compare.summary(study)
    if not any(arm["mean"] is not None for arm in arms):
        raise InputError(f"{folder.path.name} has no finished trial yet; kdbench status shows how far it is")
    bugs = compare.compare_arms(study, compare.bug_pairs(study.arms), refuse=False)
    gains = compare.compare_arms(study, compare.gain_pairs(study.arms), refuse=False)
    verdicts = {(c["b"], c["pair"], c["method"]): c["verdict"] for c in bugs}
    for arm in arms:
        arm["effect"] = compare.effect(arm, verdicts.get((arm["fault"], arm["pair"], arm["method"])))
    controls = compare.controls(study)
    found = {
        "study": folder.path.name,
        "decision": study.decision,
        "arms": arms,
        "bugs": bugs,
        "gains": gains,
        "controls": controls,
        "teachers": _teachers(study),
        "capacity": _capacity(study, gains),
        "fidelity": _fidelity(study),
        "environment": _environment(study),
        "commands": compare.commands(folder),
        "state": _state(arms),
    }
    pairs = len({arm.pair for arm in study.arms})
    claims = [{"of": of, "rows": [_claim(c, pairs) for c in rows]} for of, rows in (("gains", gains), ("bugs", bugs))]
    meanings = {c["verdict"]: _MEANING[c["verdict"]] for c in [*gains, *bugs]}
    return {**found, "claims": claims, "meanings": meanings, "code": _code(found)}


def _claim(c: Mapping[str, Any], pairs: int) -> dict[str, Any]:
    """Return a comparison in a few words, with its verdict."""
    method, where = METHODS[c["method"]].title, f"{c['pair']}, " if pairs > 1 else ""
    what = f"{where}{method} against the baseline" if c["b"] == c["method"] else f"{where}{c['b']} in {method}"
    low_high = "" if c["ci95_pp"] is None else " [{:+.2f}, {:+.2f}]".format(*c["ci95_pp"])
    by = "" if c["difference_pp"] is None else f": {c['difference_pp']:+.2f} pp{low_high}"
    return {"verdict": c["verdict"], "text": f"{what}{by}"}


def _state(arms: list[dict[str, Any]]) -> dict[str, int]:
    scored = [value for arm in arms for value in arm["test_accuracy"]]
    return {"trials": len(scored), "missing": sum(value is None for value in scored)}


def _code(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the audits and the controls say of the code, each with whether it is as it should be."""
    clean = [arm for arm in found["arms"] if not arm["fault"]]
    bugged = [arm for arm in found["arms"] if arm["fault"]]
    said = []
    if clean:
        good = sum(arm["as_expected"] for arm in clean)
        said.append({"good": good == len(clean), "text": f"{good} of {len(clean)} corrected arms are proven clean"})
    if bugged:
        good = sum(arm["as_expected"] for arm in bugged)
        text = f"{good} of {len(bugged)} bugged arms were caught by exactly the audits that their bug names"
        said.append({"good": good == len(bugged), "text": text})
    controls = found["controls"]
    if controls is None:
        said.append({"good": False, "text": "no controls were run: the study was not shown to see anything"})
        return said
    again, positive = controls["again"], controls["positive"]
    same = again is not None and again["verdict"] == "identical"
    how = "gave the same bits" if same else f"the same seed twice: {again['verdict'] if again else 'missing'}"
    said.append({"good": same, "text": f"the same seed twice {how}" if same else how})
    if positive is not None:
        senses = (("by its audit", positive["seen_by_audit"]), ("in accuracy", positive["seen_in_accuracy"]))
        text = ", ".join(f"{'seen' if seen else 'NOT seen'} {where}" for where, seen in senses)
        good = all(seen for _, seen in senses)
        said.append({"good": good, "text": f"the positive control ({positive['fault']}) was {text}"})
    return said


def _teachers(study: Trials) -> list[dict[str, Any]]:
    keys = {
        (spec.teacher.arch, spec.teacher.key)
        for trials in study.arms.values()
        for spec, _ in trials.values()
        if spec.teacher is not None and not spec.teacher.key.startswith("sha256:")
    }
    folders = [(arch, study.folder.trial(key)) for arch, key in sorted(keys)]
    return [compare.teacher_row(arch, f) for arch, f in folders if (f.path / "spec.json").is_file()]


def _capacity(study: Trials, gains: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return by pair: teacher, baseline, their gap, and which method gained most."""
    rows = []
    teachers = {t["arch"]: t["test_accuracy"] for t in _teachers(study) if not t["fault"]}
    for pair in dict.fromkeys(arm.pair for arm in study.arms):
        teacher = teachers.get(pair.split("-")[0])
        arm = study.arms.get(Arm(None, pair, "baseline"))
        values = compare.scores(arm)[0] if arm else []
        baseline = fmean(values) if values else None
        mine = [g for g in gains if g["pair"] == pair and g["difference_pp"] is not None]
        best = max(mine, key=lambda g: g["difference_pp"], default=None)
        gap = teacher - baseline if teacher is not None and baseline is not None else None
        rows.append(
            {
                "pair": pair,
                "teacher": teacher,
                "baseline": baseline,
                "gap": gap,
                "best": METHODS[best["method"]].title if best else None,
                "gain": best["difference_pp"] if best else None,
                "verdict": best["verdict"] if best else None,
            }
        )
    return rows


def _fidelity(study: Trials) -> list[dict[str, Any]]:
    """Return how close each arm's students come to their teacher: agreement in percent, KL in nats."""
    rows = []
    for arm in sorted(study.arms, key=compare.order):
        metrics = [r.metrics for _, r in study.arms[arm].values() if r is not None and r.metrics is not None]
        seen = [m for m in metrics if m.agreement is not None]
        if seen:
            rows.append(
                {
                    "pair": arm.pair,
                    "method": METHODS[arm.method].title,
                    "arm": arm.label,
                    **{name: fmean(getattr(m, name) for m in seen) for name in ("agreement", "kl_t1", "kl_t4")},
                }
            )
    return rows


def _environment(study: Trials) -> dict[str, list[str]]:
    """Return what the trials ran on, each name with all its values."""
    names = ("device_name", "torch", "torchvision", "python", "threads", "code_digest", "git_commit", "git_dirty")
    found: dict[str, set[str]] = {name: set() for name in names}
    data = set()
    for trials in study.arms.values():
        for spec, result in trials.values():
            data.add(f"{spec.dataset} {spec.data_digest[:16]}")
            for name in names if result is not None else ():
                found[name].add(str(result.environment.get(name)))  # type: ignore[union-attr]
    return {**{name: sorted(values) for name, values in found.items() if values}, "data": sorted(data)}


# -- figures


def figures(folder: StudyFolder) -> dict[str, str]:
    """Return the figures as SVG in data addresses: gains, bugs, curves, norms."""
    import matplotlib

    matplotlib.use("Agg")
    study = compare.read_study(folder)
    drawn = {
        "accuracy": _draw_accuracy(study),
        "curves": _draw_curves(study),
        "norms": _draw_norms(study),
    }
    return {name: picture for name, picture in drawn.items() if picture}


def _svg(figure: Any) -> str:
    from matplotlib import pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _draw_accuracy(study: Trials) -> str:
    """Draw every seed of every arm, and the mean with its 95% interval."""
    from matplotlib import pyplot as plt
    from scipy import stats as scipy_stats

    arms = [arm for arm in sorted(study.arms, key=compare.order) if compare.scores(study.arms[arm])[0]]
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.36 * len(arms)))
    for y, arm in enumerate(arms):
        values = compare.scores(study.arms[arm])[0]
        colour = METHOD_COLOURS.get(arm.method, "#334155")
        axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.55, ms=5, mec="none")
        if len(values) > 1:
            half = scipy_stats.t.isf(0.025, len(values) - 1) * stdev(values) / len(values) ** 0.5
            axes.errorbar(fmean(values), y + 0.22, xerr=half, fmt="|", color=colour, ms=9, lw=1.6)
    every = [value for arm in arms for value in compare.scores(study.arms[arm])[0]]
    room = max(1.0, 0.15 * (max(every) - min(every)))
    axes.set_xlim(max(0.0, min(every) - room), min(100.0, max(every) + room))
    labels = [f"{arm.pair}  {METHODS[arm.method].title}  {arm.label}" for arm in arms]
    axes.set_yticks(range(len(arms)), labels, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, % (a dot a seed; bar: mean with its 95% interval)")
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _draw_curves(study: Trials) -> str:
    """Draw validation accuracy by epoch, the mean and the range over the seeds, of the corrected arms."""
    from matplotlib import pyplot as plt

    pairs = list(dict.fromkeys(arm.pair for arm in sorted(study.arms, key=compare.order) if not arm.fault))
    if not pairs:
        return ""
    figure, grid = plt.subplots(1, len(pairs), figsize=(4.2 * len(pairs), 3.1), squeeze=False)
    for axes, pair in zip(grid[0], pairs, strict=True):
        for arm in (a for a in sorted(study.arms, key=compare.order) if a.pair == pair and not a.fault):
            curves = [
                [epoch["val_accuracy"] for epoch in study.folder.trial(spec.key).curve()]
                for spec, result in study.arms[arm].values()
                if result is not None
            ]
            curves = [curve for curve in curves if curve and len(curve) == max(map(len, curves))]
            if not curves:
                continue
            by_epoch = list(zip(*curves, strict=True))
            xs, colour = range(1, len(by_epoch) + 1), METHOD_COLOURS.get(arm.method, "#334155")
            axes.plot(xs, [fmean(values) for values in by_epoch], color=colour, label=METHODS[arm.method].title)
            axes.fill_between(xs, [min(v) for v in by_epoch], [max(v) for v in by_epoch], color=colour, alpha=0.15)
        axes.set_title(pair, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("validation accuracy, %")
    grid[0][0].legend(frameon=False, fontsize=9)
    return _svg(figure)


def _draw_norms(study: Trials) -> str:
    """Draw the gradient norms of Feature-KD's first steps before clipping, a line a seed."""
    import pandas as pd
    from matplotlib import pyplot as plt

    lines: dict[str, list[Any]] = {}
    for arm in sorted(study.arms, key=compare.order):
        for spec, _ in study.arms[arm].values() if METHODS[arm.method].has_projectors else ():
            path = study.folder.trial(spec.key).path / "norms.csv"
            if path.is_file():
                table = pd.read_csv(path)
                if "projectors" in table and len(table):
                    lines.setdefault(f"{arm.pair}, {arm.label}", []).append(table)
    if not lines:
        return ""
    figure, grid = plt.subplots(1, 2, figsize=(9, 3.1), sharex=True)
    palette = plt.get_cmap("tab10").colors
    for axes, group in zip(grid, ("projectors", "student"), strict=True):
        for i, (label, tables) in enumerate(lines.items()):
            for j, table in enumerate(tables):
                name = label if j == 0 else None
                axes.plot(table["step"], table[group], color=palette[i % 10], lw=0.9, alpha=0.7, label=name)
        axes.set_title(f"{group}: gradient norm before clipping", fontsize=10)
        axes.set_xlabel("step")
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].legend(frameon=False, fontsize=8)
    return _svg(figure)


# -- pages


def html(found: Mapping[str, Any], pictures: Mapping[str, str]) -> str:
    """Return the page as one HTML file."""
    return _template("report.html.j2").render(**_context(found), pictures=pictures)


def markdown(found: Mapping[str, Any]) -> str:
    """Return the page as Markdown, without figures."""
    return str(_template("report.md.j2").render(**_context(found))).strip() + "\n"


def _template(name: str) -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    place = resources.files("harness.pages")
    environment = Environment(
        loader=FunctionLoader(lambda n: (place / n).read_text(encoding="utf-8")),
        autoescape=name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["pp"] = lambda value: "" if value is None else f"{value:+.2f}"
    environment.filters["acc"] = lambda value: "" if value is None else f"{value:.2f}"
    environment.filters["p"] = lambda value: "" if value is None else f"{value:.2g}"
    environment.filters["span"] = lambda pair: "" if pair is None else "{:+.2f} to {:+.2f}".format(*pair)
    return environment.get_template(name)


def _context(found: Mapping[str, Any]) -> dict[str, Any]:
    fired = sorted({i for arm in found["arms"] for i in (*arm["failed_findings"], *arm["consequences"])})
    notes = dict.fromkeys(w for c in [*found["gains"], *found["bugs"]] for w in c["warnings"])
    titles = {name: kind.title for name, kind in METHODS.items()}
    stories = {arm["fault"]: faults.get(arm["fault"]).story for arm in found["arms"] if arm["fault"]}
    sizes = {min(c["n"]) for c in [*found["gains"], *found["bugs"]]}
    power = {n: stats.smallest_effect(n) for n in sorted(sizes) if n > 1}
    return {**found, "fired": fired, "notes": list(notes), "titles": titles, "stories": stories, "power": power}


def write(folder: StudyFolder, output: Path) -> list[Path]:
    """Write report.html and report.md of a study into a folder; return their paths."""
    found = read(folder)
    output.mkdir(parents=True, exist_ok=True)
    pages = {"report.html": html(found, figures(folder)), "report.md": markdown(found)}
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8")
    return [output / name for name in pages]
