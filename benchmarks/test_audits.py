"""What a watch costs: in the burn-in, where every step is seen, and after it.

Two measures, since a machine whose pace wanders by some percent cannot show one percent in a ratio of whole steps: that
ratio, and the share of the training's time that was spent inside the watch's own hooks.
"""

import time
from dataclasses import dataclass

import pytest
from test_step import make_teacher, prepare

import audits
from audits.watch import Watch
from kd import train

CASES = pytest.mark.parametrize(
    ("burn_in", "width", "steps"),
    [(10**9, 16, 2), (1, 16, 2), (1, 64, 1)],
    ids=["burn-in-16", "steady-16", "steady-64"],
)


def watch_of(training, burn_in):
    return audits.watch(
        student=training.student,
        teacher=training.teacher,
        projectors=dict(training.method.named_children()),
        optimizer=training.optimizer,
        clip=audits.Clip(1.0),
        burn_in=burn_in,
        every=50,
    )


@CASES
def test_watch(images, folder, measure, burn_in, width, steps):
    """The ratio is that of a watched step to one that is not; in the steady state every 50th step is seen."""
    teacher = make_teacher(images, folder, width)
    plain, watched = (prepare(images, teacher, "feature", steps, width) for _ in range(2))
    plain_epochs, watched_epochs = train.epochs(plain), train.epochs(watched)
    watch = watch_of(watched, burn_in)

    def one_watched():
        with watch:
            next(watched_epochs)

    measure(lambda: next(plain_epochs), one_watched, images=128 * steps)


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


@pytest.mark.parametrize(
    ("burn_in", "width", "steps"),
    [(50, 16, 50), (1, 16, 50), (1, 64, 50)],
    ids=["burn-in-16", "steady-16", "steady-64"],
)
def test_time_inside_the_hooks(images, folder, benchmark, monkeypatch, capsys, burn_in, width, steps):
    """The share of 50 steps' time that passes inside the watch, one of the 50 being seen in the steady state."""
    clock = Clock()
    guarded = Watch._guarded
    monkeypatch.setattr(Watch, "_guarded", lambda self, hook: clock.around(guarded(self, hook)))
    training = prepare(images, make_teacher(images, folder, width), "feature", 1, width)
    epochs = train.epochs(training)
    with watch_of(training, burn_in):
        if burn_in == 1:
            next(epochs), next(epochs)  # past the burn-in
        clock.spent = 0.0
        start = time.perf_counter()
        benchmark.pedantic(lambda: next(epochs), rounds=steps, iterations=1)
        share = clock.spent / (time.perf_counter() - start)
    benchmark.extra_info.update(share=round(share, 5), microseconds_per_step=round(clock.spent / steps * 1e6, 1))
    with capsys.disabled():
        print(f"\n  {benchmark.name}: {share:.2%} of a step, {clock.spent / steps * 1e6:.0f} microseconds")
    assert clock.spent > 0
