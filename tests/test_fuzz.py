"""No traceback and no hang for a damaged file, whoever reads it; the long form is `python tests/fuzz.py`."""

import pytest
from fuzz import READERS, outcome, setting, try_reader

FEW = 25


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("fuzz")
    setting(place)
    return place


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_refused_in_one_sentence(name, place):
    tally = try_reader(READERS[name], place, range(FEW))
    assert tally.unforeseen == []
    assert tally.taken["refused"] >= FEW / 3, "damage that nobody notices tests nothing"


@pytest.mark.parametrize("name", READERS)
def test_the_same_file_undamaged_is_accepted(name, place):
    assert [outcome(call, place)[0] for call in READERS[name].calls] == ["accepted"] * len(READERS[name].calls)


def test_an_error_that_nobody_foresaw_is_counted(place):
    def broken(_):
        raise KeyError("what")

    reader = READERS["contract"]
    tally = try_reader(type(reader)(reader.file, (broken,), reader.kind), place, range(2))
    assert tally.taken == {"unforeseen": 2} and "KeyError" in tally.unforeseen[0][1]


@pytest.mark.parametrize("damage", [425, 647, 900])
def test_numbers_beyond_all_use_are_refused_before_anything_is_made_of_them(damage, place):
    """Epochs that no float holds, and a width that no tensor has; found by the long form."""
    assert try_reader(READERS["study.toml"], place, range(damage, damage + 1)).taken == {"refused": 1}
