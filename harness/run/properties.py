"""The decisions of a procedure that no gradient shows, each held to its law."""

from dataclasses import replace
from typing import Any, cast

import torch

from kdbench import audits
from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.finding import Finding, Report, sorted_report
from kdbench.audits.laws.registry import place_of
from kdbench.harness.declarations import spelled
from kdbench.kd.data import draw_crops
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.train import Training


def judge(training: Training) -> list[Finding]:
    """Hold split, views, weighting, schedule, selection, aggregation and streams of a training to their laws."""
    ask, recipe, split = training.procedure, training.recipe, training.split
    steps, per_epoch = recipe.epochs * training.steps_per_epoch, training.steps_per_epoch
    rates = [CANONICAL.learning_rate(recipe, at, per_epoch) for at in (0, steps // 2, steps - 1)]
    draws = CANONICAL.stream(training.seed, "properties")
    image = split.train[:1].to(training.pool.device)

    def draw() -> torch.Tensor:
        crops = draw_crops(1, recipe.crop_padding, recipe.flip, draws)
        moved = type(crops)(*(value.to(training.pool.device) for value in crops))
        return ask.views(training.pool, image, moved).student

    def set_rates(optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in ask.scheduled(optimizer.param_groups):
            group["lr"] = CANONICAL.learning_rate(recipe, step, per_epoch)

    found = [
        audits.check_split(split.train, torch.cat([split.val, split.test])),
        audits.check_held_out(split.val, split.test),
        audits.check_weighting(ask.combine),
        audits.check_schedule(
            lambda step: ask.learning_rate(recipe, step, per_epoch),
            steps,
            first=rates[0],
            middle=rates[1],
            last=rates[2],
            steps_per_epoch=per_epoch,
        ),
        audits.check_group_schedule(set_rates, steps),
        audits.check_selection(ask.select),
        audits.check_spread(ask.aggregate),
        audits.check_aggregation(cast(Any, ask.aggregate)),  # it is handed what no sum should swallow
        audits.check_seeds(ask.stream),
    ]
    if recipe.crop_padding or recipe.flip:
        found.append(audits.check_augmentation(draw))
    return found


def _detached(provenance: Finding, training: Training) -> Finding:
    """Return the finding on terms that train nothing; beside other terms, what is seen of a loss may not tell."""
    names = sorted(training.detached)
    return replace(
        provenance,
        status="fail",
        message=f"the terms {', '.join(names)} of method {training.method.name} have no gradient: they train nothing",
        observed={"terms": names},
        where=place_of(type(training.method).forward),
        reason=None,
        decide_with=None,
    )


def with_properties(report: Report, training: Training) -> Report:
    """Return the report of a training with what the laws say, in the words of the command line.

    Of an audit that both kinds know, the verdict decided. A failure that the catalogue calls a consequence of another
    is marked as one also where only a law saw that other.
    """
    findings = {f.id: f for f in spelled(report).findings}
    provenance = findings.get("KD311")
    if training.detached and provenance is not None and provenance.status != "fail":
        findings["KD311"] = _detached(provenance, training)
    for law in judge(training):
        seen = findings.get(law.id)
        if seen is None or seen.status == "not_triggered" or law.status == "fail":
            findings[law.id] = law
    failed = {f.id for f in findings.values() if f.status == "fail"}
    follows = {entry.id: entry.follows for entry in CATALOGUE.values()}
    return sorted_report(
        [
            replace(f, consequence_of=next((id for id in follows.get(f.id, ()) if id in failed), None))
            if f.status == "fail"
            else f
            for f in findings.values()
        ]
    )
