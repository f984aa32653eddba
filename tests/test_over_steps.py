"""What only several steps show: standing features, a teacher that is the student. And words behind one more at the
start, and masks in another order of texts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_forms_by_hand import verdict_of
from test_which_training import STEPS, named_first, observed, step
from torch import nn
from torch.func import functional_call

WORDS, WIDTH, LENGTH, BEGIN = 12, 16, 10, 12


def net(width):
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def hinted(slip):
    """Hidden layers are compared as hooks kept them; a list that is never emptied goes on holding the first."""
    big, small, bridge = net(24), net(10), nn.Linear(10, 24)
    kept, own = [], []
    big[1].register_forward_hook(lambda module, given, out: kept.append(out))
    small[1].register_forward_hook(lambda module, given, out: own.append(out))
    adam = torch.optim.Adam([*small.parameters(), *bridge.parameters()], 1e-2)
    big.eval().requires_grad_(False)
    batch = torch.randn(16, 8)
    for _ in range(STEPS):
        x = batch if slip == "one batch" else torch.randn(16, 8)
        own.clear()
        if slip != "never emptied":
            kept.clear()
        with torch.no_grad():
            said = big(x)
        answer = small(x)
        kd = F.kl_div(answer.log_softmax(1), said.softmax(1), reduction="batchmean")
        step(adam, kd + F.mse_loss(bridge(own[0]), kept[0]))
    return big, small, bridge


def test_features_of_an_early_batch_are_named():
    report, _ = observed(hinted, "never emptied")
    assert verdict_of(report, "KD305").status == "fail"
    assert (
        "(mse_loss) is its answer to an earlier batch: bit for bit the same in 8 steps"
        in verdict_of(report, "KD305").message
    )


@pytest.mark.parametrize("slip", [None, "one batch"])
def test_features_of_the_batch_at_hand_are_not_whatever_the_batch(slip):
    report, _ = observed(hinted, slip)
    assert verdict_of(report, "KD305").status == "pass"


def prototypes():
    """The teacher's words for the classes are read once, those of the student are learned; images are new each time."""
    big, small, names = net(24), net(10), torch.randn(16, 8)
    big.eval().requires_grad_(False)
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    with torch.no_grad():
        classes = big(names)
    for _ in range(STEPS):
        x = torch.randn(16, 8)
        with torch.no_grad():
            said = big(x)
        step(adam, F.mse_loss(small(names), classes) + F.mse_loss(small(x), said))
    return big, small


def test_what_is_asked_of_the_same_input_may_stand():
    report, _ = observed(prototypes)
    assert verdict_of(report, "KD305").status != "fail"


def remembers(slip):
    """What the network was before its task is to be remembered; state_dict alone is no copy."""
    model = net(16)
    x0, y0 = torch.randn(64, 8), torch.randint(0, 4, (64,))
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(STEPS):
        step(adam, F.cross_entropy(model(x0), y0))
    kept = {k: v.detach() if slip else v.detach().clone() for k, v in model.state_dict().items()}
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(2 * STEPS):
        x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
        with torch.no_grad():
            said = functional_call(model, kept, (x,))
        answer = model(x)
        kd = F.kl_div(F.log_softmax(answer / 2, 1), F.softmax(said / 2, 1), reduction="batchmean") * 4
        step(adam, F.cross_entropy(answer, y) + kd)
    return model


def test_a_memory_that_learns_along_is_named():
    report, _ = observed(remembers, True)
    assert named_first(report) == ("KD311", "error")
    assert "the student is held against its own answer" in verdict_of(report, "KD311").message


def test_a_memory_that_stays_is_not():
    report, _ = observed(remembers, False)
    assert verdict_of(report, "KD311").status == "pass"


def takes_over(assign):
    """A memory whose numbers are taken over lies in the student's own memory, and learns along."""
    small, big = net(16), net(16)
    small_adam = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        step(small_adam, F.cross_entropy(small(torch.randn(32, 8)), torch.randint(0, 4, (32,))))
    big.load_state_dict(small.state_dict(), assign=assign)
    big.eval().requires_grad_(False)
    small.requires_grad_(True)
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(2 * STEPS):
        x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
        with torch.no_grad():
            said = big(x)
        answer = small(x)
        kd = F.kl_div(F.log_softmax(answer, 1), F.softmax(said, 1), reduction="batchmean")
        step(adam, F.cross_entropy(answer, y) + kd)
    return big, small


def test_a_teacher_that_lies_in_the_students_memory_is_named():
    report, trace = observed(takes_over, True)
    assert trace.losses.echoed is not None and trace.losses.echoed.windows >= 10
    assert "the teacher answers bit for bit as the student does" in verdict_of(report, "KD311").message
    assert "clone()" in verdict_of(report, "KD311").mend


def test_one_with_a_memory_of_its_own_is_not():
    report, trace = observed(takes_over, False)
    assert trace.losses.echoed is None and verdict_of(report, "KD311").status == "pass"


def begins_as_its_teacher():
    """A student that is its teacher's copy answers alike up to its first step, and a rate may begin at zero."""
    big = net(16)
    small = copy.deepcopy(big)
    big.eval().requires_grad_(False)
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    for at in range(2 * STEPS):
        adam.param_groups[0]["lr"] = 1e-3 * max(0, at - 2)
        x, y = torch.randn(32, 8), torch.randint(0, 4, (32,))
        with torch.no_grad():
            said = big(x)
        answer = small(x)
        kd = F.kl_div(F.log_softmax(answer, 1), F.softmax(said, 1), reduction="batchmean")
        step(adam, F.cross_entropy(answer, y) + kd)
    return big, small


def test_a_copy_that_has_not_moved_yet_is_no_echo():
    report, trace = observed(begins_as_its_teacher)
    assert verdict_of(report, "KD311").status == "pass" and trace.losses.echoed is None


class Speaker(nn.Module):
    def __init__(self, words, width=WIDTH):
        super().__init__()
        self.words, self.gru, self.head = nn.Embedding(words, width), nn.GRU(width, width, batch_first=True), None
        self.head = nn.Linear(width, WORDS)

    def forward(self, ids):
        return self.head(self.gru(self.words(ids))[0])


def sentences(n=24):
    """Each word tells the next one, all but now and then."""
    ids = [torch.randint(0, WORDS, (n, 1))]
    for _ in range(LENGTH):
        other = torch.rand(n, 1) < 0.2
        ids.append(torch.where(other, torch.randint(0, WORDS, (n, 1)), (ids[-1] * 5 + 1) % WORDS))
    return torch.cat(ids, 1)


def begun(ids):
    return torch.cat([torch.full((len(ids), 1), BEGIN), ids], 1)


def spoken(slip):
    """The teacher reads one more word before each text than the student."""
    big, small = Speaker(WORDS + 1, 32), Speaker(WORDS)
    adam = torch.optim.Adam(big.parameters(), 1e-2)
    for _ in range(120 if slip != "untaught" else 1):
        text = sentences()
        step(adam, F.cross_entropy(big(begun(text)[:, :-1]).flatten(0, 1), text.flatten()))
    big.eval().requires_grad_(False)
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        text = sentences()
        shown, asked = text[:, :-1], text[:, 1:]
        with torch.no_grad():
            said = big(begun(shown))
        said = said[:, 1:] if slip is None else said[:, :-1]
        answer = small(shown)
        kd = F.kl_div(answer.flatten(0, 1).log_softmax(1), said.flatten(0, 1).softmax(1), reduction="batchmean")
        step(adam, kd + F.cross_entropy(answer.flatten(0, 1), asked.flatten()))
    return big, small


def test_a_word_before_each_text_that_is_not_counted_is_named():
    report, _ = observed(spoken, "not counted")
    assert named_first(report) == ("KD305", "error")
    assert "token i is taught by the teacher's answer to i - 1" in verdict_of(report, "KD305").message


@pytest.mark.parametrize("slip", [None, "untaught"])
def test_one_that_is_counted_or_a_teacher_that_knows_nothing_is_not(slip):
    report, _ = observed(spoken, slip)
    assert verdict_of(report, "KD305").status != "fail"


class Tagger(nn.Module):
    """Sorts its texts by length, as packed sequences are, and answers in the order that it was shown them."""

    def __init__(self, width, restored):
        super().__init__()
        self.words, self.gru = nn.Embedding(WORDS, width, padding_idx=0), nn.GRU(width, width, batch_first=True)
        self.head, self.restored = nn.Linear(width, 4), restored

    def forward(self, ids, lengths):
        lengths, order = lengths.sort(descending=True)
        hidden, back = self.gru(self.words(ids[order]))[0], order.argsort()
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return self.head(hidden)[back], mask[back] if self.restored else mask


def tagged(restored):
    big, small = Tagger(24, restored), Tagger(10, restored)
    big.eval().requires_grad_(False)
    adam = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(STEPS):
        ids, lengths = torch.randint(1, WORDS, (24, LENGTH)), torch.randint(2, LENGTH + 1, (24,))
        none = torch.arange(LENGTH) >= lengths[:, None]
        ids, tags = ids.masked_fill(none, 0), (ids % 4).masked_fill(none, -100)
        with torch.no_grad():
            said, _ = big(ids, lengths)
        answer, mask = small(ids, lengths)
        each = F.kl_div(answer.log_softmax(-1), said.softmax(-1), reduction="none").sum(-1)
        kd = each.masked_fill(~mask, 0).sum() / mask.sum()
        step(adam, kd + F.cross_entropy(answer.flatten(0, 1), tags.flatten(), ignore_index=-100))
    return big, small


def test_a_mask_of_other_texts_is_named():
    report, _ = observed(tagged, False)
    assert verdict_of(report, "KD352").status == "fail"
    assert "the mask belongs to other texts" in verdict_of(report, "KD352").message


def test_the_mask_of_these_texts_is_right_in_whatever_order_they_are_read():
    report, _ = observed(tagged, True)
    assert verdict_of(report, "KD352").status == "pass"
