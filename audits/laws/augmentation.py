"""Augmentation: one image seen again, and by several workers."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, get_worker_info

from kdbench.audits.checks.catalogue import Verdict, failed, passed, undecided
from kdbench.audits.laws.registry import law
from kdbench.audits.laws.samples import content
from kdbench.audits.observe import torch_internals


@law(
    "KD342",
    "augmentation-active",
    mend="draw crop and flip at each fetch, in __getitem__ or on the batch, from a generator made once and outside it",
)
def check_augmentation(draw: Callable[[], Any], n: int = 16) -> Verdict:
    """The same image is seen differently from one time to the next.

    ``draw()`` returns the training sample of one and the same image each time: a tensor, array or PIL image, alone or
    first in a tuple or dict. Fails when `n` draws (at least 2) are all the same, which flips alone do by chance once in
    2^(n-1); choose an image that a crop and a flip change.
    """
    if n < 2:
        raise ValueError(f"n is {n}; it must be at least 2")
    different = len({content(draw()) for _ in range(n)})
    observed = {"draws": n, "different": different}
    if different == 1:
        return failed(f"{n} draws of one training image are all the same", observed)
    return passed(f"{n} draws of one training image gave {different} different ones", observed)


def _by_worker(sample: Any) -> tuple[int, str]:
    """Return the worker that fetched a sample, and its content."""
    worker = get_worker_info()
    assert worker is not None
    return worker.id, content(sample)


@law(
    "KD331",
    "worker-augmentation",
    severity="warn",
    mend="draw from torch's or numpy's global state, which each worker gets a seed of its own for, or make the "
    "data set's generator in worker_init_fn from torch.initial_seed()",
)
def check_workers(
    dataset: Any, worker_init_fn: Callable[[int], None] | None = None, index: int = 0, draws: int = 4
) -> Verdict:
    """Two workers of a DataLoader augment differently.

    Fetches sample `index` of the map-style `dataset` `draws` times in each of two workers. Fails when both see the
    same sequence, as with a generator that is copied into each. Not triggered where the sample never changes. Workers
    are started as DataLoader does here; where that is not by fork, `dataset` and `worker_init_fn` must pickle.
    """
    seeds = torch.Generator().manual_seed(0)  # or the loader draws its workers' seed from the global state

    def fetch(count: int) -> list[list[str]]:
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=[index] * (2 * count),
            num_workers=2,
            collate_fn=_by_worker,
            worker_init_fn=worker_init_fn,
            generator=seeds,
            timeout=120,
        )
        seen: list[list[str]] = [[], []]
        workers: Any = iter(loader)
        try:
            for worker, content in workers:
                seen[worker].append(content)
        finally:
            # An error from a worker refers to itself: left to the garbage collector, the workers take ten seconds to
            # end, and what is forked in the meantime tries to end them too.
            torch_internals.shut_down_workers(workers)
        return seen

    first, second = fetch(draws)
    if first == second and len(set(first)) > 1:
        # Where little is drawn (a flip), two workers may agree by chance: hardly so twice.
        draws *= 4
        first, second = fetch(draws)
    different = len({*first, *second})
    observed = {"workers": 2, "draws_each": draws, "different": different}
    if different == 1:
        return undecided(
            "out-of-scope", f"sample {index} is not augmented: {2 * draws} draws are the same", None, observed
        )
    if first == second:
        return failed(f"two workers see the same {draws} augmentations of sample {index}", observed)
    return passed(f"two workers see different augmentations of sample {index}", observed)
