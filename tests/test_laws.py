"""Each law beside specimens that it must pass and ones that it must catch."""

import functools
import json
import math
import random
import statistics
import types

import numpy as np
import pytest
import torch
from PIL import Image
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, OneCycleLR, SequentialLR
from torch.utils.data import Dataset, Subset, TensorDataset

from audits import laws
from audits.checks.all import CATALOGUE
from audits.finding import Finding, Report
from kd.procedure import CANONICAL
from kd.recipe import Recipe


def holds(finding, status, *words):
    """Assert status and words of a finding, and that a report can print it and write it as JSON."""
    assert isinstance(finding, Finding)
    assert finding.status == status, finding.message
    for word in words:
        assert word in finding.message, finding.message
    assert finding.mend and finding.phase == "static"
    json.loads(Report((finding,)).to_json())
    assert finding.id in str(Report((finding,)))


def broken(*_args, **_kwargs):
    raise RuntimeError("no such\nluck")


# --- the table ---


def test_every_law_is_in_the_table_and_shares_its_id_only_with_the_audit_of_the_same_name():
    assert {entry.id for entry in laws.LAWS.values()} == {
        *("KD331", "KD332", "KD333", "KD334", "KD341", "KD342", "KD343", "KD344", "KD345", "KD346", "KD347")
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
    "workers": lambda: laws.check_workers(Drawn(broken)),
    "workers with a broken start": lambda: laws.check_workers(Drawn(plain), broken),
    "workers of nothing": lambda: laws.check_workers(None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_cannot_be_judged_is_an_error_and_raises_nothing(name):
    holds(ERRORS[name](), "error")


def test_an_error_says_what_was_raised_and_where_the_function_stands():
    finding = laws.check_selection(functools.partial(broken))
    assert finding.message == "ended in RuntimeError: no such ... luck"
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


# --- selection ---


def argmax(curve):
    return max(range(len(curve)), key=lambda epoch: curve[epoch])


SELECTIONS = {
    "canonical": (CANONICAL.select, "pass"),
    "first of the best": (lambda val, test: argmax(val), "pass"),
    "numpy": (lambda val, test: np.argmax(val), "pass"),
    "torch": (lambda val, test: torch.tensor(val).argmax(), "pass"),
    "any of the best": (lambda val, test: random.choice([e for e, v in enumerate(val) if v == max(val)]), "pass"),
    "best on test": (lambda val, test: argmax(test), "fail", "only test moves", "best on test"),
    "test for ties": (
        lambda val, test: max(range(len(val)), key=lambda e: (val[e], test[e])),
        *("fail", "only test moves", "equally good on validation"),
    ),
    "test for near ties": (
        lambda val, test: max(range(len(val)), key=lambda e: (round(val[e], 2), test[e])),
        *("fail", "only test moves"),
    ),
    "sum": (lambda val, test: argmax([v + t for v, t in zip(val, test, strict=True)]), "fail", "only test moves"),
    "last": (lambda val, test: len(val) - 1, "fail", "pick is 4, and best is 2", "the last epoch"),
    "first": (lambda val, test: 0, "fail", "the first epoch"),
    "lowest": (lambda val, test: argmax([-v for v in val]), "fail", "lowest on validation"),
    "from 1": (lambda val, test: argmax(val) + 1, "fail", "counts epochs from 1"),
    "from the end": (lambda val, test: -1, "fail", "pick is -1"),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_selection(name):
    select, *expected = SELECTIONS[name]
    holds(laws.check_selection(select), *expected)


def test_selection_that_draws_lots_of_its_own():
    rng = random.Random(0)
    holds(laws.check_selection(lambda val, test: rng.randrange(len(val))), "fail", "same curves")


# --- loss weights ---

WEIGHTINGS = {
    "canonical": (CANONICAL.combine, "pass"),
    "single": (lambda ce, kd, a, b: (a * ce + b * kd).float(), "pass"),
    "as floats": (lambda ce, kd, a, b: a * ce.item() + b * kd.item(), "pass"),
    "swapped": (lambda ce, kd, a, b: b * ce + a * kd, "fail", "0 ce + 0.7 kd, not 0.7 ce + 0 kd", "swapped"),
    "kd stays": (lambda ce, kd, a, b: a * ce + kd, "fail", "distillation term stays although its weight is 0"),
    "ce stays": (lambda ce, kd, a, b: ce + b * kd, "fail", "weight of the label term is ignored"),
    "both ignored": (lambda ce, kd, a, b: ce + kd, "fail", "ignored", "stays"),
    "constant": (lambda ce, kd, a, b: a * ce + b * kd + 0.1, "fail", "a constant 0.1 is added"),
    "normalised": (lambda ce, kd, a, b: (a * ce + b * kd) / (a + b), "fail", "weight of the label term is ignored"),
    "temperature": (lambda ce, kd, a, b: a * ce + 16 * b * kd, "fail", "distillation term counts 16 times"),
    "product": (lambda ce, kd, a, b: a * ce + b * kd + a * b * ce, "fail", "label term counts 1.6 times"),
    "squared": (lambda ce, kd, a, b: a * ce**2 + b * kd, "fail", "no weighted sum"),
    "nan": (lambda ce, kd, a, b: ce / 0 * 0, "fail"),
}
ONE_WEIGHT = {
    "the paper's": (lambda ce, kd, a: (1 - a) * ce + a * kd, "pass"),
    "swapped": (lambda ce, kd, a: a * ce + (1 - a) * kd, "fail", "alpha 0", "swapped"),
    "only added": (lambda ce, kd, a: ce + a * kd, "fail", "alpha 1", "label term stays"),
    "ignored": (lambda ce, kd, a: (ce + kd) / 2, "fail", "stays"),
    "squared": (lambda ce, kd, a: (1 - a) * ce + a * a * kd, "fail", "alpha 0.3", "counts 0.3 times its weight"),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weighting(name):
    combine, *expected = WEIGHTINGS[name]
    holds(laws.check_weighting(combine), *expected)


@pytest.mark.parametrize("name", ONE_WEIGHT)
def test_weighting_by_alpha(name):
    combine, *expected = ONE_WEIGHT[name]
    holds(laws.check_weighting(combine, alpha=True), *expected)


# --- augmentation ---


class Drawn(Dataset):
    """Eight samples, each whatever `draw` returns; picklable where `draw` is."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.draw()


IMAGE = torch.arange(48.0).reshape(3, 4, 4)
PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def flipped(image):
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def frozen():
    return flipped_by(torch.Generator().manual_seed(1))


def flipped_by(generator):
    return IMAGE + torch.rand((), generator=generator)


AUGMENTATIONS = {
    "flip": (lambda: flipped(IMAGE), "pass"),
    "with label": (lambda: (flipped(IMAGE), 3), "pass"),
    "label first": (lambda: {"label": np.int64(3), "image": flipped(IMAGE)}, "pass"),
    "bfloat16": (lambda: flipped(IMAGE.bfloat16()), "pass"),
    "numpy view": (lambda: PIXELS[:, :: random.choice((1, -1))], "pass"),
    "PIL": (lambda: Image.fromarray(np.roll(PIXELS, random.randrange(4), 0)), "pass"),
    "none": (lambda: IMAGE.clone(), "fail", "16 draws of one training image are all the same"),
    "only the label moves": (lambda: (IMAGE, random.random()), "fail"),
    "same generator each time": (frozen, "fail"),
    "PIL, none": (lambda: (Image.fromarray(PIXELS), 3), "fail"),
    "numpy, none": (lambda: PIXELS.copy(), "fail"),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name):
    draw, *expected = AUGMENTATIONS[name]
    random.seed(0)
    holds(laws.check_augmentation(draw), *expected)


class Own(Drawn):
    """A data set with a generator of its own, which every worker gets a copy of."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __getitem__(self, index):
        return np.roll(PIXELS, self.rng.integers(4), 0), index


def seed_alike(worker):
    np.random.seed(0)


def seed_own(worker):
    torch.utils.data.get_worker_info().dataset.rng = np.random.default_rng(torch.initial_seed())


def by_numpy():
    return PIXELS + np.random.randint(100)


def plain():
    return IMAGE


def coin():
    return IMAGE * float(torch.rand(()) < 0.5)


WORKERS = {
    "global numpy": (Drawn(by_numpy), None, "pass"),
    "flips alone": (Drawn(coin), None, "pass"),
    "own generator, seeded by worker": (Own(), seed_own, "pass"),
    "own generator": (Own(), None, "fail", "two workers see the same 16 augmentations of sample 0"),
    "one seed for all": (Drawn(by_numpy), seed_alike, "fail"),
    "not augmented": (Drawn(plain), None, "not_triggered", "not augmented"),
}


@pytest.mark.parametrize("name", WORKERS)
def test_workers(name):
    dataset, init, *expected = WORKERS[name]
    finding = laws.check_workers(dataset, init)
    holds(finding, *expected)
    assert finding.severity == "warn"


# --- learning rate ---

LR, LOW, EPOCHS, PER_EPOCH = 0.1, 1e-4, 20, 10
STEPS = EPOCHS * PER_EPOCH


def cosine(done, whole=STEPS - 1):
    return LOW + (LR - LOW) * (1 + math.cos(math.pi * done / whole)) / 2


DECLARED = {"first": LR, "middle": cosine(STEPS // 2), "last": LOW}
SCHEDULES = {
    "cosine": (cosine, "pass", "0.1 at the first step"),
    "as tensor": (lambda step: torch.tensor(cosine(step), dtype=torch.float64, requires_grad=True), "pass"),
    "constant": (lambda step: LR, "fail", "0.1 at the last step (199), declared 0.0001", "never moves"),
    "stepped once an epoch": (
        lambda step: cosine(step // PER_EPOCH),
        "fail",
        "moves once in 10 steps, 19 times in all",
    ),
    "period in epochs": (lambda step: cosine(step, EPOCHS), "fail", "lowest at step 20 and rises again", "in epochs"),
    "at its end by half": (lambda step: cosine(min(step, 60), 60), "fail", "already at step 60 of 200"),
    "one step late": (lambda step: cosine(max(0, step - 1)), "fail", "only at step 200, after the last one"),
    "too short": (lambda step: cosine(step, 90), "fail", "lowest at step 90 and rises again", "too short"),
    "never there": (lambda step: cosine(step, 3 * STEPS), "fail", "declared 0.0001"),
    "nan": (lambda step: math.nan, "fail"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    rate, *expected = SCHEDULES[name]
    holds(laws.check_schedule(rate, STEPS, **DECLARED, steps_per_epoch=PER_EPOCH), *expected)


def set_rates(groups, optimizer, step):
    for group in groups(optimizer.param_groups):
        group["lr"] = cosine(step, 10)


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (lambda all: all, ("pass", "all 3 parameter groups")),
        (lambda all: all[:1], ("fail", "moves 1 of 3 parameter groups")),
        (lambda all: all[:-1], ("fail", "moves 2 of 3")),
        (lambda all: [], ("not_triggered", "no learning rate changed")),
    ],
)
def test_group_schedule(groups, expected):
    holds(laws.check_group_schedule(functools.partial(set_rates, groups), 10), *expected)


def test_schedule_with_warm_up_off_by_one():
    def rise(step):
        return LR * min(1.0, (step + 1) / 10)

    holds(laws.check_schedule(rise, 100, first=0.01, last=LR), "pass")
    holds(laws.check_schedule(lambda step: rise(step - 1), 100, first=0.01), "fail", "one step late")
    holds(laws.check_schedule(rise, 100, first=0.0), "fail", "one step early")


def test_schedule_of_which_nothing_was_declared():
    finding = laws.check_schedule(cosine, STEPS)
    holds(finding, "not_triggered")
    assert finding.decide_with


def pair(make, **options):
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=LR, momentum=0.9, **options)
    return optimizer, make(optimizer)


def test_schedule_of_a_scheduler_leaves_it_where_it_was():
    optimizer, scheduler = pair(lambda o: CosineAnnealingLR(o, STEPS - 1, LOW))
    weights = [p.clone() for p in optimizer.param_groups[0]["params"]]
    before = json.dumps([scheduler.state_dict(), optimizer.state_dict()])
    holds(laws.check_schedule((optimizer, scheduler), STEPS, **DECLARED), "pass")
    assert json.dumps([scheduler.state_dict(), optimizer.state_dict()]) == before
    assert scheduler.optimizer is optimizer
    assert all(torch.equal(a, b) for a, b in zip(weights, optimizer.param_groups[0]["params"], strict=True))
    wrong = pair(lambda o: CosineAnnealingLR(o, EPOCHS, LOW))
    holds(laws.check_schedule(wrong, STEPS, **DECLARED, steps_per_epoch=PER_EPOCH), "fail", "rises again")


@pytest.mark.parametrize(
    ("make", "first", "last"),
    [
        (lambda o: OneCycleLR(o, LR, total_steps=50), LR / 25, LR / 25e4),
        (lambda o: LambdaLR(o, lambda step: 1 / (1 + step)), LR, LR / 50),
        (lambda o: SequentialLR(o, [LinearLR(o, 0.1, 1, 9), CosineAnnealingLR(o, 39, LOW)], [10]), 0.1 * LR, LOW),
    ],
)
def test_schedule_of_other_schedulers(make, first, last):
    holds(laws.check_schedule(pair(make), 50, first=first, last=last), "pass")


def test_schedule_of_the_canonical_procedure():
    by_step = Recipe(epochs=EPOCHS, schedule="step", warmup=0.1, lr_min=0.0)
    by_epoch = Recipe(epochs=EPOCHS)
    end = by_epoch.lr * (1 + math.cos(math.pi * 179 / 180)) / 2
    finding = laws.check_schedule(
        lambda step: CANONICAL.learning_rate(by_step, step, PER_EPOCH),
        *(STEPS,),
        first=0.1 / 20,
        middle=0.1 * (1 + math.cos(math.pi * 80 / 180)) / 2,
        last=end,
    )
    holds(finding, "pass")
    finding = laws.check_schedule(
        lambda step: CANONICAL.learning_rate(by_epoch, step, PER_EPOCH),
        STEPS,
        first=LR,
        middle=(LR + LOW) / 2,
        last=cosine(19, 20),
    )
    holds(finding, "pass")


# --- numbers over seeds ---


def spread(ddof=1, single=None, scale=1.0):
    def aggregate(values):
        return np.mean(values), float(np.std(values, ddof=ddof)) * scale if len(values) > 1 else single

    return aggregate


SPREADS = {
    "canonical": (CANONICAL.aggregate, "pass", "has none"),
    "nan for one": (spread(single=math.nan), "pass"),
    "rounded": (lambda v: tuple(None if x is None else round(x, 2) for x in spread()(v)), "pass"),
    "dict": (lambda v: dict(zip(("mean", "std"), spread()(v), strict=True)), "pass"),
    "object": (lambda v: types.SimpleNamespace(mean=np.mean(v), sd=spread()(v)[1]), "pass"),
    "array": (lambda v: np.array(spread(single=np.nan)(v)), "pass"),
    "refuses one": (lambda v: (statistics.fmean(v), statistics.stdev(v)), "pass", "refused"),
    "ddof=0": (spread(0), "fail", "ddof = 0"),
    "0 for one": (spread(single=0.0), "fail", "one value is given a deviation of 0"),
    "standard error": (lambda v: (np.mean(v), np.std(v, ddof=1) / len(v) ** 0.5), "fail", "standard error"),
    "variance": (lambda v: (np.mean(v), np.var(v, ddof=1)), "fail", "variance"),
    "of shares": (spread(scale=0.01), "fail", "with ddof = 1 it is"),
    "median": (lambda v: (statistics.median(v), spread()(v)[1]), "fail", "the mean of"),
    "none at all": (lambda v: (np.mean(v), None), "fail"),
}


@pytest.mark.parametrize("name", SPREADS)
def test_spread(name):
    aggregate, *expected = SPREADS[name]
    holds(laws.check_spread(aggregate), *expected)


def kept(values):
    return [v for v in values if v is not None and not math.isnan(v)]


def zeros(values):
    return [v if v is not None and not math.isnan(v) else 0.0 for v in values]


AGGREGATIONS = {
    "canonical": (CANONICAL.aggregate, "pass"),
    "as floats": (lambda v: tuple(spread()(np.array(v, dtype=float))), "pass"),
    "mean of None": (lambda v: (None if len(kept(v)) < len(v) else 1.0, 0.0), "pass"),
    "says n": (lambda v: {"mean": np.mean(kept(v)), "n": len(v)}, "pass"),
    "third is n": (lambda v: (np.mean(kept(v)), 1.0, len(v)), "pass"),
    "says missing": (lambda v: {"mean": np.mean(kept(v)), "missing": len(v) - len(kept(v))}, "pass"),
    "left out": (
        lambda v: (np.mean(kept(v)), 1.0),
        "fail",
        "number 1 of 5 seeds diverged (nan)",
        "as if it had never been run",
    ),
    "nanmean": (lambda v: (np.nanmean(np.array(v, dtype=float)), 1.0), "fail", "as if it had never been run"),
    "mean alone": (np.mean, "pass"),
    "nanmean alone": (lambda v: np.nanmean(np.array(v, dtype=float)), "fail", "as if it had never been run"),
    "nan kept, None left out": (lambda v: (np.mean([x for x in v if x is not None]), 1.0), "fail", "missing (None)"),
    "n of those left": (lambda v: (np.mean(kept(v)), 1.0, np.int64(len(kept(v)))), "fail"),
    "as 0": (lambda v: (np.mean(zeros(v)), 1.0), "fail", "it counts as 0"),
    "best": (lambda v: (max(kept(v)), 0.0), "fail", "96"),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_aggregation(name):
    aggregate, *expected = AGGREGATIONS[name]
    holds(laws.check_aggregation(aggregate), *expected)


# --- seeds ---

SHARED = torch.Generator()


def seeded(number):
    return torch.Generator().manual_seed(number)


def code(name):
    return sum(name.encode())


STREAMS = {
    "canonical": (CANONICAL.stream, "pass"),
    "numpy": (lambda seed, name: np.random.default_rng([seed, code(name)]), "pass"),
    "random": (lambda seed, name: random.Random(f"{seed}/{name}"), "pass"),
    "seed ignored": (lambda seed, name: seeded(code(name)), "fail", "order of seed 1", "the seed is ignored"),
    "name ignored": (lambda seed, name: seeded(seed), "fail", "crops of seed 0", "the name is ignored"),
    "added up": (
        lambda seed, name: seeded(seed + ("order", "crops", "init").index(name)),
        "fail",
        "run into each other",
    ),
    "from the clock": (lambda seed, name: seeded(random.getrandbits(32)), "fail", "different the second time"),
    "from the global seed": (
        lambda seed, name: seeded(torch.initial_seed() + seed * 1000 + code(name)),
        "fail",
        "second",
    ),
    "one for all": (
        lambda seed, name: SHARED.manual_seed(seed * 1000 + code(name)),
        "fail",
        "one and the same generator",
    ),
    "torch's own": (lambda seed, name: torch.manual_seed(seed), "fail", "one and the same generator"),
}
RUNS = {
    "seeded": (lambda seed: torch.rand(3, generator=seeded(seed)), "pass"),
    "state": (lambda seed: {"weight": torch.rand(3, generator=seeded(seed)), "epochs": [2, 3]}, "pass"),
    "digest": (lambda seed: f"digest {seed}", "pass"),
    "not seeded": (lambda seed: torch.rand(3), "fail", "different the second time"),
    "in part": (lambda seed: [torch.rand(3, generator=seeded(seed)), torch.rand(3)], "fail", "second time"),
    "constant": (lambda seed: torch.rand(3, generator=seeded(0)), "fail", "the seed is ignored"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_seeds(name):
    stream, *expected = STREAMS[name]
    holds(laws.check_seeds(stream), *expected)


@pytest.mark.parametrize("name", RUNS)
def test_seeds_of_a_run(name):
    run, *expected = RUNS[name]
    holds(laws.check_seeds(run=run), *expected)


# --- splits ---


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
