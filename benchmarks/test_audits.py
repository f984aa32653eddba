"""What a watch costs: in the burn-in, where every step is seen, and after it, where every 50th is.

Two measures, since a machine whose pace wanders by some percent cannot show one percent in a ratio of whole steps: that
ratio, and the share of the training's time that was spent inside the watch's own hooks.
"""

import time
from dataclasses import dataclass

import pytest
from timing import Sides

from kdbench import audits
from kdbench.audits.watch import Watch

EVERY = 50
BURN_IN = pytest.mark.parametrize("burn_in", [10**9, 1], ids=["burn-in", "steady"])


def watch_of(training, burn_in):
    return audits.watch(
        student=training.student,
        teacher=training.teacher,
        projectors=dict(training.method.named_children()),
        optimizer=training.optimizer,
        clip=audits.Clip(1.0),
        burn_in=burn_in,
        every=EVERY,
    )


def watched_and_not(bench, burn_in):
    plain, watched = (bench.prepare("feature", graphs=False) for _ in range(2))
    step, watched_step = bench.ours(plain), bench.ours(watched)
    watch = watch_of(watched, burn_in)

    def one_watched():
        with watch:
            watched_step()

    return Sides(one_watched, step, bench.sizes.batch * bench.sizes.steps)


@BURN_IN
def test_watch(bench, measure, burn_in):
    """The pace of a watched Feature-KD training against one that is not: 1 would be a watch that costs nothing."""
    measure.ratio(watched_and_not, bench, burn_in, goal=None)


@dataclass
class Clock:
    """Adds up the time between the outermost entries and exits."""

    spent: float = 0.0
    depth: int = 0

    def around(self, hook):
        def call(*args, **kwargs):
            self.depth += 1
            start = time.perf_counter()
            try:
                return hook(*args, **kwargs)
            finally:
                self.depth -= 1
                if not self.depth:
                    self.spent += time.perf_counter() - start

        return call


@BURN_IN
def test_time_inside_the_hooks(bench, measure, benchmark, monkeypatch, burn_in):
    """The share of 50 Feature-KD steps' time that passes inside the watch."""
    clock, steps = Clock(), bench.sizes.hook_steps
    guarded = Watch._guarded
    monkeypatch.setattr(Watch, "_guarded", lambda self, hook, **more: clock.around(guarded(self, hook, **more)))
    training = bench.prepare("feature", steps=1, graphs=False)
    step = bench.ours(training)
    with watch_of(training, burn_in):
        step(), step()  # past the burn-in, where it is one step
        clock.spent = 0.0
        start = time.perf_counter()
        benchmark.pedantic(step, rounds=steps, iterations=1)
        share = clock.spent / (time.perf_counter() - start)
    assert clock.spent > 0
    goal = 0.01 if burn_in == 1 else None
    measure.share(share, goal, microseconds_per_step=round(clock.spent / steps * 1e6, 1))
