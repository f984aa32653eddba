"""Each canonical decision holds what its sentence of the method section says."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from kdbench.kd.errors import InputError
from kdbench.kd.procedure import CANONICAL, Procedure
from kdbench.kd.recipe import Recipe
from kdbench.kd.streams import stream


def test_split_shares_no_image_and_leaves_test_alone(recipe):
    train_ids, test_ids = torch.arange(200), torch.arange(200, 300)
    split = CANONICAL.split(train_ids, test_ids, recipe, stream(1, "split"))
    assert (len(split.train), len(split.val)) == (recipe.train_size, recipe.val_size)
    assert not set(split.train.tolist()) & set(split.val.tolist())
    assert set(split.train.tolist()) | set(split.val.tolist()) <= set(train_ids.tolist())
    assert split.test.tolist() == list(range(200, 300, recipe.test_stride))
    again = CANONICAL.split(train_ids, test_ids, recipe, stream(1, "split"))
    assert torch.equal(split.train, again.train)


def test_split_refuses_more_than_there_is(recipe):
    with pytest.raises(InputError, match="train_size 64 \\+ val_size 40 is 104, but the train set holds 100"):
        CANONICAL.split(torch.arange(100), torch.arange(0), recipe, stream(1, "split"))


def test_learning_rate_of_the_paper_moves_once_an_epoch():
    recipe = Recipe(epochs=100)
    rates = [CANONICAL.learning_rate(recipe, step, 10) for step in range(1000)]
    assert rates[:10] == [0.1] * 10
    assert rates[500] == pytest.approx((0.1 + 1e-4) / 2)
    assert rates[-1] == pytest.approx(1e-4, rel=0.3)  # T_max is the number of epochs: the minimum is met after the last
    assert all(a >= b for a, b in itertools.pairwise(rates))


def test_learning_rate_by_step_with_warm_up():
    recipe = Recipe(epochs=10, schedule="step", warmup=0.1, lr_min=0.0)
    rates = [CANONICAL.learning_rate(recipe, step, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == rates[9] == rates[10] == pytest.approx(0.1)
    assert 0 < rates[-1] < 1e-4


def test_select_takes_the_last_of_the_best_and_no_hint_from_test():
    val = [90.0, 92.0, 92.0, 91.0]
    assert CANONICAL.select(val, ()) == 2
    assert CANONICAL.select(val, [99.0, 0.0, 0.0, 0.0]) == 2


def test_aggregate_uses_the_sample_deviation():
    assert CANONICAL.aggregate([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert CANONICAL.aggregate([5.0]) == (5.0, None)


def test_clip_and_optimizer_hold_the_same_parameters():
    student, method, teacher = nn.Linear(2, 2), nn.Linear(3, 3), nn.Linear(4, 4)
    stepped = [p for group in CANONICAL.trainable(student, method, teacher) for p in group]
    (together,) = CANONICAL.clipped(student, method)
    assert stepped == list(together) == [*student.parameters(), *method.parameters()]


def test_modes_and_answer():
    student, method, teacher = nn.Linear(2, 2), nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    teacher.train()
    student.eval()
    CANONICAL.set_modes(student, teacher, method)
    assert student.training and method.training
    assert not any(m.training for m in teacher.modules())
    assert not CANONICAL.teacher_answer(teacher, torch.zeros(1, 2), 0, 1).requires_grad


def test_a_procedure_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CANONICAL.stem = None
    assert dataclasses.replace(CANONICAL, order=tuple) != Procedure() == CANONICAL


def test_streams_are_named_and_independent():
    def draw(seed, name):
        return torch.rand(4, generator=CANONICAL.stream(seed, name)).tolist()

    assert draw(0, "order/0") == draw(0, "order/0")
    assert len({tuple(draw(s, n)) for s in (0, 1) for n in ("order/0", "order/1", "crops/0")}) == 6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("lr", float("nan")),
        ("max_norm", 0.0),
        ("warmup", 1.0),
        ("lr_min", 1.0),
        ("momentum", -1.0),
        ("weight_decay", float("nan")),
        ("precision", "fp8"),
    ],
)
def test_recipe_refuses_nonsense_and_names_the_field(field, value):
    with pytest.raises(InputError, match=field):
        Recipe(**{field: value})
