"""What doctor times, and what it makes of it."""

import pytest

from kdbench.harness.run.throughput import Way, advice, images_per_second, ways


def test_cores_are_timed_as_workers_and_as_threads_in_both_precisions():
    found = ways("cpu", 4)
    assert [(w.precision, w.workers, w.threads) for w in found] == [
        ("fp32", 4, 1), ("fp32", 1, 4), ("bf16", 4, 1), ("bf16", 1, 4),
    ]  # fmt: skip
    assert len(ways("cpu", 1)) == 2, "one core can be shared in one way only"
    assert {(w.workers, w.threads, w.graphs) for w in ways("cuda", 8)} == {(1, 1, False), (1, 1, True), (4, 1, True)}
    assert [w.precision for w in ways("cuda", 8)[::3]] == ["fp32", "tf32", "bf16"]


def test_a_step_is_timed_in_processes_of_its_own():
    assert images_per_second(Way("cpu", "fp32", 1, 1), seconds=0.01) > 1


def test_a_way_that_does_not_run_is_no_speed():
    assert images_per_second(Way("cpu", "no such precision", 1, 1), seconds=0.01) is None


FP32, WIDE, BF16 = Way("cpu", "fp32", 4, 1), Way("cpu", "fp32", 1, 4), Way("cpu", "bf16", 4, 1)


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ((100, 90, 105), "; nothing timed was faster"),
        ((100, 90, 190), "; --precision bf16 was 1.9 times as fast (other last bits)"),
        ((100, 150, 40), "; --workers 1 --threads 4 was 1.5 times as fast (other last bits)"),
        (
            (100, 150, 190),
            "; --workers 1 --threads 4 was 1.5 times as fast, --precision bf16 was 1.9 times as fast (other last bits)",
        ),
        ((100, None, None), "; nothing timed was faster"),
        ((None, None, None), "; no step could be timed"),
    ],
)
def test_what_was_faster_is_said(speeds, said):
    found = list(zip((FP32, WIDE, BF16), speeds, strict=True))
    assert advice(found) == "kdbench run: fp32, 4 at a time, 1 thread each" + said


@pytest.mark.parametrize(
    ("speeds", "said"),
    [
        ((100, 90, 190, *(100,) * 6), "; --workers 4 --threads 1 was 1.9 times as fast"),
        (
            (100, 150, 120, 100, 90, 95, 400, 170, 390),
            "; --no-graphs was 1.5 times as fast, --precision bf16 was 4.0 times as fast (other last bits)",
        ),
    ],
)
def test_graphs_and_trials_at_a_time_leave_the_bits_alone(speeds, said):
    found = list(zip(ways("cuda", 8), speeds, strict=True))
    assert advice(found) == "kdbench run: fp32, 1 at a time, 1 thread each, CUDA graphs" + said
