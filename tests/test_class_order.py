"""Classes that a teacher numbers in its own way: told where nothing puts them in order, followed where it is done."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import named_first, observed, step
from torch import nn

from kdbench.audits.hits import Hits, renumbered
from kdbench.harness.zoo.clean.material import WIDTH

CLASSES, PLACES, WORDS = 5, 6, 40


def rows(n=32):
    x = torch.randn(n, WIDTH)
    return x, x[:, :CLASSES].argmax(1)


def tagged(n=16):
    ids = torch.randint(0, WORDS, (n, PLACES))
    return ids, ids % CLASSES


class Tagger(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, width), nn.Linear(width, CLASSES)

    def forward(self, ids):
        return self.head(self.words(ids))


ORDERS = {
    "two exchanged": [0, 2, 1, 3, 4],
    "all moved": [3, 4, 0, 1, 2],
    "one further": [1, 2, 3, 4, 0],
    "as they are": [0, 1, 2, 3, 4],
}


def distil(batch, net, order, reorders=None):
    """Train a teacher on labels numbered by `order`; distil it with `reorders` of its answers, or as they are."""
    order = torch.tensor(order)
    teacher, student = net(24), net(8)
    learn = torch.optim.Adam(teacher.parameters(), 2e-2)
    for _ in range(60):
        x, y = batch()
        step(learn, F.cross_entropy(teacher(x).flatten(0, -2), order[y].flatten()))
    teacher.eval().requires_grad_(False)
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(12):
        x, y = batch()
        with torch.no_grad():
            its = teacher(x)
            its = its if reorders is None else reorders(its, order)
        mine = student(x).flatten(0, -2)
        soft = F.kl_div((mine / 2).log_softmax(1), (its.flatten(0, -2) / 2).softmax(1), reduction="batchmean") * 4
        step(optimizer, 0.5 * soft + 0.5 * F.cross_entropy(mine, y.flatten()))
    return teacher, student


def mlp(width):
    return nn.Sequential(nn.Linear(WIDTH, width), nn.ReLU(), nn.Linear(width, CLASSES))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("batch", "net"), [(rows, mlp), (tagged, Tagger)], ids=["images", "places"])
def test_classes_that_are_not_put_in_order_are_told_of(batch, net, order):
    report, _ = observed(distil, batch, net, ORDERS[order])
    assert named_first(report) == (None if order == "as they are" else ("KD303", "error"))
    found = next(f for f in report.findings if f.id == "KD303")
    moved = {str(c): name for c, name in enumerate(ORDERS[order]) if c != name}
    assert (found.observed or {}).get("renumbered", {}) == moved


@pytest.mark.parametrize(
    "reorders",
    [
        lambda its, order: its[..., order],
        lambda its, order: its.index_select(-1, order),
        lambda its, order: its[..., order.tolist()],
    ],
    ids=["index", "select", "list"],
)
@pytest.mark.parametrize(("batch", "net"), [(rows, mlp), (tagged, Tagger)], ids=["images", "places"])
def test_classes_that_are_put_in_order_are_followed(batch, net, reorders):
    report, trace = observed(distil, batch, net, ORDERS["all moved"], reorders)
    assert named_first(report) is None
    decided = {f.id: f.status for f in report.findings}
    assert decided["KD305"] == decided["KD313"] == "pass"
    assert all(e.form == "forward" for s in trace.losses.sights for e in s.explanations)


def table(*answers):
    """Ten labels of each class, and how often each class is the answer."""
    return torch.tensor(answers)


@pytest.mark.parametrize(
    "crossed",
    [
        table([10, 0, 0], [0, 3, 7], [0, 1, 9]),  # two classes are called one
        table([0, 0, 10, 0], [0, 0, 0, 10], [0, 0, 0, 0], [0, 0, 0, 0]),  # new classes, called by names of old ones
        table([5, 5, 0], [5, 5, 0], [0, 0, 10]),  # no class has one name
        table([0, 4, 0], [4, 0, 0], [0, 0, 10]),  # too few of each
        None,
    ],
    ids=["confused", "new", "unsure", "few", "many classes"],
)
def test_classes_that_are_confused_are_not_renumbered(crossed):
    assert renumbered(crossed) is None


def test_numbers_that_all_lie_one_further_are_told_though_the_last_has_no_label():
    found = renumbered(table([1, 9, 0, 0], [0, 1, 9, 0], [0, 0, 1, 9], [0, 0, 0, 0]))
    assert found.names == {0: 1, 1: 2, 2: 3} and (found.right, found.wrong, found.n) == (27, 3, 30)


def test_counts_of_two_batches_are_added_and_labels_to_ignore_left_out():
    logits = torch.eye(3)[[0, 1, 2, 2]]
    one, other = Hits.of(logits, torch.tensor([0, 1, 1, -100])), Hits.of(logits[:1], torch.tensor([2]))
    both = one + other
    assert int(both.right) == 2 and both.by_class.tolist() == [1, 2, 1] and both.said.tolist() == [2, 1, 1]
    assert both.crossed.tolist() == [[1, 0, 0], [0, 1, 1], [1, 0, 0]]
    assert Hits.of(torch.zeros(1, 300), torch.tensor([7])).crossed is None
