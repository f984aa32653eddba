"""Splits: what must be found right, and what must be caught."""

import numpy as np
import pytest
import torch
from law_specimens import Drawn, holds, seeded
from torch.utils.data import Dataset, Subset, TensorDataset

from kdbench.audits import laws
from kdbench.kd.procedure import CANONICAL


class Pictures(Dataset):
    """Like torchvision's: raw pixels in `data`, seen through a transform."""

    def __init__(self, data, transform):
        self.data, self.transform = data, transform

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.transform(torch.tensor(self.data[index])), 0


ROWS = torch.arange(60.0).reshape(20, 3)
RAW = np.random.default_rng(0).integers(0, 256, (20, 4, 4, 3), dtype=np.uint8)
WHOLE = TensorDataset(ROWS, torch.arange(20))
AUGMENTED, PLAIN = Pictures(RAW, lambda x: x + torch.rand(())), Pictures(RAW.copy(), lambda x: x / 255)
NOISE = Drawn(lambda: torch.rand(3))

SPLITS = {
    "ids": (torch.arange(10), range(10, 20), "pass", "none of 10 evaluation samples is trained on, by id"),
    "names": (["a.png", "b.png"], ["c.png"], "pass"),
    "rows": (ROWS[:10], ROWS[10:], "pass", "by sample"),
    "arrays": (list(RAW[:10]), list(RAW[10:]), "pass"),
    "subsets": (Subset(WHOLE, range(10)), Subset(WHOLE, range(10, 20)), "pass", "by index"),
    "subset of a subset": (Subset(Subset(WHOLE, range(5, 20)), [0, 1]), Subset(WHOLE, [0, 1]), "pass"),
    "random split": (*torch.utils.data.random_split(WHOLE, [15, 5]), "pass"),
    "two data sets": (TensorDataset(ROWS[:10]), TensorDataset(ROWS[10:]), "pass", "by sample"),
    "two transforms": (Subset(AUGMENTED, range(10)), Subset(PLAIN, range(10, 20)), "pass", "by index"),
    "raw pixels": (Pictures(RAW[:9], AUGMENTED.transform), Pictures(RAW[9:], PLAIN.transform), "pass", "by sample"),
    "ids shared": ([1, 2, 3], torch.tensor([3, 9, 1]), "fail", "2 of 3 evaluation samples", "by id: 3, 1"),
    "rows shared": (ROWS[:10], ROWS[8:], "fail", "2 of 12", "train[8] is evaluation[0], train[9] is evaluation[1]"),
    "names shared": (["a.png"], ["a.png"], "fail", "a.png"),
    "all shared": (range(10), range(10), "fail", "10 of 10", "0, 1, 2, 3, 4, ..."),
    "subsets shared": (Subset(WHOLE, range(11)), Subset(WHOLE, range(10, 20)), "fail", "1 of 10", "by index: 10"),
    "the whole": (WHOLE, Subset(WHOLE, [4]), "fail", "by index: 4"),
    "nested shared": (Subset(Subset(WHOLE, range(5, 20)), [0]), Subset(WHOLE, [5]), "fail", "index: 5"),
    "two data sets shared": (TensorDataset(ROWS[:10]), TensorDataset(ROWS[9:]), "fail", "train[9] is evaluation[0]"),
    "two transforms shared": (Subset(AUGMENTED, range(10)), Subset(PLAIN, range(9, 20)), "fail", "by index: 9"),
    "raw pixels shared": (
        Pictures(RAW[:9], AUGMENTED.transform),
        Pictures(RAW[8:], PLAIN.transform),
        "fail",
        "train[8]",
    ),
    "drawn anew": (NOISE, TensorDataset(ROWS), "not_triggered", "change from one time to the next"),
    "other form": (ROWS, ROWS.double(), "not_triggered", "torch.float32 (3,) and torch.float64 (3,)"),
    "empty": (ROWS, [], "not_triggered", "empty"),
}


@pytest.mark.parametrize("name", SPLITS)
def test_split(name):
    train, evaluation, *expected = SPLITS[name]
    holds(laws.check_split(train, evaluation), *expected)


def test_split_says_how_much_of_large_data_sets_was_compared():
    train, evaluation = TensorDataset(ROWS[:15]), TensorDataset(ROWS[15:])
    holds(laws.check_split(train, evaluation, limit=5), "pass", "compared were 5 of 15 and 5 of 5")
    finding = laws.check_split(train, TensorDataset(ROWS[12:]), limit=5)
    holds(finding, "fail", "train[12] is evaluation[0]", "compared were 5 of 15 and 4 of 8")


def test_what_scores_the_result_is_not_to_choose_the_epoch():
    holds(laws.check_held_out(range(10), range(10, 20)), "pass", "none of 10 test samples is used to select")
    holds(laws.check_held_out(range(11), range(10, 20)), "fail", "1 of 10 test samples are used to select too", "10")
    holds(laws.check_held_out(TensorDataset(ROWS[:9]), TensorDataset(ROWS[8:])), "fail", "selection[8] is test[0]")


def test_split_of_the_canonical_procedure(recipe):
    split = CANONICAL.split(torch.arange(200), torch.arange(200, 300), recipe, seeded(1))
    holds(laws.check_split(split.train, split.val), "pass")
    holds(laws.check_split(torch.cat([split.train, split.val[:1]]), split.val), "fail", "1 of 40")
