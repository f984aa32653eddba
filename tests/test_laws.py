"""All laws: their table, what none of them can judge, and what none of them moves."""

import functools
import random
import statistics

import numpy as np
import pytest
import torch
from law_specimens import Drawn, holds

from kdbench.audits import laws
from kdbench.audits.checks.all import CATALOGUE
from kdbench.audits.finding import FUNCTION_BROKE, Report


def broken(*_args, **_kwargs):
    raise RuntimeError("no such\nluck")


def test_every_law_is_in_the_table_and_shares_its_id_only_with_the_audit_of_the_same_name():
    assert {entry.id for entry in laws.LAWS.values()} == {
        *("KD313", "KD331", "KD332", "KD333", "KD334", "KD341", "KD342", "KD343", "KD344", "KD345", "KD346", "KD347")
    }
    names = {entry.id: entry.name for entry in laws.LAWS.values()}
    assert all(names.get(audit.id, audit.name) == audit.name for audit in CATALOGUE.values())
    public = {name for name in vars(laws) if name.startswith("check_")}
    assert {entry.function.__name__ for entry in laws.LAWS.values()} == public
    assert all(entry.story and entry.mend and entry.name == name for name, entry in laws.LAWS.items())


ERRORS = {
    "selection": lambda: laws.check_selection(broken),
    "weighting": lambda: laws.check_weighting(broken),
    "weighting of two": lambda: laws.check_weighting(lambda ce, kd: ce + kd),
    "weighting by name": lambda: laws.check_weighting(lambda ce, kd, a, b: "ce"),
    "weighting of a batch": lambda: laws.check_weighting(lambda ce, kd, a, b: torch.ones(3)),
    "selection of a name": lambda: laws.check_selection(lambda val, test: "best"),
    "selection of a score": lambda: laws.check_selection(lambda val, test: max(val)),
    "selection of nothing": lambda: laws.check_selection(lambda val, test: None),
    "augmentation": lambda: laws.check_augmentation(broken),
    "augmentation of a path": lambda: laws.check_augmentation(lambda: "cat.png"),
    "augmentation once": lambda: laws.check_augmentation(lambda: torch.rand(3, 4, 4), 1),
    "schedule": lambda: laws.check_schedule(broken, 10, first=0.1),
    "schedule of no steps": lambda: laws.check_schedule(lambda step: 0.1, 0, first=0.1),
    "schedule without rates": lambda: laws.check_schedule(lambda step: None, 10, first=0.1),
    "group schedule": lambda: laws.check_group_schedule(broken, 3),
    "schedule of a name": lambda: laws.check_schedule("cosine", 10, first=0.1),
    "spread": lambda: laws.check_spread(broken),
    "spread without deviation": lambda: laws.check_spread(statistics.fmean),
    "aggregation": lambda: laws.check_aggregation(broken),
    "aggregation of more": lambda: laws.check_aggregation(lambda values, more: 0.0),
    "seeds": lambda: laws.check_seeds(broken),
    "seeds of a run": lambda: laws.check_seeds(run=broken),
    "seeds of nothing": lambda: laws.check_seeds(),
    "seeds by number": lambda: laws.check_seeds(lambda seed, name: seed),
    "split": lambda: laws.check_split(Drawn(broken), Drawn(broken)),
    "split of a number": lambda: laws.check_split(1, 2),
    "held out of a number": lambda: laws.check_held_out(1, 2),
    "split of scores": lambda: laws.check_split(torch.rand(3), torch.rand(3)),
    "split of masks": lambda: laws.check_split(torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool)),
    "split of ids and samples": lambda: laws.check_split([1, 2], torch.rand(3, 2)),
    "split of columns": lambda: laws.check_split((torch.rand(3, 2), torch.ones(3)), (torch.rand(3, 2), torch.ones(3))),
    "soft loss": lambda: laws.check_soft_loss(broken),
    "workers": lambda: laws.check_workers(Drawn(broken)),
    "workers with a broken start": lambda: laws.check_workers(Drawn(lambda: torch.ones(3)), broken),
    "workers of nothing": lambda: laws.check_workers(None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_judged_is_an_error_and_raises_nothing(name):
    holds(ERRORS[name](), "error")


def test_an_error_says_what_was_raised_and_where_the_function_stands():
    finding = laws.check_selection(functools.partial(broken))
    assert finding.message == "ended in RuntimeError: no such ... luck"
    assert finding.reason == FUNCTION_BROKE and "(could not run)" in str(Report((finding,))), "not an error of kdbench"
    assert finding.where == {"file": "tests/test_laws.py", "line": broken.__code__.co_firstlineno}


def random_states():
    of_numpy = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), of_numpy[1].tolist(), of_numpy[2:]


def mess(*_args, **_kwargs):
    """Draw from and seed every global state; return something that each law takes for a number."""
    for module in (torch, random, np.random):
        getattr(module, "manual_seed", getattr(module, "seed", None))(5)
    return 1 + 0 * (torch.rand(()).item() + random.random() + np.random.rand())


def messy_image(*_args):
    mess()
    return torch.zeros(3, 4, 4)


def test_no_law_moves_a_global_random_state():
    before = random_states()
    laws.check_selection(lambda val, test: int(mess()))
    laws.check_weighting(mess)
    laws.check_soft_loss(lambda s, t: mess() * s.sum())
    laws.check_augmentation(messy_image)
    laws.check_augmentation(lambda: torch.rand(3, 4, 4))
    laws.check_schedule(mess, 10, first=1.0)
    laws.check_spread(lambda values: (mess(), 1.0))
    laws.check_aggregation(lambda values: (mess(), 1.0))
    laws.check_seeds(lambda seed, name: torch.Generator().manual_seed(int(mess())))
    laws.check_seeds(run=mess)
    laws.check_split(Drawn(messy_image), Drawn(messy_image))
    laws.check_workers(Drawn(messy_image))
    laws.check_workers(Drawn(lambda: torch.rand(3, 4, 4)))
    laws.check_selection(lambda val, test: broken(mess()))
    assert random_states() == before
