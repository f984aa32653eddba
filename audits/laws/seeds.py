"""Seeds: a stream of random numbers for each seed and purpose."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from kdbench.audits.checks.catalogue import Verdict, failed, passed
from kdbench.audits.laws.answers import OddAnswerError, short
from kdbench.audits.laws.registry import law
from kdbench.audits.laws.samples import content, image_in


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
    # Whatever takes its seed from the global state shows now. A fixed seed could be the one that is set already.
    torch.default_generator.manual_seed(torch.initial_seed() ^ 1)
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
        raise OddAnswerError(f"stream returned {short(answer)}, not a generator")
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
    return value if image_in(value) is None else content(value)
