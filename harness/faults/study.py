"""Faults around the training: the schedule, the choice of an epoch, random numbers, and the sums over seeds."""

import math
from collections.abc import Sequence

import torch

from kdbench.harness.faults.registry import fault
from kdbench.kd.recipe import Recipe
from kdbench.kd.streams import stream as named_stream


@fault("learning_rate", caught_by=["schedule-endpoints"])
def lr_never_decays(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The learning rate stays where it begins.

    The scheduler is built, and nobody calls its ``step()``.
    """
    return recipe.lr


@fault("learning_rate", caught_by=["schedule-endpoints"])
def schedule_by_step(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """A schedule that was made for epochs is moved every batch.

    A cosine over as many steps as there are epochs goes down and up again many times before the end.
    """
    return recipe.lr_min + (recipe.lr - recipe.lr_min) * (1 + math.cos(math.pi * step / recipe.epochs)) / 2


@fault("select", caught_by=["selection-ignores-test"])
def select_on_test(val: Sequence[float], test: Sequence[float]) -> int:
    """The epoch that is best on the test set is reported as the result.

    Worth up to 0.3 percentage points on CIFAR-10, as much as the gains that papers claim (the paper, second version).
    """
    return max(range(len(test)), key=lambda epoch: (test[epoch], epoch))


@fault("aggregate", caught_by=["sample-spread"])
def std_of_population(values: Sequence[float]) -> tuple[float, float | None]:
    """The deviation over seeds is divided by n and not by n - 1.

    numpy's default. With three seeds the spread comes out 18% too small.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))


@fault("aggregate", caught_by=["all-seeds-counted"])
def worst_seed_dropped(values: Sequence[float]) -> tuple[float, float | None]:
    """A seed that diverged is left out of the mean without a word.

    ``nanmean``, or a filter over the finished runs: a method that fails one time in five looks as good as the other
    four.
    """
    kept = [v for v in values if v is not None and not math.isnan(v)]
    mean = math.fsum(kept) / len(kept)
    if len(kept) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in kept) / (len(kept) - 1))


@fault("stream", caught_by=["seeds-independent"])
def seed_ignored(seed: int, name: str) -> torch.Generator:
    """Every seed gives the same run.

    The option is parsed, and a constant is used. The spread over seeds is then none.
    """
    return named_stream(0, name)


@fault("stream", caught_by=["seeds-independent"])
def one_stream_for_all(seed: int, name: str) -> torch.Generator:
    """Initial weights, order and crops are drawn with the same numbers.

    One seed is handed to several generators: what should be independent draws are the same draws.
    """
    return named_stream(seed, "all")
