"""Splits: which samples are trained on, which choose, and which score."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset

from kdbench.audits.checks.catalogue import Verdict, failed, passed, undecided
from kdbench.audits.laws.answers import OddAnswerError
from kdbench.audits.laws.registry import law
from kdbench.audits.laws.samples import content


def _is_dataset(data: Any) -> bool:
    """Say whether something is read by index alone: to iterate over it might never end."""
    return isinstance(data, Dataset) or (hasattr(data, "__getitem__") and not hasattr(data, "__iter__"))


def _unwrapped(data: Any) -> tuple[Any, Sequence[int]]:
    """Return the data set under any Subsets, and which of its samples are meant."""
    indices: Sequence[int] = range(len(data))
    while isinstance(data, Subset):
        indices = [int(data.indices[i]) for i in indices]
        data = data.dataset
    return data, indices


def _raw(root: Any) -> Any:
    """Return what a data set of torchvision reads from, by index: the list `samples`, the array `data`, or None."""
    samples, data = getattr(root, "samples", None), getattr(root, "data", None)
    if isinstance(samples, list):
        return samples
    return data if getattr(data, "ndim", 0) > 2 and len(data) == len(root) else None  # type: ignore[arg-type]


def _is_same(one: Any, other: Any) -> bool:
    """Say whether an index means the same sample in two data sets, as when they differ in their transforms alone."""
    if one is other:
        return True
    mine, yours = _raw(one), _raw(other)
    if type(one) is not type(other) or mine is None or yours is None:
        return False
    return mine == yours if isinstance(mine, list) else content(mine) == content(yours)


def _keys(root: Any, indices: Sequence[int]) -> tuple[str, list[Any]]:
    """Return what a collection holds, ids or samples, and what to compare them by."""
    if _is_dataset(root):
        return "sample", [content(root[i]) for i in indices]
    if isinstance(root, tuple) and any(getattr(part, "ndim", 0) > 1 for part in root):
        raise OddAnswerError("a tuple of arrays is no collection of samples: give the images alone")
    is_rows = getattr(root, "ndim", 1) > 1
    values = list(root) if is_rows or not hasattr(root, "tolist") else root.tolist()
    values = [value.item() if getattr(value, "ndim", 1) == 0 else value for value in values]
    if all(isinstance(value, int | str | Path) and not isinstance(value, bool) for value in values):
        return "id", values
    return "sample", [content(value) for value in values]


@law(
    "KD332",
    "split-hygiene",
    mend="cut one permutation of the ids into disjoint parts, once, with one seed for all trials",
)
def check_split(train: Any, evaluation: Any, limit: int = 20_000) -> Verdict:
    """No sample that is trained on is evaluated on.

    Each is a collection of ids (integers, names or paths; a tensor, array or list), of samples (a tensor of N rows, or
    a list of tensors, arrays or images, by content), or a map-style torch Dataset. Subsets of one data set, or of two
    with equal `samples` or `data`, are compared by index; other data sets by the content of their `data` or, without
    it, of what they return, at most `limit` samples each, evenly spread. Fails on any sample in both. Not triggered
    where one is empty, or contents cannot be compared: samples that change each time, or are of different form.
    """
    return _apart(train, evaluation, ("train", "evaluation"), "trained on", limit)


@law(
    "KD334",
    "test-held-out",
    mend="choose epoch and settings on images cut from the train set, and score the test set once, at the end",
)
def check_held_out(selection: Any, test: Any, limit: int = 20_000) -> Verdict:
    """No sample that chooses the epoch, or the settings, scores the result.

    The best of many scores on the test set is reported as if it had been one: it lies above what the network is worth,
    and the more so the more epochs and settings there were. Takes and compares collections as `check_split` does.
    """
    return _apart(selection, test, ("selection", "test"), "used to select", limit)


def _apart(one: Any, other: Any, names: tuple[str, str], verb: str, limit: int) -> Verdict:
    """Compare two collections of samples, which are not to share any."""
    (ours, mine), (theirs, yours) = sides = _unwrapped(one), _unwrapped(other)
    observed: dict[str, Any] = {names[0]: len(mine), names[1]: len(yours)}
    if not mine or not yours:
        return undecided("out-of-scope", "one of the two is empty", None, observed)
    every = [1, 1]
    found: list[tuple[str, list[Any]]]
    decide_with = "ids, or Subsets of one data set"
    if _is_dataset(ours) and _is_dataset(theirs) and _is_same(ours, theirs):
        found = [("index", list(mine)), ("index", list(yours))]
    elif all(_is_dataset(root) and hasattr(_raw(root), "ndim") for root, _ in sides):
        found = [("sample", [content(_raw(root)[i]) for i in indices]) for root, indices in sides]
    else:
        for root, indices in sides:
            if _is_dataset(root) and any(content(root[i]) != content(root[i]) for i in indices[:8]):
                return undecided(
                    "form-not-recognised", "samples change from one time to the next", decide_with, observed
                )
        every = [math.ceil(len(i) / limit) if _is_dataset(root) else 1 for root, i in sides]
        found = [_keys(root, indices[::step]) for (root, indices), step in zip(sides, every, strict=True)]
    (kind, keys), (other_kind, other_keys) = found
    if kind != other_kind:
        raise OddAnswerError(f"{names[0]} holds {kind}s and {names[1]} {other_kind}s, which cannot be compared")
    if kind == "sample":
        forms = [{key.partition(":")[0] for key in side} for side in (keys, other_keys)]
        if not forms[0] & forms[1]:
            said = " and ".join(min(side) for side in forms)
            return undecided("form-not-recognised", f"samples are of different form: {said}", decide_with, observed)
    bound = ""
    if every != [1, 1]:
        bound = f"; compared were {len(keys)} of {len(mine)} and {len(other_keys)} of {len(yours)}"
    first = {key: place * every[0] for place, key in reversed(list(enumerate(keys)))}
    shared = [(key, first[key], place * every[1]) for place, key in enumerate(other_keys) if key in first]
    observed |= {"by": kind, "compared": [len(keys), len(other_keys)], "shared": len(shared)}
    if not shared:
        return passed(f"none of {len(other_keys)} {names[1]} samples is {verb}, by {kind}{bound}", observed)
    said = ", ".join(f"{names[0]}[{a}] is {names[1]}[{b}]" if kind == "sample" else str(k) for k, a, b in shared[:5])
    observed["examples"] = [[place, other] for _, place, other in shared[:5]]
    return failed(
        f"{len(shared)} of {len(other_keys)} {names[1]} samples are {verb} too, by {kind}: {said}"
        f"{', ...' if len(shared) > 5 else ''}{bound}",
        observed,
    )
