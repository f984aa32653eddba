"""Which samples of a script's loaders were trained on and evaluated, told from their sets and samplers."""

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from kdbench.audits.observe.splits import Loaders


class Images(Dataset):
    """Samples that are told apart by their ids alone."""

    def __len__(self):
        return 100

    def __getitem__(self, i):
        return np.float32(i)


class Own(Sampler):
    """A sampler of the user's."""

    def __init__(self, indices):
        self.indices = indices

    def __iter__(self):
        return iter(self.indices)

    def __len__(self):
        return len(self.indices)


def weights(indices):
    return [float(i in set(indices)) for i in range(100)]


WAYS = {
    "subset": lambda data, indices: DataLoader(Subset(data, indices), 10),
    "random": lambda data, indices: DataLoader(data, 10, sampler=SubsetRandomSampler(indices)),
    "list": lambda data, indices: DataLoader(data, 10, sampler=indices),
    "array": lambda data, indices: DataLoader(data, 10, sampler=np.array(indices)),
    "tensor": lambda data, indices: DataLoader(data, 10, sampler=SubsetRandomSampler(torch.tensor(indices))),
    "batches": lambda data, indices: DataLoader(
        data, batch_sampler=BatchSampler(SubsetRandomSampler(indices), 10, drop_last=True)
    ),
    "list of batches": lambda data, indices: DataLoader(data, batch_sampler=[indices[:10], indices[10:]]),
    "batches as samples": lambda data, indices: DataLoader(
        data, sampler=BatchSampler(SubsetRandomSampler(indices), 10, drop_last=False), batch_size=None
    ),
    "weights": lambda data, indices: DataLoader(data, 10, sampler=WeightedRandomSampler(weights(indices), 50)),
    "twice drawn": lambda data, indices: DataLoader(Subset(data, range(100)), 10, sampler=indices * 2),
}


@pytest.fixture
def loaders():
    seen = Loaders()
    with seen.watching():
        yield seen


def train(loaders, loader, student="student"):
    iter(loader)
    loaders.trained_on(student)


@torch.no_grad()
def evaluate(loader):
    iter(loader)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("start", "both"), [(60, 0), (50, 10)])
def test_samplers_over_one_set(loaders, way, start, both):
    data = Images()
    train(loaders, WAYS[way](data, list(range(60))))
    evaluate(WAYS[way](data, list(range(start, start + 30))))
    found = loaders.overlap()
    assert (found.size, found.both, found.sure) == (30, both, True)


@pytest.mark.parametrize("sampler", [RandomSampler, SequentialSampler])
def test_a_sampler_that_is_handed_indices_counts_from_zero(loaders, sampler):
    data = Images()
    train(loaders, DataLoader(data, 10, sampler=SubsetRandomSampler(range(60))))
    evaluate(DataLoader(data, 10, sampler=sampler(range(60, 100))))
    found = loaders.overlap()
    assert (found.size, found.both) == (40, 40)


def undecided(loaders, training, *tests):
    train(loaders, training)
    for test in tests:
        evaluate(test)
    return loaders.overlap() is None


def test_what_a_sampler_does_not_tell_is_not_guessed(loaders):
    data = Images()
    drawn = DataLoader(data, 10, sampler=SubsetRandomSampler(range(60)))
    assert undecided(loaders, drawn, DataLoader(data, 10, sampler=Own(range(60, 100))))


def test_a_pass_through_the_whole_set_may_store_answers(loaders):
    data = TensorDataset(torch.randn(100, 8))
    drawn = DataLoader(data, 10, sampler=SubsetRandomSampler(range(60)))
    assert undecided(loaders, drawn, DataLoader(data, 10))


def test_the_same_loader_again_is_accuracy_on_the_training_set(loaders):
    drawn = DataLoader(Images(), 10, sampler=SubsetRandomSampler(range(60)))
    assert undecided(loaders, drawn, drawn)


@pytest.mark.parametrize("way", ["subset", "random"])
@pytest.mark.parametrize("ahead", [False, True])
def test_folds_and_repeated_splits_are_no_overlap(loaders, way, ahead):
    data = Images()
    orders = [np.random.default_rng(i).permutation(100).tolist() for i in range(3)]
    parts = [(order[:70], order[70:]) for order in orders]
    built = [[WAYS[way](data, part) for part in pair] for pair in parts] if ahead else None
    for i, pair in enumerate(parts):
        training, test = built[i] if built else [WAYS[way](data, part) for part in pair]
        evaluate(test)
        for _ in range(2):
            train(loaders, training, "Net (student)")
            evaluate(test)
        found = loaders.overlap()
        assert found is None or not found.both
    assert found.both == 0


def test_a_loader_that_breaks_leaves_the_script_alone(loaders):
    class Sizeless(Images):
        __len__ = None

    data = Sizeless()
    train(loaders, DataLoader(data, 10, sampler=SubsetRandomSampler(range(60))))
    assert loaders.overlap() is None


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_a_script_that_evaluates_nothing_but_what_it_trained_on_is_told_so_at_its_end(loaders, whole, apart):
    data = TensorDataset(torch.randn(100, 8), torch.randint(3, (100,)))
    train(loaders, DataLoader(Subset(data, range(60)), 10))
    evaluate(DataLoader(Subset(data, range(20, 50)), 10))
    if apart:
        evaluate(DataLoader(Subset(data, range(60, 100)), 10))
    found = loaders.overlap(whole)
    if apart:
        assert found.both == 0
    else:
        assert (found.size, found.both, found.sure) == (30, 30, whole)
        assert found.where["file"].endswith("test_splits.py")


@pytest.mark.parametrize("about", ["the batch after learning", "the batch before learning", "batches of before"])
def test_to_ask_about_the_batch_at_hand_is_no_test(about):
    loaders = Loaders()
    batches = [[f"a row of batch {b}, number {i:02d}".encode() for i in range(16)] for b in range(4)]
    for i, rows in enumerate(batches):
        if about.endswith("before learning"):
            loaders.shown(1, rows, False)
        loaders.shown(1, rows, True)
        if about.endswith("after learning"):
            loaders.shown(1, rows, False)
        if about.startswith("batches of") and i:
            loaders.shown(1, batches[i - 1], False)
    found = loaders.overlap_of_rows()
    assert (found is None) == about.startswith("the batch")


@pytest.mark.parametrize("anew", [False, True])
def test_the_training_set_itself_is_no_test_where_its_samples_are_drawn_anew(anew):
    loaders = Loaders()
    for epoch in range(6):
        moved = [i % 6 == epoch or not anew for i in range(64)]
        rows = [f"sample {i:02d}, {'as it is' if m else f'view {epoch}'}, more".encode() for i, m in enumerate(moved)]
        loaders.shown(1, rows[: 32 + 32 * anew], True)
    loaders.shown(1, [f"sample {i:02d}, as it is, more".encode() for i in range(16, 64 + 8 * anew)], False)
    found = loaders.overlap_of_rows()
    assert (found is None) == anew
    assert anew or (found.size, found.both, found.sure) == (48, 16, True)


def test_a_score_on_the_whole_set_is_a_warning_and_one_on_a_part_that_leaks_an_error():
    rows = [f"sample number {i:02d}, as it is".encode() for i in range(64)]
    for tested, sure in ((rows, False), (rows[24:], True)):
        loaders = Loaders()
        for _ in range(4):
            loaders.shown(1, rows[:40], True)
        loaders.shown(1, tested, False)
        found = loaders.overlap_of_rows()
        assert (found.both, found.sure) == (40 if not sure else 16, sure), found.how
        assert ("all that it learned from is among them" in found.how) is not sure


@pytest.mark.parametrize("teaches", [True, False])
def test_what_a_student_is_asked_while_it_teaches_another_is_no_test(teaches):
    rows, loaders = [bytes([i]) * 64 for i in range(96)], Loaders()
    for _ in range(4):
        loaders.shown(1, rows[:64], True)
    for batch in (rows[32:64] + rows[64:80], rows[48:96]):
        loaders.shown(1, batch, False)
    if teaches:
        loaders.taught_another()
    found = loaders.overlap_of_rows()
    assert (found is None) == teaches, found
