"""Run a member of the clean zoo, declared, as a foreign script or unwatched, and say what was seen of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kdbench import audits
from kdbench.audits.checks.all import run
from kdbench.audits.finding import Report
from kdbench.audits.script import Options, ScriptWatch
from kdbench.audits.trace import Trace
from kdbench.harness.zoo.clean.material import KINDS, checkpoint
from kdbench.harness.zoo.clean.registry import Open

How = Literal["foreign", "declared", "unwatched"]


@dataclass(frozen=True)
class Seen:
    """What an observation of a member came to."""

    report: Report | None
    trace: Trace | None
    weights: list[Tensor]


def observe(loop: Callable[[Open], nn.Module], seed: int, how: How) -> Seen:
    """Run a training from a seed, and say what was seen of it and what weights it ended with."""
    for kind in KINDS:
        checkpoint(kind)  # trained before anything is watched
    torch.manual_seed(seed)
    if how == "foreign":
        script = ScriptWatch(Options(steps=0), lambda _: None)

        @contextmanager
        def until_the_end(**_: Any) -> Iterator[None]:
            yield
            script.conclude(whole=True)  # while all that a script leaves behind is alive

        with script:
            net = loop(until_the_end)
        return Seen(run(script.trace), script.trace, weights_of(net))
    if how == "unwatched":
        return Seen(None, None, weights_of(loop(lambda **_: nullcontext())))
    watches: list[audits.Watch] = []

    def declared(**roles: Any) -> audits.Watch:
        watches.append(audits.watch(**roles))
        return watches[-1]

    net = loop(declared)
    (watch,) = watches
    return Seen(watch.report, watch.trace, weights_of(net))


def weights_of(net: nn.Module) -> list[Tensor]:
    """Return copies of all tensors of a network."""
    return [value.detach().clone() for value in net.state_dict().values()]
