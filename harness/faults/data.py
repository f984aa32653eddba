"""Faults in the data: what is trained on, and how it is shown."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdbench.harness.faults.registry import fault
from kdbench.harness.injection.calls import Call
from kdbench.harness.injection.mechanism import Acts, Live, answers_of, injected
from kdbench.harness.injection.scene import Scene
from kdbench.kd.data import Crops, Pool
from kdbench.kd.procedure import Split, Views
from kdbench.kd.recipe import Recipe


@fault("split", caught_by=["split-hygiene", "test-held-out"], scope="both")
def split_leak(train_ids: Tensor, test_ids: Tensor, recipe: Recipe, generator: torch.Generator) -> Split:
    """Images of the test set are trained on, and others of it choose the epoch.

    The two sets were put together, shuffled and cut, and the test set was then loaded from its own file again.
    """
    pool = torch.cat([train_ids, test_ids])
    order = pool[torch.randperm(len(pool), generator=generator)]
    return Split(
        order[recipe.val_size :][: recipe.train_size],
        order[: recipe.val_size],
        test_ids[:: recipe.test_stride],
    )


@fault("split", caught_by=["split-hygiene"], scope="both")
def validation_trained_on(train_ids: Tensor, test_ids: Tensor, recipe: Recipe, generator: torch.Generator) -> Split:
    """The images that choose the epoch are trained on.

    Two samplers shuffle each on its own, and so cut two different permutations.
    """
    order = train_ids[torch.randperm(len(train_ids), generator=generator)]
    other = train_ids[torch.randperm(len(train_ids), generator=generator)]
    return Split(
        order[recipe.val_size :][: recipe.train_size],
        other[: recipe.val_size],
        test_ids[:: recipe.test_stride],
    )


@fault("split", caught_by=["test-held-out"], scope="both")
def test_as_validation(train_ids: Tensor, test_ids: Tensor, recipe: Recipe, generator: torch.Generator) -> Split:
    """All of the train set is trained on, and the test set chooses epoch and settings, and scores them.

    The protocol of the paper's first version, and of much that is published: the best of many scores is reported as if
    it had been one. The students see more images as well, the ones that validation would have kept.
    """
    order = train_ids[torch.randperm(len(train_ids), generator=generator)]
    scored = test_ids[:: recipe.test_stride]
    return Split(order[: recipe.val_size + recipe.train_size], scored, scored)


@fault("views", caught_by=["same-input"], follows=["alignment"], needs="teacher")
def teacher_other_view(pool: Pool, ids: Tensor, crops: Crops) -> Views:
    """The teacher is shown the image itself and the student a crop of it.

    Each network has a data set of its own, with transforms of its own. Answers to another crop are noise in the target
    (Beyer et al. 2022 call a consistent view the first condition of a patient teacher).
    """
    return Views(pool.crop(ids, crops), pool.centre(ids))


@fault("views", caught_by=["same-input"], follows=["teacher-above-chance"], needs="teacher")
def teacher_other_normalisation(pool: Pool, ids: Tensor, crops: Crops) -> Views:
    """The teacher is shown pixels from 0 to 1, and was trained on normalised ones.

    It was trained elsewhere, by code that normalised within the data set.
    """
    images = pool.crop(ids, crops)
    scale, shift = (value.to(images.device)[:, None, None] for value in (pool.std, pool.mean))
    return Views(images, images * scale + shift)


@fault("views", caught_by=["augmentation-active"])
def no_augmentation(pool: Pool, ids: Tensor, crops: Crops) -> Views:
    """Every image is shown as it is, every time.

    The transforms of the validation set are used for training as well.
    """
    images = pool.centre(ids)
    return Views(images, images)


# --- the same in a script of somebody's


def _shown_otherwise(scene: Scene, change: Callable[[Tensor], Tensor]) -> Acts:
    """Show the teacher something else than the script hands it."""
    scene.need(scene.modules.get("teacher"), "no network teaches in this script")

    def show(call: Call, live: Live) -> Any:
        first = next(n for n, a in enumerate(call.args) if isinstance(a, Tensor))
        call.args[first] = change(call.args[first])
        return call.proceed()

    return {"forward": answers_of("teacher", show)}


@injected("teacher-other-view")
def _teacher_other_view(scene: Scene) -> Acts:
    scene.need(scene.teacher_input == "images", "the teacher is not shown images, of which there could be another view")
    return _shown_otherwise(scene, lambda images: images.flip(-1))


@injected("teacher-other-normalisation")
def _teacher_other_normalisation(scene: Scene) -> Acts:
    scene.need(scene.teacher_input in ("images", "numbers"), "what the teacher is shown are no numbers to normalise")
    return _shown_otherwise(scene, lambda values: values * 0.5 + 0.25)
