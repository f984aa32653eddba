"""Which samples were trained on and which evaluated, as far as torch's own data sets tell."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.weak import TensorWeakRef

from kdbench.audits.observe import hooks, torch_internals
from kdbench.audits.observe.taint import tensors_in
from kdbench.audits.updates import Where

_MOST = 50_000
"Rows that are told apart: the training part of the common data sets."
_SETS = 64
"Data sets that are kept in mind; a loop that builds more, builds one an epoch."
_BYTES, _DISTINCT = 16, 0.99
"Bytes a row, and the share of distinct rows, without which rows coincide by chance."
_FEWEST = 8
"Rows that make a test."
_REPEATED = 1.5
"How often each row must have been learned from in the mean to be one of a set that stands still."
_CHANCE = 0.02
"Share of a test's rows that may be learned from by chance: real data sets hold some samples twice."


class Overlap(NamedTuple):
    """Samples of an evaluation that were trained on too."""

    size: int
    both: int
    how: str
    sure: bool
    "Whether it was seen to be evaluated, and holds others too; or is all that a script that ended by itself evaluated."
    where: Where | None = None
    "Where it was gone through, or built."


class Sampled(Subset[Any]):
    """What a sampler takes of a set."""


class Loaders:
    """The data sets that loaders were built on, and those among them that the student was trained with."""

    def __init__(self) -> None:
        self._all: list[Any] = []
        self._by_loader: WeakKeyDictionary[DataLoader[Any], Any] = WeakKeyDictionary()
        self._train: dict[str, list[Any]] = {}
        "By student."
        self._evaluated: dict[str, list[tuple[Any, Any]]] = {}
        "By student, each with the set that was gone through for training before it: folds follow each other."
        self._gone_through: list[Any] = []
        self._batches: list[TensorWeakRef] = []
        "The tensors that a loader gave last."
        self._current: Any = None
        self._student = ""
        self._learned: dict[int, set[bytes]] = {}
        self._tested: dict[int, list[set[bytes]]] = {}
        self._testing: int | None = None
        self._shown: dict[int, int] = {}
        "By network, rows that it was shown to learn from, each time that it was."
        self._batch: set[bytes] = set()
        "What was last learned from: to ask about it again, as for a log or a target, is no test."
        self._places: dict[int, Where | None] = {}
        "By the id of a data set, or of a network that was shown rows, where it was evaluated."
        self.asks_itself = False
        "Whether the student answers without a gradient to teach itself: then such an answer is no test."

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note each loader when it is built and gone through."""

        def wrap_init(original: Any) -> Any:
            def init(loader: Any, *args: Any, **kwargs: Any) -> None:
                original(loader, *args, **kwargs)
                if len(self._all) < _SETS:
                    self._places[id(self._set_of(loader))] = hooks.call_site()
                    self._all.append(self._set_of(loader))  # not the loader: its workers must be able to end

            return init

        def wrap_iter(original: Any) -> Any:
            def iterate(loader: Any) -> Any:
                dataset = self._set_of(loader)
                if torch.is_grad_enabled():
                    self._current = dataset
                else:
                    self._evaluated.setdefault(self._student, []).append((dataset, self._current))
                    self._places[id(dataset)] = hooks.call_site()
                self._gone_through.append(dataset)
                return original(loader)

            return iterate

        def wrap_next(original: Any) -> Any:
            def following(iterator: Any) -> Any:
                batch = original(iterator)
                self._batches = [TensorWeakRef(t) for t in tensors_in(batch, 3)]
                return batch

            return following

        with (
            hooks.patched(DataLoader, "__init__", wrap_init),
            hooks.patched(DataLoader, "__iter__", wrap_iter),
            hooks.patched(torch_internals.LoaderIterator, "__next__", wrap_next),
        ):
            yield

    def handed_out(self, batch: Tensor) -> bool:
        """Say whether a batch is what a loader gave last, and nothing was made of it since."""
        given = [t for ref in self._batches if (t := ref()) is not None]
        return any(t is batch or (t.shape == batch.shape and torch.equal(t.cpu(), batch.cpu())) for t in given)

    @property
    def latest(self) -> Any:
        """The data set that was gone through last; None if there was none."""
        return self._gone_through[-1] if self._gone_through else None

    def _set_of(self, loader: DataLoader[Any]) -> Any:
        try:
            if loader not in self._by_loader:
                self._by_loader[loader] = _taken(loader)
            return self._by_loader[loader]
        except Exception:  # a sampler of the user's, in the midst of the user's training
            return loader.dataset

    def trained_on(self, student: str) -> None:
        """Say that the batch at hand was distilled on, by this student."""
        if not self._student:
            self._evaluated[student] = [(b, self._current) for b, _ in self._evaluated.pop("", [])]
        self._student = student
        mine = self._train.setdefault(student, [])
        if self._current is not None and all(self._current is not t for t in mine):
            mine.append(self._current)

    def shown(self, network: int, rows: list[bytes], learning: bool, words: bool = False) -> None:
        """Take in a batch that the student was shown, to learn from or to be tested on; words are never drawn anew."""
        if (
            any(len(row) < _BYTES for row in rows[:1])
            or len(set(rows)) < _DISTINCT * len(rows)
            or sum(map(len, self._learned.values())) > _MOST
        ):
            return
        if self.asks_itself:
            self._tested.clear()
        if learning:
            self._learned.setdefault(network, set()).update(rows)
            self._shown[network] = self._shown.get(network, 0) + len(rows) * (2 if words else 1)
            if self._testing == network and self._tested[network][-1] <= set(rows):
                self._tested[network].pop()  # asked about the batch that it is about to learn from
            self._testing, self._batch = None, set(rows)
        elif not self.asks_itself and not self._batch >= set(rows):
            if sum(map(len, self._tested.get(network, ()))) > _MOST:
                return
            self._tested.setdefault(network, []).append(set(rows))
            self._places.setdefault(network, hooks.call_site())
            self._testing = network

    def taught_another(self) -> None:
        """Take in that other networks made a step: what the student was just asked about is what it taught them."""
        tests = self._tested.get(self._testing, []) if self._testing is not None else []
        size = len(tests[-1]) if tests else 0
        while tests and len(tests[-1]) == size:  # the batches of one step
            tests.pop()
        self._testing = None

    def overlap_of_rows(self) -> Overlap | None:
        """Return the same of the rows that the student was shown, where no loader tells.

        To test on the very samples learned from is how accuracy on them is measured; so a test on others beside it, or
        one batch with some of each, tells the two apart. Where one test ends and the next begins is not seen. A test on
        the whole set, with all that was learned from in it, is a score that is too good, and may be said to be one.
        """
        for network, tests in self._tested.items():
            learned = self._learned.get(network, set())
            tests = [t for t in tests if len(t) >= _FEWEST]
            if not learned or not tests:
                continue
            at, how = self._places.get(network), "rows shown to the student"
            mixed = [t for t in tests if _CHANCE * len(t) < len(t & learned) < len(t)]
            if mixed and self._shown[network] < _REPEATED * len(learned):
                return None  # samples that are drawn anew each time come out as they are in the set now and then
            if mixed:
                rows = set().union(*mixed)
                if len(learned - rows) <= _CHANCE * len(learned):  # a score on all that there is may be said as such
                    said = f"{how}; all that it learned from is among them"
                    return Overlap(len(rows), len(rows & learned), said, False, at)
                return Overlap(len(rows), len(rows & learned), how, True, at)
            apart = set().union(*(t for t in tests if not t & learned))
            if apart:
                return Overlap(len(apart), 0, how, True)
            rows = set().union(*(t for t in tests if t <= learned))
            if rows and len(rows) < len(learned):
                said = f"{how}; every test is on rows learned from"
                return Overlap(len(rows), len(rows), said, False, at)
        return None

    def overlap(self, whole: bool = False) -> Overlap | None:
        """Return what of a student's evaluation it was trained on, as far as loaders tell; None if nothing was to see.

        The very same set again is accuracy on the training set itself, and so may a part of it be, where another set
        is evaluated too, or what answers are stored of beforehand. Of a loader that was never gone through nothing is
        sure: it may be another fold's. `whole` says that the script ended by itself: what it evaluated is all that it
        reports.
        """
        found: list[Overlap] = []
        gone_through = [t for trained in (*self._train.values(), [self._current]) for t in trained]
        idle = [d for d in self._all if all(d is not g for g in self._gone_through)]
        for student, trained in self._train.items():
            for a in trained:
                mine = _samples(a)
                tested = [b for b, current in self._evaluated.get(student, []) if current is a]
                for b in [*tested, *idle]:
                    theirs = _samples(b)
                    if any(b is t for t in trained) or mine is None or theirs is None or mine[0] != theirs[0]:
                        continue
                    if any(isinstance(part, Sampled) and part.dataset is all_ for part, all_ in ((a, b), (b, a))):
                        continue
                    both = len(theirs[1] & mine[1])
                    if both and any(_are_apart(theirs, _samples(t)) for t in gone_through if t is not a):
                        continue  # of a fold to come
                    how = f"{type(b).__name__} of {len(theirs[1])} against {type(a).__name__} of {len(mine[1])}"
                    sure = any(b is t for t in tested) and (both < len(theirs[1]) or whole)
                    found.append(Overlap(len(theirs[1]), both, how, sure, self._places.get(id(b))))
        apart = [o for o in found if not o.both]
        partly = [o for o in found if 0 < o.both < o.size]
        if apart and partly and not any(o.sure for o in partly):
            return None
        leaks = partly if apart else found
        return max(leaks, key=lambda o: (o.sure, o.both), default=apart[0] if apart else None)


def _are_apart(some: tuple[Any, set[Any]], others: tuple[Any, set[Any]] | None) -> bool:
    return others is not None and some[0] == others[0] and not some[1] & others[1]


def _taken(loader: DataLoader[Any]) -> Any:
    """Return a loader's set, or what its sampler takes of it if that is told before it is drawn."""
    dataset: Any = loader.dataset
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    while isinstance(sampler, BatchSampler):
        sampler = sampler.sampler
    if sampler is loader.batch_sampler and isinstance(sampler, list | tuple):
        sampler = [i for batch in sampler for i in batch]
    if type(sampler) in (SequentialSampler, RandomSampler):  # of indices, too, they count from 0
        indices: Any = range(len(sampler.data_source))
    elif type(sampler) is SubsetRandomSampler:
        indices = sampler.indices
    elif type(sampler) is WeightedRandomSampler:
        indices = sampler.weights.nonzero().flatten().tolist()
    elif isinstance(sampler, list | tuple | range | Tensor) or hasattr(sampler, "__array__"):
        indices = sampler
    else:
        return dataset
    if len(indices) < len(dataset) or (not isinstance(indices, range) and len({*map(int, indices)}) < len(dataset)):
        return Sampled(dataset, indices)
    return dataset


def _samples(dataset: Any) -> tuple[Any, set[Any]] | None:
    """Return the samples of a set as ids, and what the ids are relative to."""
    if isinstance(dataset, Subset):
        indices = [int(i) for i in dataset.indices]
        base = dataset.dataset
        while isinstance(base, Subset):
            indices = [int(base.indices[i]) for i in indices]
            base = base.dataset
        if isinstance(base, TensorDataset):
            rows = _rows(base.tensors[0])
            return None if rows is None else ("content", {rows[i] for i in indices})
        rows = _rows_inside(base)
        return (id(base), set(indices)) if rows is None else ("content", {rows[i] for i in indices})
    if isinstance(dataset, TensorDataset):
        rows = _rows(dataset.tensors[0])
        return None if rows is None else ("content", set(rows))
    rows = _rows_inside(dataset)
    return None if rows is None else ("content", set(rows))


def _rows_inside(dataset: Any) -> list[bytes] | None:
    """Return the samples that a data set of the user's holds as one tensor; it is not asked for any, which may draw."""
    try:
        size = len(dataset)
    except TypeError:
        return None
    for value in vars(dataset).values() if hasattr(dataset, "__dict__") else ():
        if isinstance(value, Tensor) and value.ndim > 1 and len(value) == size and value.is_floating_point():
            return _rows(value)
    return None


def _rows(values: Tensor) -> list[bytes] | None:
    if len(values) > _MOST or values.numel() > 2**28 or values[:1].numel() < 4:
        return None  # rows of a few numbers coincide by chance
    flat = values.detach().reshape(len(values), -1).cpu().contiguous()
    if flat.dtype == torch.bfloat16:
        flat = flat.float()
    rows = [row.tobytes() for row in flat.numpy()]
    return rows if len(set(rows)) >= _DISTINCT * len(rows) else None  # few values: rows coincide by chance
