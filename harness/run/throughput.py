"""How fast a distillation step is on this machine, each way that it could be run: timed, since guesses go wrong."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from kdbench.harness.run.processes import start_server
from kdbench.kd import train
from kdbench.kd.data import SIZE, Dataset
from kdbench.kd.methods import METHODS, read_settings
from kdbench.kd.procedure import CANONICAL
from kdbench.kd.recipe import Precision, Recipe
from kdbench.kd.teacher import Provenance

_CLASSES = tuple(str(i) for i in range(10))


@dataclass(frozen=True)
class Way:
    """How trials could be run."""

    device: str
    precision: Precision
    workers: int
    "Trials at a time."
    threads: int
    "Of the processor, for each."
    graphs: bool = False
    "Whether kernels are captured in CUDA graphs."

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' * (self.threads > 1)} each"
        return f"{self.precision}, {self.workers} at a time, {threads}{', CUDA graphs' * self.graphs}"


def ways(device: str, cores: int) -> list[Way]:
    """Return the ways worth timing: the cores as workers or as threads of one; on a GPU, CUDA graphs or none."""
    shares: list[tuple[int, int, bool]] = [(cores, 1, False), (1, cores, False)]
    if device != "cpu":
        shares = [(1, 1, True), (1, 1, False), (4, 1, True)]
    precisions: tuple[Precision, ...] = ("fp32", "bf16") if device == "cpu" else ("fp32", "tf32", "bf16")
    return [Way(device, precision, *share) for precision in precisions for share in dict.fromkeys(shares)]


def noise(images: int) -> Dataset:
    """Return a data set of random pixels: a step costs the same whatever is seen."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, SIZE, SIZE, 3), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, len(_CLASSES), (images,), generator=rng)
    return Dataset("noise", pixels, labels, images, _CLASSES, "")


def prepare(recipe: Recipe, method: str, pair: tuple[str, str], device: torch.device) -> train.Training:
    """Prepare a training on noise with a teacher of random weights; its speed is that of a real one."""
    images = noise(recipe.train_size + recipe.val_size)
    procedure = replace(CANONICAL, load_teacher=lambda *_: Provenance("none", None, 0.0))
    kind = METHODS[method]
    teacher = train.Teacher(pair[0], Path()) if kind.needs_teacher else None
    weights = {"ce_weight": 0.5, **{f"{term}_weight": 0.5 for term in kind.Settings.terms()}}
    settings = read_settings(method, weights if kind.needs_teacher else {})
    return train.prepare(images, pair[1], teacher, method, settings, recipe, procedure, 0, device)


def _time(way: Way, seconds: float, channel: Connection) -> None:
    """Run R34 -> R18 by Logit-KD and report images a second; start when told, together with the others."""
    torch.set_num_threads(way.threads)
    width, batch, steps = (64, 128, 10) if way.device == "cuda" else (16, 64, 1)
    recipe = Recipe(
        10**6, batch, width, train_size=batch * steps, val_size=1, precision=way.precision, graphs=way.graphs
    )
    epochs = train.epochs(prepare(recipe, "logit", ("r34", "r18"), torch.device(way.device)))
    for _ in range(train.OWN_STEPS // steps + 1 if way.graphs else 2):  # until the graphs have taken over
        next(epochs)
    channel.send("ready")
    channel.recv()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(epochs)
        done += batch * steps
    channel.send(done / (time.perf_counter() - start))


def images_per_second(way: Way, seconds: float = 1.5) -> float | None:
    """Time one way in processes of their own; return the images that all of them train on in a second.

    None where it does not run: a device without memory for it, or a processor that lacks the arithmetic.
    """
    context = start_server({way.threads})
    pairs = [context.Pipe() for _ in range(way.workers)]
    processes: list[BaseProcess] = [
        context.Process(target=_time, args=(way, seconds, theirs), daemon=True)  # type: ignore[attr-defined]
        for _, theirs in pairs
    ]
    try:
        for process, (_, theirs) in zip(processes, pairs, strict=True):
            process.start()
            theirs.close()
        channels = [mine for mine, _ in pairs]
        for channel in channels:  # all are warm before one starts
            channel.recv()
        for channel in channels:
            channel.send("start")
        return sum(channel.recv() for channel in channels)
    except (EOFError, BrokenPipeError):  # a process died
        return None
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()


def advice(found: Sequence[tuple[Way, float | None]]) -> str:
    """Return what `kdbench run` does by itself, the first way, and the options that were at least a tenth faster."""
    default, speed = found[0]
    said = f"kdbench run: {default}"
    if speed is None:
        return f"{said}; no step could be timed"
    options, other_bits = [], False
    for precision in dict.fromkeys(way.precision for way, _ in found):
        others = [(way, other) for way, other in found if way.precision == precision and other is not None]
        way, other = max(others, key=lambda pair: pair[1], default=(default, 0.0))
        flags = [f"--precision {precision}"] if precision != default.precision else []
        if way.graphs != default.graphs:
            flags.append("--graphs" if way.graphs else "--no-graphs")
        if (way.workers, way.threads) != (default.workers, default.threads):
            flags.append(f"--workers {way.workers} --threads {way.threads}")
        if flags and other >= 1.1 * speed:
            options.append(f"{' '.join(flags)} was {other / speed:.1f} times as fast")
            other_bits |= (way.precision, way.threads) != (default.precision, default.threads)
    bits = " (other last bits)" if other_bits else ""
    return said + ("; " + ", ".join(options) + bits if options else "; nothing timed was faster")
