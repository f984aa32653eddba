"""How fast a training step is in each stack of options, and what of the device's own speed that is.

python -m benchmarks.gpu.stacks step STACK METHOD     # one JSON object on the last line
python -m benchmarks.gpu.stacks at-once
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor, nn

from kdbench.harness.run.cost import forward_flop
from kdbench.harness.run.throughput import Way, images_per_second, prepare
from kdbench.harness.run.trial import prepare_device
from kdbench.kd import train
from kdbench.kd.accelerate import rounding
from kdbench.kd.models import Answer
from kdbench.kd.recipe import Precision, Recipe

PAIR = ("r50", "r18")


class Copied(nn.Module):
    """A captured network whose answers are copied out of the graph's own memory, which the next replay overwrites."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.captured = torch.compile(module, dynamic=False, mode="reduce-overhead")

    def forward(self, images: Tensor) -> Answer:
        """Answer a batch (B, 3, H, W)."""
        torch.compiler.cudagraph_mark_step_begin()
        answer = self.captured(images)
        return Answer(answer.logits.clone(), tuple(feature.clone() for feature in answer.features))


STACKS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "bf16-folded": {"precision": "bf16", "fold_teacher": True},
    "bf16-compiled": {"precision": "bf16", "compile": True},
    "bf16-folded-compiled": {"precision": "bf16", "fold_teacher": True, "compile": True},
    "bf16-compiled-graphs": {"precision": "bf16", "compile": True, "reduce_overhead": True},
    "bf16-graphs": {"precision": "bf16", "graphs": True},
    "bf16-folded-graphs": {"precision": "bf16", "fold_teacher": True, "graphs": True},
    "fp32-graphs": {"precision": "fp32", "graphs": True},
    "tf32-graphs": {"precision": "tf32", "graphs": True},
}
"Options of the recipe by name; `reduce_overhead` is torch.compile's own mode with CUDA graphs, which no recipe offers."


def roof(precision: Precision, device: torch.device, n: int) -> float:
    """Return the speed of a matrix multiplication n x n in this precision, in operations a second."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        with rounding(precision):
            a @ b
        wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def step(stack: str, method: str, device: torch.device, toy: bool) -> dict[str, Any]:
    """Time epochs of a training on noise, after the stand-ins have taken over; return what was seen."""
    options = dict(STACKS[stack])
    stand_in: Callable[[nn.Module], nn.Module] = Copied if options.pop("reduce_overhead", False) else train.compiled
    width, batch, steps, rounds, n = (4, 8, 12, 2, 256) if toy else (64, 128, 50, 6, 8192)
    recipe = Recipe(10**6, batch, width, train_size=batch * steps, val_size=1, **options)
    flop = 3 * forward_flop(PAIR[1], "cifar", width) + forward_flop(PAIR[0], "cifar", width)
    training = prepare(recipe, method, PAIR, device)
    begun, seconds, roofs = time.perf_counter(), [], []
    with patch.object(train, "compiled", stand_in):
        epochs = train.epochs(training)
        for _ in range(train.OWN_STEPS // steps + 2):
            first = next(epochs)
        warm = time.perf_counter() - begun
        for _ in range(rounds):
            roofs.append(roof(recipe.precision, device, n))
            wait(device)
            start = time.perf_counter()
            last = next(epochs)
            wait(device)
            seconds.append(time.perf_counter() - start)
    speed = batch * steps / statistics.median(seconds)
    return {
        "stack": stack,
        "method": method,
        "pair": "-".join(PAIR),
        "width": width,
        "batch_size": batch,
        "images_per_second": round(speed, 1),
        "range": [round(batch * steps / s, 1) for s in (max(seconds), min(seconds))],
        "tflops": round(speed * flop / 1e12, 3),
        "roof_tflops": round(statistics.median(roofs) / 1e12, 3),
        "fraction_of_roof": round(speed * flop / statistics.median(roofs), 4),
        "warm_up_seconds": round(warm, 1),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if device.type == "cuda" else None,
        "finite": first.finite and last.finite,
    }


@click.group()
def main() -> None:
    """Throughput of stacks, and of several trials at once."""


_DEVICE = click.option("--device", default="cuda", show_default=True)
_TOY = click.option("--toy", is_flag=True)


@main.command("step")
@click.argument("stack", type=click.Choice(list(STACKS)))
@click.argument("method", type=click.Choice(["baseline", "logit", "feature"]))
@_DEVICE
@_TOY
def step_command(stack: str, method: str, device: str, toy: bool) -> None:
    """Time one stack."""
    click.echo(json.dumps(step(stack, method, prepare_device(device, 1), toy)))


@main.command("at-once")
@_DEVICE
@_TOY
def at_once_command(device: str, toy: bool) -> None:
    """Time several trials at a time, each eager and in CUDA graphs."""
    ways = [Way(device, "bf16", n, 1, graphs) for graphs in (False, True) for n in (1, 2, 4, 8)]
    ways = ways[:1] if toy else ways
    found = {str(way): images_per_second(way, 0.01 if toy else 5.0) for way in ways}
    click.echo(json.dumps({"images_per_second": found}))


if __name__ == "__main__":
    main()
