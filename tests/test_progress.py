"""How long the rest takes: said on a terminal and elsewhere, neither silent nor a flood."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdbench.harness.cli.common import progress_console
from kdbench.harness.cli.progress import Meter, Progress
from kdbench.harness.plan.outline import in_words
from kdbench.harness.run.cost import Cost
from kdbench.kd.errors import InputError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def plain(**settings):
    return Console(file=StringIO(), width=100, **settings)


def lines(console):
    return console.file.getvalue().splitlines()


def test_plain_lines_come_now_and_then_and_say_what_is_left():
    console, clock = plain(), Clock()
    with Meter(console, 10, "trials", total=100.0, guess=300.0, clock=clock) as meter:
        for second in range(100):
            clock.now = second
            meter.update(second // 10, float(second))
    assert lines(console) == [
        "1 of 10 trials done, about 90 s left",
        "4 of 10 trials done, about 60 s left",
        "7 of 10 trials done, about 30 s left",
    ]


def test_until_its_speed_is_known_the_estimate_is_said():
    clock = Clock()
    meter = Meter(plain(), 10, "trials", total=100.0, guess=300.0, clock=clock)
    assert meter.left() == "about 5 min left"
    clock.now = 60.0
    assert meter.left() == "about 4 min left"
    meter.update(0, 50.0)
    assert meter.left() == "about 60 s left", "measured: half of the work took a minute"
    assert Meter(plain(), 10, "trainings", total=10.0, clock=clock).left() == ""


def test_nothing_is_said_of_what_is_done_or_was_to_be_quiet():
    for console in (plain(), plain(quiet=True)):
        clock = Clock()
        with Meter(console, 1, "trials", total=1.0, clock=clock) as meter:
            clock.now = 100.0
            meter.update(0 if console.quiet else 1, 1.0)
        assert lines(console) == []


def test_a_terminal_has_a_bar_with_the_time_that_is_left():
    console, clock = plain(force_terminal=True), Clock()
    with Meter(console, 4, "trials", total=4.0, guess=80.0, clock=clock) as meter:
        clock.now = 30.0
        meter.update(1, 1.0)
        meter.bar.refresh()
    shown = console.file.getvalue()
    assert "0 of 4 trials" in shown and "1 of 4 trials" in shown and "about 90 s left" in shown


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (119, "119 s"), (120, "2 min"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words
    assert str(Cost(1.0, seconds)) == f"about {words}, 1 PFLOP"


def ready(**costs):
    """Return a study of two trials, as far as progress looks at it."""
    specs = {key: SimpleNamespace(recipe=SimpleNamespace(epochs=10), arch="r18", method="logit", fault=None, seed=0)
             for key in ("a", "b")}  # fmt: skip
    plan = SimpleNamespace(trials=specs, teachers={"r18": "a"})
    return SimpleNamespace(plan=plan, todo=["a", "b"], cost=Cost(1.0, 100.0, costs))


def result(status="finished", **more):
    metrics = SimpleNamespace(test_accuracy=91.5) if status == "finished" else None
    return SimpleNamespace(
        status=status, reason="no memory", metrics=metrics, roots=["KD301"], consequences=[], times={"seconds": 12.4},
        attempts=[], **more,
    )  # fmt: skip


@pytest.mark.parametrize("verbose", [False, True])
def test_a_line_a_trial_is_for_who_asks_and_a_failure_for_everybody(verbose):
    console = plain()
    with Progress(ready(), console, verbose, Clock()) as progress:
        progress.on_trial("a", None, 5)
        progress.on_trial("a", result(), 0)
        progress.on_trial("another shard's", result(), 0)
        progress.on_trial("b", result("failed"), 0)
    teacher = "[1/2] teacher r18, corrected, seed 0: 91.50%, audits that failed: KD301, 12 s"
    failed = "[2/2] logit r18, corrected, seed 0: failed: no memory"
    assert lines(console) == ([teacher, failed] if verbose else [failed])
    assert (progress.done, progress.failed) == (2, 1)


def test_a_dear_trial_weighs_more_than_a_cheap_one():
    clock = Clock()
    progress = Progress(ready(a=10.0, b=90.0), plain(), False, clock)
    clock.now = 10.0
    progress.on_trial("a", result(), 0)
    assert progress.meter.left() == "about 90 s left"
    progress.on_trial("b", None, 5)
    assert progress.meter.left() == "about 8 s left", "55 of 100 in 10 s"


def test_quiet_and_verbose_exclude_each_other():
    assert progress_console(True, False).quiet and not progress_console(False, True).quiet
    with pytest.raises(InputError, match="-q and -v contradict each other"):
        progress_console(True, True)
