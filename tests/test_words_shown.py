"""Which of a network's arguments are its words, and which words are padding."""

import pytest
import torch

from kdbench.audits.infer.words import _masked, are_words, run_of_one
from kdbench.audits.observe.taint import Made
from kdbench.audits.observe.windows import ModuleCall

IDS = torch.tensor([[5, 9, 7, 3, 0, 0], [8, 2, 0, 0, 0, 0], [4, 4, 9, 1, 7, 2]])
MASK = (IDS != 0).long()
PADDING = IDS == 0


def call(*given):
    return ModuleCall(torch.nn.Identity(), 0, None, Made(), True, True, list(given))


PLACES = torch.arange(6).expand(3, 6)
OTHERS = {
    "places": PLACES,
    "places, as padding leaves them": (MASK.cumsum(1) * MASK).long() + 1,
    "places of texts in a row": torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 0, 1, 2, 3]]),
    "which of two texts": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]]),
    "labels": IDS.masked_fill(PADDING, -100),
    "numbers": IDS.float(),
    "one text": IDS[0],
}


def test_words_are_told_from_other_whole_numbers():
    assert are_words(IDS) and are_words(IDS.int())
    assert [name for name, value in OTHERS.items() if are_words(value)] == []


MASKS = {
    "of ones and zeros": MASK,
    "of truth": MASK.bool(),
    "of numbers": MASK.float(),
    "turned round": PADDING,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_says_what_is_padding(name):
    found = _masked(IDS, [call(IDS, MASKS[name])])
    assert found is not None and torch.equal(found, PADDING)
    flipped = _masked(IDS.flip(1), [call(IDS.flip(1), MASKS[name].flip(1))])
    assert flipped is not None and torch.equal(flipped, PADDING.flip(1))


NO_MASKS = {
    "nothing else": IDS,
    "all ones": torch.ones_like(IDS),
    "which of two texts": torch.tensor([[0, 0, 0, 1, 1, 1]] * 3),
    "answers": torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]]),
    "of another shape": MASK[:, :5],
}


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_no_mask_says_nothing(name):
    assert _masked(IDS, [call(IDS, NO_MASKS[name])]) is None


def test_words_that_are_one_in_the_middle_are_no_padding():
    ids = torch.tensor([[5, 0, 7, 3, 0, 0], [8, 2, 3, 0, 0, 0]])
    assert _masked(ids, [call(ids, (ids != 0).long())]) is None


def test_a_run_of_one_word_looks_like_padding():
    assert torch.equal(run_of_one(IDS), PADDING)
    assert torch.equal(run_of_one(IDS.flip(1)), PADDING.flip(1))
    for ids in (IDS[:, :4], IDS[2:], torch.full((3, 6), 7)):
        assert run_of_one(ids) is None
