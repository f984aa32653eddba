"""Laws: what a single decision of a training must hold on any input, tried on made-up ones, with no training at all.

    finding = audits.laws.check_weighting(my_loss)
    assert finding.status == "pass", finding.message

Each law calls a function of yours and gives a :class:`audits.finding.Finding`. What your function raises, or returns
in a form that cannot be judged, becomes a finding of status `error`. A law has the id and name of the audit that
watches for the same in a training, where there is one. The global random states (torch, CUDA where it is in use, numpy,
random) are afterwards as before; a generator that your function holds of its own does move.
"""

import contextlib
import copy
import ctypes
import functools
import hashlib
import inspect
import itertools
import math
import operator
import random
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, get_worker_info

from audits.checks.catalogue import Verdict, failed, passed, undecided
from audits.finding import Finding, Severity
from audits.trace import Where

Parameters = ParamSpec("Parameters")


class OddAnswerError(TypeError):
    """A function under a law returned what the law cannot judge."""


@dataclass(frozen=True)
class Law:
    """One entry of the table of laws."""

    id: str
    name: str
    severity: Severity
    mend: str
    function: Callable[..., Finding]

    @property
    def story(self) -> str:
        """What must hold and when it fails: the function's docstring."""
        return inspect.cleandoc(self.function.__doc__ or "")


LAWS: dict[str, Law] = {}
"Every law by name."


def law(
    id: str, name: str, *, severity: Severity = "error", mend: str
) -> Callable[[Callable[Parameters, Verdict]], Callable[Parameters, Finding]]:
    """Enter a function into the table of laws, and let it give findings, raise nothing and move no random state."""

    def enter(check: Callable[Parameters, Verdict]) -> Callable[Parameters, Finding]:
        @functools.wraps(check)
        def judge(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Finding:
            where = None
            try:
                with same_random_state():
                    where = _place(next(filter(callable, (*args, *kwargs.values())), None))
                    verdict = check(*args, **kwargs)
            except OddAnswerError as odd:
                verdict = Verdict("error", str(odd))
            except Exception as error:  # the user's, or of a form that nobody thought of: nothing was decided
                verdict = Verdict("error", _ended_in(error))
            return Finding(
                id=id,
                name=name,
                severity=severity,
                status=verdict.status,
                phase="static",
                message=verdict.message,
                observed=verdict.observed,
                mend=mend,
                where=where,
                reason=verdict.reason,
                decide_with=verdict.decide_with,
            )

        LAWS[name] = Law(id, name, severity, mend, judge)
        return judge

    return enter


@contextlib.contextmanager
def same_random_state() -> Iterator[None]:
    """Leave the global random states of torch, CUDA, numpy and random as they were before the block."""
    # Neither CUDA nor numpy is brought in for this: what is not in use has no state to keep.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy = sys.modules.get("numpy")
    of_random, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(of_random)
        if numpy:
            numpy.random.set_state(of_numpy)


def _place(function: Any) -> Where | None:
    """Return file and line of a function of the user's; None for what is not written as a function."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None) if function else None
    if code is None:
        return None
    path = Path(code.co_filename)
    return {
        "file": str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path),
        "line": code.co_firstlineno,
    }


def _ended_in(error: Exception) -> str:
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return f"ended in {lines[0]}" + (f" ... {lines[-1].strip()}" if len(lines) > 1 else "")


def _short(value: Any) -> str:
    said = " ".join(repr(value).split())
    return said if len(said) <= 80 else said[:77] + "..."


def _number(value: Any, of: str) -> float:
    """Return a number or a tensor of one number as a float, or raise OddAnswerError."""
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise OddAnswerError(f"{of} is {_short(value)}, not a number") from None


def _close(a: float, b: float, tolerance: float = 1e-5) -> bool:
    return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)


# --- selection ---

CURVES = (
    (0.5, 0.7, 0.8, 0.85, 0.9),
    (0.5, 0.8, 0.92, 0.91, 0.88),
    (0.9, 0.8, 0.7, 0.6, 0.5),
    (0.5, 0.92, 0.92, 0.92, 0.8),
    (0.5, 0.9199, 0.92, 0.9198, 0.8),
    (0.7, 0.7, 0.7, 0.7, 0.7),
)
"Validation accuracies: the best epoch at the end, within, at the start, tied, nearly tied, all tied."


def _where_is(curve: Sequence[float], value: float) -> list[int]:
    return [epoch for epoch, score in enumerate(curve) if score == value]


PICKS: dict[str, Callable[[Sequence[float], Sequence[float], int], bool]] = {
    "takes the epoch best on test": lambda val, test, pick: pick in _where_is(test, max(test)),
    "lets test decide between epochs equally good on validation": lambda val, _, pick: pick in _where_is(val, max(val)),
    "takes the epoch lowest on validation": lambda val, _, pick: pick in _where_is(val, min(val)),
    "takes the last epoch": lambda val, _, pick: pick == len(val) - 1,
    "takes the first epoch": lambda val, _, pick: pick == 0,
    "counts epochs from 1": lambda val, _, pick: pick - 1 in _where_is(val, max(val)),
}
"Likely slips of a selection: whether each would pick this epoch."


@law(
    "KD333",
    "selection-ignores-test",
    mend="pick by validation alone: max(range(len(val)), key=lambda epoch: (val[epoch], epoch)); test only scores it",
)
def check_selection(select: Callable[[list[float], list[float]], Any]) -> Verdict:
    """The reported epoch is one of the best on validation, whatever the test scores are.

    ``select(val, test)`` gets accuracies by epoch (higher is better) and returns the index of an epoch, from 0. Fails
    when the pick moves when only test moves, or is not among the best epochs on validation.
    """
    seen: list[tuple[Sequence[float], Sequence[float], int]] = []

    def ask(val: Sequence[float], test: Sequence[float]) -> int:
        with same_random_state():  # so that drawing lots between equals is not taken for looking at test
            answer = select(list(val), list(test))
        try:
            pick = operator.index(answer)
        except TypeError:
            raise OddAnswerError(f"select returned {_short(answer)}, not the index of an epoch") from None
        seen.append((val, test, pick))
        return pick

    moved: dict[str, Any] | None = None
    missed: dict[str, Any] | None = None
    for val in CURVES:
        flat = [0.3] * len(val)
        pick = ask(val, flat)
        best = _where_is(val, max(val))
        if pick not in best:
            missed = missed or {"validation": list(val), "test": flat, "pick": pick, "best": best}
        if ask(val, flat) != pick:
            return failed("two calls with the same curves pick different epochs", {"validation": list(val)})
        for epoch in range(len(val)):
            for score in (0.99, 0.1):
                test = [score if e == epoch else 0.3 for e in range(len(val))]
                other = ask(val, test)
                if other != pick:
                    moved = moved or {"validation": list(val), "test": test, "pick": other, "pick_with_flat_test": pick}
    if not moved and not missed:
        return passed(f"the pick is best on validation and stays for {len(seen)} pairs of curves", {"pairs": len(seen)})
    slips = (f": it {phrase}" for phrase, would_pick in PICKS.items() if all(would_pick(*one) for one in seen))
    slip = next(slips, "")
    if moved:
        return failed(
            f"with validation {moved['validation']} the pick moves from epoch {moved['pick_with_flat_test']} to "
            f"{moved['pick']} when only test moves{slip}",
            moved,
        )
    assert missed is not None
    return failed(
        f"with validation {missed['validation']} the pick is {missed['pick']}, and best is "
        f"{' or '.join(map(str, missed['best']))}{slip}",
        missed,
    )


# --- loss weights ---


@law(
    "KD341",
    "weight-endpoints",
    mend="loss = ce_weight * ce + kd_weight * kd, in the paper's form (1 - alpha) * ce + alpha * kd; T**2 in kd itself",
)
def check_weighting(combine: Callable[..., Any], alpha: bool = False) -> Verdict:
    """A term whose weight is 0 is gone, and the other counts by its weight.

    ``combine(ce, kd, ce_weight, kd_weight)`` gets two losses (float64 tensors of shape ()) and two floats; with
    `alpha` it is ``combine(ce, kd, alpha)``, alpha the weight of the distillation term and 1 - alpha that of the labels
    (the paper, eq. 1). Returns one number. Fails when that is not ``ce_weight * ce + kd_weight * kd``
    with either weight 0, or with both in use.
    """

    def loss(ce: float, kd: float, weights: tuple[float, ...]) -> float:
        tensors = (torch.tensor(value, dtype=torch.float64) for value in (ce, kd))
        return _number(combine(*tensors, *weights), "the loss")

    points: dict[tuple[float, ...], tuple[float, float]] = (
        {(0.0,): (1.0, 0.0), (1.0,): (0.0, 1.0), (0.3,): (0.7, 0.3)}
        if alpha
        else {point: point for point in ((0.7, 0.0), (0.0, 0.7), (0.3, 0.6))}
    )
    for weights, (of_ce, of_kd) in points.items():
        start = loss(2, 3, weights)
        # The weights that are in force, read off the losses.
        a, b = loss(3, 3, weights) - start, loss(2, 4, weights) - start
        rest = start - 2 * a - 3 * b
        at = f"alpha {weights[0]:g}" if alpha else f"ce_weight {weights[0]:g} and kd_weight {weights[1]:g}"
        observed = {"weights": list(weights), "expected": [of_ce, of_kd], "found": [a, b], "constant": rest}
        if not _close(loss(5, 7, weights), 5 * a + 7 * b + rest):
            return failed(f"with {at} the loss is no weighted sum of the two terms", observed)
        if _close(a, of_ce) and _close(b, of_kd) and _close(rest, 0):
            continue
        if _close(a, of_kd) and _close(b, of_ce) and _close(rest, 0):
            slips = ["the weights are swapped"]
        else:
            slips = []
            for term, found, wanted in (("label", a, of_ce), ("distillation", b, of_kd)):
                if _close(found, wanted):
                    continue
                if not wanted:
                    slips.append(f"the {term} term stays although its weight is 0")
                elif _close(found, 1):
                    slips.append(f"the weight of the {term} term is ignored")
                else:
                    slips.append(f"the {term} term counts {found / wanted:.4g} times its weight")
            if not _close(rest, 0):
                slips.append(f"a constant {rest:.4g} is added")
        form = f"{a:.4g} ce + {b:.4g} kd" + ("" if _close(rest, 0) else f" + {rest:.4g}")
        return failed(f"with {at} the loss is {form}, not {of_ce:g} ce + {of_kd:g} kd: {', '.join(slips)}", observed)
    return passed(f"both terms count by their weights at {len(points)} settings", {"settings": len(points)})


# --- samples ---


def _content(sample: Any) -> str:
    """Return form and digest of a sample's image, the first array in it; raise OddAnswerError if there is none."""
    image = _image(sample)
    if image is None:
        raise OddAnswerError(f"the sample is {_short(sample)}: it holds no tensor, array or PIL image")
    if isinstance(image, Tensor):
        image = image.detach().cpu().contiguous()
        form, data = f"{image.dtype} {tuple(image.shape)}", ctypes.string_at(image.data_ptr(), image.nbytes)
    else:  # numpy, PIL
        form = f"{getattr(image, 'dtype', '') or image.mode} {getattr(image, 'shape', '') or image.size}"
        data = image.tobytes()
    return f"{form}: {hashlib.sha256(data).hexdigest()}"


def _image(sample: Any) -> Any:
    """Return the first tensor or array of at least one dimension, or PIL image, of a sample; None if there is none."""
    if isinstance(sample, Mapping):
        sample = tuple(sample.values())
    if isinstance(sample, list | tuple):
        return next((image for part in sample if (image := _image(part)) is not None), None)
    is_array = hasattr(sample, "dtype") and getattr(sample, "ndim", 0) > 0
    return sample if is_array or (hasattr(sample, "tobytes") and hasattr(sample, "mode")) else None


@law(
    "KD342",
    "augmentation-active",
    mend="draw crop and flip at each fetch, in __getitem__ or on the batch, from a generator made once and outside it",
)
def check_augmentation(draw: Callable[[], Any], n: int = 16) -> Verdict:
    """The same image is seen differently from one time to the next.

    ``draw()`` returns the training sample of one and the same image each time: a tensor, array or PIL image, alone or
    first in a tuple or dict. Fails when `n` draws (at least 2) are all the same, which flips alone do by chance once in
    2^(n-1); choose an image that a crop and a flip change.
    """
    if n < 2:
        raise ValueError(f"n is {n}; it must be at least 2")
    different = len({_content(draw()) for _ in range(n)})
    observed = {"draws": n, "different": different}
    if different == 1:
        return failed(f"{n} draws of one training image are all the same", observed)
    return passed(f"{n} draws of one training image gave {different} different ones", observed)


def _by_worker(sample: Any) -> tuple[int, str]:
    """Return the worker that fetched a sample, and its content."""
    worker = get_worker_info()
    assert worker is not None
    return worker.id, _content(sample)


@law(
    "KD331",
    "worker-augmentation",
    severity="warn",
    mend="draw from torch's or numpy's global state, which each worker gets a seed of its own for, or make the "
    "data set's generator in worker_init_fn from torch.initial_seed()",
)
def check_workers(
    dataset: Any, worker_init_fn: Callable[[int], None] | None = None, index: int = 0, draws: int = 4
) -> Verdict:
    """Two workers of a DataLoader augment differently.

    Fetches sample `index` of the map-style `dataset` `draws` times in each of two workers. Fails when both see the
    same sequence, as with a generator that is copied into each. Not triggered where the sample never changes. Workers
    are started as DataLoader does here; where that is not by fork, `dataset` and `worker_init_fn` must pickle.
    """
    seeds = torch.Generator().manual_seed(0)  # or the loader draws its workers' seed from the global state

    def fetch(count: int) -> list[list[str]]:
        loader = DataLoader(
            dataset,
            batch_size=None,
            sampler=[index] * (2 * count),
            num_workers=2,
            collate_fn=_by_worker,
            worker_init_fn=worker_init_fn,
            generator=seeds,
            timeout=120,
        )
        seen: list[list[str]] = [[], []]
        workers: Any = iter(loader)
        try:
            for worker, content in workers:
                seen[worker].append(content)
        finally:
            # An error from a worker refers to itself: left to the garbage collector, the workers take ten seconds to
            # end, and what is forked in the meantime tries to end them too.
            workers._shutdown_workers()
        return seen

    first, second = fetch(draws)
    if first == second and len(set(first)) > 1:
        # Where little is drawn (a flip), two workers may agree by chance: hardly so twice.
        draws *= 4
        first, second = fetch(draws)
    different = len({*first, *second})
    observed = {"workers": 2, "draws_each": draws, "different": different}
    if different == 1:
        return undecided(
            "out-of-scope", f"sample {index} is not augmented: {2 * draws} draws are the same", None, observed
        )
    if first == second:
        return failed(f"two workers see the same {draws} augmentations of sample {index}", observed)
    return passed(f"two workers see different augmentations of sample {index}", observed)


# --- learning rate ---


def _rate_at(source: Any) -> Callable[[int], float]:
    """Return what gives the rate at a step, to be asked for steps 0, 1, 2, ... in this order."""
    if callable(source):
        return lambda step: _number(source(step), f"the rate at step {step}")
    optimizer, scheduler = source
    # Copies, to leave the user's where they are; but not of the weights and their state, which are large and not read.
    shared = [optimizer.state, *(p for group in optimizer.param_groups for p in group["params"])]
    optimizer, scheduler = copy.deepcopy((optimizer, scheduler), {id(value): value for value in shared})

    def rate(step: int) -> float:
        if step:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch misses the optimizer's steps, of which there are none here
                scheduler.step()
        return _number(optimizer.param_groups[0]["lr"], f"the rate at step {step}")

    return rate


@law(
    "KD343",
    "schedule-endpoints",
    mend="count the period in what the schedule is stepped by: T_max=epochs * steps_per_epoch and one scheduler.step() "
    "after each optimizer.step(), or T_max=epochs and one an epoch",
)
def check_schedule(
    learning_rate: Any,
    steps: int,
    *,
    first: float | None = None,
    middle: float | None = None,
    last: float | None = None,
    steps_per_epoch: int | None = None,
    tolerance: float = 1e-6,
) -> Verdict:
    """The learning rate is the declared one at the first, the middle and the last step.

    ``learning_rate(step)`` returns the rate at a step, from 0 to `steps` - 1; or ``(optimizer, scheduler)``, of which
    copies are stepped from where they stand, one ``scheduler.step()`` a step, and the first group's rate is read.
    `first`, `middle` and `last` are the declared rates at steps 0, ``steps // 2`` and ``steps - 1``; None declares
    nothing. Fails when a rate is off by more than `tolerance` times the largest declared one, and names the likely
    slip; `steps_per_epoch` lets it name those that mix up steps and epochs.
    """
    if steps < 2:
        raise ValueError(f"steps is {steps}; it must be at least 2")
    points = (("first", 0, first), ("middle", steps // 2, middle), ("last", steps - 1, last))
    declared = {name: (step, rate) for name, step, rate in points if rate is not None}
    if not declared:
        return undecided("intent-unknown", "no rate was declared", "first=, middle= or last=")
    rate_at = _rate_at(learning_rate)
    rates = [rate_at(step) for step in range(steps)]
    after = math.nan
    with contextlib.suppress(Exception):  # there need be no rate after the last
        after = rate_at(steps)
    slack = tolerance * max(abs(rate) for _, rate in declared.values())

    def near(a: float, b: float) -> bool:
        return abs(a - b) <= slack

    observed = {
        "steps": steps,
        "declared": {name: rate for name, (_, rate) in declared.items()},
        "found": {name: rates[step] for name, step, _ in points},
    }
    missed = {name: (step, rate) for name, (step, rate) in declared.items() if not near(rates[step], rate)}
    if not missed:
        said = ", ".join(f"{rate:.6g} at the {name} step" for name, (_, rate) in declared.items())
        return passed(f"the rates are the declared ones: {said}", observed)
    said = ", ".join(
        f"{rates[step]:.6g} at the {name} step ({step}), declared {rate:.6g}" for name, (step, rate) in missed.items()
    )
    slip = _schedule_slip(rates, after, {name: rate for name, (_, rate) in missed.items()}, near, last, steps_per_epoch)
    return failed(f"the rate is {said}" + (f": it {slip}" if slip else ""), observed)


@law(
    "KD344",
    "group-schedule",
    mend="set the rate of every group, or build the scheduler after the last group was added",
)
def check_group_schedule(set_rates: Callable[[torch.optim.Optimizer, int], Any], steps: int) -> Verdict:
    """A schedule moves the learning rate of every parameter group.

    ``set_rates(optimizer, step)`` sets the rates of a step, from 0 to `steps` - 1, in ``optimizer.param_groups``; it is
    handed an optimizer of three groups with one rate. Fails when one group's rate moves and another's never does.
    """
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    optimizer = torch.optim.SGD([{"params": [weight]} for weight in weights], lr=1.0)
    seen: list[list[float]] = [[] for _ in weights]
    for step in range(steps):
        set_rates(optimizer, step)
        for rates, group in zip(seen, optimizer.param_groups, strict=True):
            rates.append(float(group["lr"]))
    moved = [rates for rates in seen if len({1.0, *rates}) > 1]
    observed = {"groups": len(seen), "moved": len(moved), "steps": steps}
    if not moved:
        return undecided("not-in-these-steps", "no learning rate changed", "steps=")
    if len(moved) < len(seen):
        return failed(f"the schedule moves {len(moved)} of {len(seen)} parameter groups", observed)
    return passed(f"the schedule moves all {len(seen)} parameter groups", observed)


def _schedule_slip(
    rates: list[float],
    after: float,
    missed: Mapping[str, float],
    near: Callable[[float, float], bool],
    last: float | None,
    steps_per_epoch: int | None,
) -> str | None:
    """Name the likeliest reason why rates by step miss the declared ones; None if none fits."""
    steps = len(rates)
    moves = [step for step in range(1, steps) if rates[step] != rates[step - 1]]
    if not moves:
        return f"never moves from {rates[0]:.6g}"
    if "first" in missed and near(rates[1], missed["first"]):
        return "is one step late: the declared first rate comes at step 1"
    if "first" in missed and near(2 * rates[0] - rates[1], missed["first"]):
        return "is one step early: the warm-up has moved before the first step"
    if "last" in missed and near(after, missed["last"]):
        return f"comes to the declared last rate only at step {steps}, after the last one"
    if (
        "last" in missed
        and steps_per_epoch
        and all(step % steps_per_epoch == 0 for step in moves)
        and abs(rates[-1] - missed["last"]) > abs(rates[0] - missed["last"]) / 2
    ):
        return (
            f"moves once in {steps_per_epoch} steps, {len(moves)} times in all, on a schedule that is counted in steps"
        )
    peak = rates.index(max(rates))
    rise = next((step for step in moves if step > peak and rates[step] > rates[step - 1]), None)
    if rise is not None:
        in_epochs = steps_per_epoch and abs(rise - 1 - peak - steps / steps_per_epoch) <= 1
        slip = "counted in epochs, and each step moves it" if in_epochs else "too short"
        return f"is at its lowest at step {rise - 1} and rises again: its period is {slip}"
    if last is not None and near(rates[steps // 2], last):
        end = next(step for step in range(steps) if near(rates[step], last))
        return f"is at its last rate already at step {end} of {steps}: its period is too short"
    return None


# --- numbers over seeds ---

MISSING = object()
"What a result has no part for."


def _part(result: Any, names: Sequence[str], position: int | None = None) -> Any:
    """Return one part of a result by key, attribute or position, a bare number being its own first; else MISSING."""
    if hasattr(result, "tolist"):  # the attributes of an array are methods, and no part of it
        result = result.tolist()
    for name in names:
        value = result.get(name, MISSING) if isinstance(result, Mapping) else getattr(result, name, MISSING)
        if value is not MISSING:
            return value
    if isinstance(result, list | tuple) and position is not None and position < len(result):
        return result[position]
    if position == 0 and (result is None or isinstance(result, int | float)):
        return result
    return MISSING


def _statistic(result: Any, names: Sequence[str], position: int) -> float:
    """Return mean or deviation from what an aggregate returned, nan for None; raise OddAnswerError if it has none."""
    value = _part(result, names, position)
    if value is MISSING:
        raise OddAnswerError(f"aggregate returned {_short(result)}, which has no {names[0]}")
    return math.nan if value is None else _number(value, f"the {names[0]}")


MEAN, DEVIATION = ("mean",), ("sd", "std", "stdev")


@law(
    "KD345",
    "sample-spread",
    mend="statistics.stdev(values) or numpy.std(values, ddof=1), and None for one value",
)
def check_spread(aggregate: Callable[[list[float]], Any]) -> Verdict:
    """The spread over seeds is the sample standard deviation (ddof = 1), and one seed has none.

    ``aggregate(values)`` gets a list of floats and returns mean and deviation: the first two of a tuple, or what is
    called mean and sd (std, stdev) in a dict or an object. Fails when either is off by more than 2 in a thousand, or
    when one value has a deviation other than None or nan; to refuse one value with a ValueError is as good.
    """
    for values in ([80.0, 91.0, 85.5, 99.0, 94.5], [91.5, 88.0, 97.25], [90.0, 94.0]):
        result = aggregate(list(values))
        mean, spread = _statistic(result, MEAN, 0), _statistic(result, DEVIATION, 1)
        n, true_mean = len(values), math.fsum(values) / len(values)
        true = math.sqrt(math.fsum((value - true_mean) ** 2 for value in values) / (n - 1))
        observed = {"values": values, "mean": mean, "sd": spread, "expected": [true_mean, true]}
        if not math.isclose(mean, true_mean, rel_tol=2e-3):
            return failed(f"the mean of {values} is given as {mean:.6g}, and is {true_mean:.6g}", observed)
        if math.isclose(spread, true, rel_tol=2e-3):
            continue
        slips = {
            math.sqrt((n - 1) / n): "ddof = 0, the deviation of a whole population",
            1 / math.sqrt(n): "the standard error of the mean",
            true: "the variance",
            math.sqrt((n - 1) / n) / math.sqrt(n): "the standard error, with ddof = 0",
        }
        slip = next((f": {name}" for ratio, name in slips.items() if _close(spread / true, ratio, 2e-3)), "")
        return failed(
            f"the deviation of {values} is given as {spread:.6g}, with ddof = 1 it is {true:.6g}{slip}", observed
        )
    try:
        spread = _statistic(aggregate([92.0]), DEVIATION, 1)
    except ValueError:
        return passed("the deviation has ddof = 1, and one value is refused")
    if not math.isnan(spread):
        return failed(f"one value is given a deviation of {spread:.6g}: it has none", {"values": [92.0], "sd": spread})
    return passed("the deviation has ddof = 1, and one value has none")


@law(
    "KD346",
    "all-seeds-counted",
    mend="raise ValueError when a seed is missing or nan, or report how many are missing; no nanmean",
)
def check_aggregation(aggregate: Callable[[list[float | None]], Any]) -> Verdict:
    """A seed that diverged or is missing does not vanish from the mean.

    ``aggregate(values)`` gets five values, one of them nan and then None. It may raise ValueError or TypeError, return
    a mean (alone or with more) of nan or None, or say so: `n`, of all five, or `missing`, 1 (by key or attribute; n
    also as third of a tuple).
    Fails on any other number for a mean, since a method that diverges one time in five looks as good as the other four.
    """
    healthy = [91.0, 92.5, 94.0, 90.0, 96.0]
    _statistic(aggregate(list(healthy)), MEAN, 0)  # what fails on these is broken, and refuses nothing
    for lost, word in ((math.nan, "diverged (nan)"), (None, "is missing (None)")):
        for position in (0, 2, 4):
            values: list[float | None] = [*healthy]
            values[position] = lost
            try:
                result = aggregate(list(values))
            except (ValueError, TypeError):
                continue
            mean = _statistic(result, MEAN, 0)
            n, missing = _part(result, ("n",), 2), _part(result, ("missing",))
            if math.isnan(mean) or n == len(values) or missing == 1:
                continue
            rest = [value for i, value in enumerate(healthy) if i != position]
            slip = ""
            if _close(mean, math.fsum(rest) / len(rest)):
                slip = ": the mean of the other four, as if it had never been run"
            elif _close(mean, math.fsum(rest) / len(values)):
                slip = ": it counts as 0"
            return failed(
                f"number {position + 1} of 5 seeds {word}, and the mean is given as {mean:.6g}{slip}",
                {"values": values, "mean": mean, "n": None if n is MISSING else _short(n)},
            )
    return passed("a seed that diverged or is missing shows")


@law(
    "KD347",
    "seeds-independent",
    mend="one generator a seed and purpose, its seed a digest of both: sha256(f'{seed}/{name}'); not hash(), which "
    "is salted anew in each process",
)
def check_seeds(stream: Callable[[int, str], Any] | None = None, *, run: Callable[[int], Any] | None = None) -> Verdict:
    """A seed gives the same numbers each time, and another seed or another purpose gives others.

    ``stream(seed, name)`` returns a torch.Generator (or one of numpy or random); or ``run(seed)`` returns a digest of
    what it computed, anything that ``==`` compares, or a tensor. Fails when the same seed twice differs, when two seeds
    agree, when two names (order, crops, init) agree, or when one generator is handed out for two. Sees one process
    only, and so not a seed made with ``hash()``.
    """
    if (stream is None) == (run is None):
        raise ValueError("one of stream and run is needed")
    names = ("order", "crops", "init") if stream else ("the run",)
    keys = [(seed, name) for seed in range(3) for name in names][: None if stream else 2]
    made = {}
    for seed, name in keys:
        made[seed, name] = _generator(stream(seed, name)) if stream else run(seed)  # type: ignore[misc]
        other = next((key for key in made if key != (seed, name) and made[key] is made[seed, name]), None)
        if stream and other:
            return failed(
                f"one and the same generator is handed out for {_said(other)} and {_said((seed, name))}",
                {"same": [list(other), [seed, name]]},
            )
    drawn = {key: _drawn(value) if stream else _comparable(value) for key, value in made.items()}
    # Whatever takes its seed from the global state shows now.
    torch.default_generator.manual_seed(1)
    for seed, name in keys if stream else keys[:1]:
        again = _drawn(_generator(stream(seed, name))) if stream else _comparable(run(seed))  # type: ignore[misc]
        if again != drawn[seed, name]:
            return failed(f"{_said((seed, name))} is different the second time", {"seed": seed, "name": name})
    for one, other in itertools.combinations(keys, 2):
        if drawn[one] == drawn[other]:
            if one[0] == other[0]:
                slip = "the name is ignored"
            elif one[1] == other[1]:
                slip = "the seed is ignored"
            else:
                slip = "seed and name run into each other"
            return failed(f"{_said(other)} is the same as {_said(one)}: {slip}", {"same": [list(one), list(other)]})
    return passed(
        f"{len(keys)} seeds and purposes give different numbers, and the same ones again", {"keys": len(keys)}
    )


def _said(key: tuple[int, str]) -> str:
    return f"{key[1]} of seed {key[0]}"


def _generator(answer: Any) -> Any:
    if not isinstance(answer, torch.Generator) and not hasattr(answer, "random"):
        raise OddAnswerError(f"stream returned {_short(answer)}, not a generator")
    return answer


def _drawn(generator: Any) -> tuple[float, ...]:
    """Return eight numbers drawn from a generator of torch, numpy or random."""
    if isinstance(generator, torch.Generator):
        return tuple(torch.randint(2**62, (8,), generator=generator, device=generator.device).tolist())
    return tuple(float(generator.random()) for _ in range(8))


def _comparable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _comparable(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_comparable(part) for part in value]
    return value if _image(value) is None else _content(value)


# --- splits ---


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
    return mine == yours if isinstance(mine, list) else _content(mine) == _content(yours)


def _keys(root: Any, indices: Sequence[int]) -> tuple[str, list[Any]]:
    """Return what a collection holds, ids or samples, and what to compare them by."""
    if _is_dataset(root):
        return "sample", [_content(root[i]) for i in indices]
    if isinstance(root, tuple) and any(getattr(part, "ndim", 0) > 1 for part in root):
        raise OddAnswerError("a tuple of arrays is no collection of samples: give the images alone")
    is_rows = getattr(root, "ndim", 1) > 1
    values = list(root) if is_rows or not hasattr(root, "tolist") else root.tolist()
    values = [value.item() if getattr(value, "ndim", 1) == 0 else value for value in values]
    if all(isinstance(value, int | str | Path) and not isinstance(value, bool) for value in values):
        return "id", values
    return "sample", [_content(value) for value in values]


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
        found = [("sample", [_content(_raw(root)[i]) for i in indices]) for root, indices in sides]
    else:
        for root, indices in sides:
            if _is_dataset(root) and any(_content(root[i]) != _content(root[i]) for i in indices[:8]):
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
