"""Schedules: what must be found right, and what must be caught."""

import functools
import json
import math

import pytest
import torch
from law_specimens import holds
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR

from kdbench.audits import laws
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Recipe

LR, LOW, EPOCHS, PER_EPOCH = 0.1, 1e-4, 20, 10
STEPS = EPOCHS * PER_EPOCH


def cosine(done, whole=STEPS - 1):
    return LOW + (LR - LOW) * (1 + math.cos(math.pi * done / whole)) / 2


DECLARED = {"first": LR, "middle": cosine(STEPS // 2), "last": LOW}
SCHEDULES = {
    "cosine": (cosine, "pass", "0.1 at the first step"),
    "as tensor": (lambda step: torch.tensor(cosine(step), dtype=torch.float64, requires_grad=True), "pass"),
    "constant": (lambda step: LR, "fail", "0.1 at the last step (199), declared 0.0001", "never moves"),
    "stepped once an epoch": (
        lambda step: cosine(step // PER_EPOCH),
        "fail",
        "moves once in 10 steps, 19 times in all",
    ),
    "period in epochs": (lambda step: cosine(step, EPOCHS), "fail", "lowest at step 20 and rises again", "in epochs"),
    "at its end by half": (lambda step: cosine(min(step, 60), 60), "fail", "already at step 60 of 200"),
    "one step late": (lambda step: cosine(max(0, step - 1)), "fail", "only at step 200, after the last one"),
    "too short": (lambda step: cosine(step, 90), "fail", "lowest at step 90 and rises again", "too short"),
    "never there": (lambda step: cosine(step, 3 * STEPS), "fail", "declared 0.0001"),
    "nan": (lambda step: math.nan, "fail"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    rate, *expected = SCHEDULES[name]
    holds(laws.check_schedule(rate, STEPS, **DECLARED, steps_per_epoch=PER_EPOCH), *expected)


def test_a_schedule_of_one_step_is_undecided():
    found = laws.check_schedule(cosine, 1, **DECLARED, steps_per_epoch=1)
    holds(found, "not_triggered", "has one step")
    assert found.reason == "not-in-these-steps"
    holds(laws.check_schedule(cosine, 2, first=LR, last=cosine(1), steps_per_epoch=1), "pass")
    holds(laws.check_schedule(cosine, 0, **DECLARED), "error", "it must be at least 1")


def set_rates(groups, optimizer, step):
    for group in groups(optimizer.param_groups):
        group["lr"] = cosine(step, 10)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (lambda all: all, ("pass", "all 3 parameter groups")),
        (lambda all: all[:1], ("fail", "moves 1 of 3 parameter groups")),
        (lambda all: all[:-1], ("fail", "moves 2 of 3")),
        (lambda all: [], ("not_triggered", "no learning rate changed")),
    ],
)
def test_group_schedule(groups, expected):
    holds(laws.check_group_schedule(functools.partial(set_rates, groups), 10), *expected)


def test_schedule_with_warm_up_off_by_one():
    def rise(step):
        return LR * min(1.0, (step + 1) / 10)

    holds(laws.check_schedule(rise, 100, first=0.01, last=LR), "pass")
    holds(laws.check_schedule(lambda step: rise(step - 1), 100, first=0.01), "fail", "one step late")
    holds(laws.check_schedule(rise, 100, first=0.0), "fail", "one step early")


def test_schedule_of_which_nothing_was_declared():
    finding = laws.check_schedule(cosine, STEPS)
    holds(finding, "not_triggered")
    assert finding.decide_with


def pair(make, **options):
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=LR, momentum=0.9, **options)
    return optimizer, make(optimizer)


def test_schedule_of_a_scheduler_leaves_it_where_it_was():
    optimizer, scheduler = pair(lambda o: CosineAnnealingLR(o, STEPS - 1, LOW))
    weights = [p.clone() for p in optimizer.param_groups[0]["params"]]
    before = json.dumps([scheduler.state_dict(), optimizer.state_dict()])
    holds(laws.check_schedule((optimizer, scheduler), STEPS, **DECLARED), "pass")
    assert json.dumps([scheduler.state_dict(), optimizer.state_dict()]) == before
    assert scheduler.optimizer is optimizer
    assert all(torch.equal(a, b) for a, b in zip(weights, optimizer.param_groups[0]["params"], strict=True))
    wrong = pair(lambda o: CosineAnnealingLR(o, EPOCHS, LOW))
    holds(laws.check_schedule(wrong, STEPS, **DECLARED, steps_per_epoch=PER_EPOCH), "fail", "rises again")


@pytest.mark.parametrize(
    ("make", "first", "last"),
    [
        (lambda o: OneCycleLR(o, LR, total_steps=50), LR / 25, LR / 25e4),
        (lambda o: LambdaLR(o, lambda step: 1 / (1 + step)), LR, LR / 50),
        (lambda o: SequentialLR(o, [LinearLR(o, 0.1, 1, 9), CosineAnnealingLR(o, 39, LOW)], [10]), 0.1 * LR, LOW),
    ],
)
def test_schedule_of_other_schedulers(make, first, last):
    holds(laws.check_schedule(pair(make), 50, first=first, last=last), "pass")


def test_schedule_of_the_canonical_procedure():
    by_step = Recipe(epochs=EPOCHS, schedule="step", warmup=0.1, lr_min=0.0)
    by_epoch = Recipe(epochs=EPOCHS)
    end = by_epoch.lr * (1 + math.cos(math.pi * 179 / 180)) / 2
    finding = laws.check_schedule(
        lambda step: CANONICAL.learning_rate(by_step, step, PER_EPOCH),
        *(STEPS,),
        first=0.1 / 20,
        middle=0.1 * (1 + math.cos(math.pi * 80 / 180)) / 2,
        last=end,
    )
    holds(finding, "pass")
    finding = laws.check_schedule(
        lambda step: CANONICAL.learning_rate(by_epoch, step, PER_EPOCH),
        STEPS,
        first=LR,
        middle=(LR + LOW) / 2,
        last=cosine(19, 20),
    )
    holds(finding, "pass")
