"""The benchmarks run, and their report and guard say what the numbers allow; no number of a test's is claimed."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def modules():
    """The report and the guard, which are no package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import guard
        import report

        yield report, guard


def script(name, *args):
    return subprocess.run([sys.executable, BENCHMARKS / name, *map(str, args)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Every benchmark once, as small as it gets, in a process of its own."""
    path = tmp_path_factory.mktemp("toy") / "run.json"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != "MLFLOW_TRACKING_URI"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS.parent)}
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "--toy", f"--benchmark-json={path}"]
    done = subprocess.run(
        [*command, "-q", "--benchmark-quiet", "-p", "no:xdist", "-p", "no:cacheprovider"],
        cwd=BENCHMARKS.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return path, done


@pytest.mark.long
def test_every_benchmark_runs(toy):
    path, _ = toy
    run = json.loads(path.read_text())
    measured = {bench["name"].partition("[")[0]: bench["extra_info"] for bench in run["benchmarks"]}
    written = {
        line.removeprefix("def ").partition("(")[0]
        for file in BENCHMARKS.glob("test_*.py")
        for line in file.read_text().splitlines()
        if line.startswith("def test_")
    }
    # What needs MLflow, Linux, a device.
    elsewhere = {"test_mirror", "test_trial_start", "test_bf16_roof", "test_without_graphs"}
    assert measured.keys() >= written - elsewhere
    del measured["test_textbook_and_ours_are_the_same_training"]
    for name, info in measured.items():
        assert info["what"] and info["device"] == "cpu" and info["torch"] and info["threads"] >= 1, name
        assert info["kind"] in ("ratio", "seconds", "share") and info["goal"] is None, name
        if info["kind"] == "ratio":
            assert info["value"] > 0 and info["a_over_a"] > 0 and info["noisy"] in (True, False), name
    assert {"images_per_second", "floor_seconds", "roof_fraction"} <= measured["test_step"].keys()


@pytest.mark.long
def test_a_toy_run_is_not_reported(toy, tmp_path):
    path, _ = toy
    for done in (script("report.py", path, "--folder", tmp_path), script("guard.py", path)):
        assert done.returncode == 1 and "toy run" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_in_which_all_was_skipped_is_not_reported(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(run_of({}, device="cuda")))
    done = script("report.py", path, "--folder", tmp_path)
    assert done.returncode == 1 and "everything was skipped" in done.stderr


@pytest.mark.parametrize(("itself", "noisy"), [(0.969, True), (0.971, False), (1.029, False), (1.031, True)])
def test_a_thing_that_differs_from_itself_leaves_nothing_to_claim(modules, itself, noisy):
    from timing import Ratio

    assert Ratio(2.0, 1.9, 2.1, itself, 1.0).noisy is noisy


def test_two_things_are_timed_in_turn(modules, monkeypatch):
    import torch
    from timing import ab

    calls = []
    monkeypatch.setattr("timing.clock", lambda call, _: call() or 1.0)
    found = ab(lambda: calls.append("a"), lambda: calls.append("b"), 2, torch.device("cpu"), lambda: calls.append("r"))
    assert "".join(calls) == "abr" + 2 * "abrba"
    assert found.roof_seconds == 1 and found.lowest == found.value == found.highest == 1 and not found.noisy


@pytest.mark.parametrize(("restless", "rounds"), [(1, 4), (100, 20)])
def test_a_restless_machine_gets_more_rounds_but_not_for_ever(modules, monkeypatch, restless, rounds):
    import torch
    from timing import ab

    calls = []

    def clock(call, _):
        call()
        firsts_and_lasts = calls.count("a") - 1  # without the one that warms
        last = calls[-1] == "a" and firsts_and_lasts in range(2, 2 * restless + 1, 2)
        return 2.0 if last else 1.0

    monkeypatch.setattr("timing.clock", clock)
    found = ab(lambda: calls.append("a"), lambda: calls.append("b"), 2, torch.device("cpu"), patience=10)
    assert len(calls) == 2 + 4 * rounds and found.noisy is (restless == 100)


def ratio(value, goal, a_over_a=1.0, **more):
    noisy = abs(a_over_a - 1) > 0.03
    span = [value - 0.1, value + 0.1]
    return {
        "what": "W.",
        "kind": "ratio",
        "value": value,
        "range": span,
        "goal": goal,
        "a_over_a": a_over_a,
        "noisy": noisy,
        **more,
    }


def run_of(rows, device="cpu"):
    """A run as pytest-benchmark writes it, made up."""
    name = "some processor" if device == "cpu" else "some GPU"
    facts = {"toy": False, "device": device, "device_name": name, "cores": 2, "torch": "2.14.1"}
    return {
        "machine_info": {"node": "a-host", "kdbench": {**facts, "load_average_before": 0.1}},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [{"name": name, "extra_info": info} for name, info in rows.items()],
    }


ROWS = {
    "test_step[one-thread-fp32-logit]": ratio(1.31, 1.2, images_per_second=260.4, roof_fraction=0.951),
    "test_step[one-thread-bf16-logit]": ratio(1.77, 2.0),
    "test_step[all-cores-fp32-logit]": ratio(1.42, 1.3, a_over_a=1.08),
    "test_help": {"what": "H.", "kind": "seconds", "value": 0.2, "range": [0.1, 0.4], "goal": 0.3},
    "test_plan": {"what": "P.", "kind": "seconds", "value": 0.9, "range": [0.8, 1.0], "goal": 0.5, "trials": 9999},
    "test_record": {"what": "R.", "kind": "seconds", "value": 0.02, "range": [0.005, 0.1], "goal": 0.01},
    "test_hooks[steady]": {"what": "S.", "kind": "share", "value": 0.0006, "range": [0.0006, 0.0006], "goal": 0.01},
    "test_textbook_and_ours_are_the_same_training[logit]": {},
}


def test_the_report_claims_what_the_numbers_allow(modules, tmp_path):
    report, _ = modules
    report.write(run_of(ROWS), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    rows = {tuple(c.strip() for c in line.split("|")[1:3]): line for line in text.splitlines() if line[:3] == "| `"}
    assert len(rows) == 7
    good = rows["`test_step`", "one-thread-fp32-logit"]
    assert "| 1.31 | 1.21 to 1.41 | 1.000 | 260 | 95% | >= 1.20 | met |" in good
    assert "| >= 2.00 | not met |" in rows["`test_step`", "one-thread-bf16-logit"]
    noisy = rows["`test_step`", "all-cores-fp32-logit"]
    assert "| too noisy to claim |" in noisy and "1.42" not in noisy and "| 1.080 |" in noisy
    assert "| 0.2 s | 0.1 s to 0.4 s | <= 0.3 s | met |" in rows["`test_help`", ""]
    assert "not met" in rows["`test_plan`", ""] and "9999 trials" in rows["`test_plan`", ""]
    assert "too noisy to claim" in rows["`test_record`", ""]  # its best round was under the goal
    assert "| 0.06% |" in rows["`test_hooks`", "steady"]
    assert "Of 7 goals: 3 met, 2 not met, 2 too noisy to claim." in text
    assert text.index("`test_step`") < text.index("`test_help`")
    assert "some processor, 2 cores, load average 0.1" in text and "commit 0123456789." in text
    assert "No GPU was at hand" in text and "a-host" not in (tmp_path / "benchmarks.json").read_text()
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_says_what_bounds_a_step_where_the_machine_was_quiet(modules, tmp_path):
    report, _ = modules
    rows = {"test_roof[a]": ratio(0.6, 0.9), "test_convolutions[a]": ratio(0.8, None), "test_roof[b]": ratio(0.6, 0.9)}
    rows |= {"test_convolutions[b]": ratio(0.8, None, a_over_a=1.1), "test_bf16_roof[a]": ratio(0.53, None)}
    report.write(run_of(rows), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "- a: a step's convolutions alone reach 80% of the roof, the whole step 60%, which is 75% of what" in text
    assert "- a: `torch.mm` is 0.53 times as fast in bf16 as in fp32." in text and "- b:" not in text


def test_a_run_on_a_gpu_leaves_the_processors_numbers(modules, tmp_path):
    report, _ = modules
    report.write(run_of(ROWS), tmp_path)
    report.write(run_of({"test_step[one-thread-fp32-logit]": ratio(3.0, None)}, device="cuda"), tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "| 1.31 |" in text and "| 3.00 |" in text and "No GPU" not in text and "bf16 was not measured" in text


def specimen(**values):
    return {
        f"test_step[{name}]": ratio(*value) if isinstance(value, tuple) else value for name, value in values.items()
    }


def test_the_guard_names_what_was_halved(modules, tmp_path):
    report, _ = modules
    before = run_of(specimen(a=(2.0, None), b=(2.0, None), c=(2.0, None), d=(2.0, None, 1.1), e=(2.0, None)))
    report.write(before, tmp_path)
    recorded = tmp_path / "benchmarks.json"

    def guard(run):
        path = tmp_path / "run.json"
        path.write_text(json.dumps(run))
        return script("guard.py", path, "--recorded", recorded)

    done = guard(run_of(specimen(a=(0.99, None), b=(1.01, None), c=(0.5, None, 0.9), d=(0.5, None), f=(0.1, None))))
    assert done.returncode == 1, done.stderr
    assert "less than half of the recorded ratio: test_step[a]: 0.99, was 2.00" in done.stdout
    assert done.stdout.count("less than half") == 1
    assert "test_step[c]: the new ratio is too noisy" in done.stdout
    assert "test_step[d]: the recorded ratio is too noisy" in done.stdout
    assert "test_step[e]: not measured this time" in done.stdout

    slower = copy.deepcopy(ROWS)
    slower["test_help"]["value"] = 60.0
    report.write(run_of(ROWS), tmp_path)
    assert guard(run_of(slower)).returncode == 0  # a time is never a reason

    assert guard(run_of(specimen(a=(0.1, None)), device="cuda")).returncode == 0
    recorded.unlink()
    done = guard(run_of(specimen(a=(0.1, None))))
    assert done.returncode == 0 and "nothing to compare with" in done.stdout
