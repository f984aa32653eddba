"""A study of any size on disk, sealed as `kdbench run` seals it, whose numbers are drawn and not trained.

    python -m benchmarks.large_study RUNS [--trials 10000] [--shape seeds|arms]

`seeds` has few arms with many seeds each, `arms` every fault and every pair of networks with few seeds.
"""

import argparse
import csv
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy

from kdbench.harness import faults
from kdbench.harness.analysis.study_table import read_study, write_study, write_table
from kdbench.harness.plan.plan import Ground, Plan, make_plan
from kdbench.harness.plan.preset import Preset, load_preset
from kdbench.harness.records.record import FaultStory, Folder, Metrics, Result, StudyFolder, TeacherRecord
from kdbench.harness.records.spec import Spec
from kdbench.kd.models.resnet import ARCHITECTURES

GROUND = Ground("digits", "d" * 64, "cpu")
EPOCHS = 15
STEPS = 20
"Lines of norms.csv."
SHAPES = ("seeds", "arms")
_FEW_ARMS: tuple[str | None, ...] = (None, "kl-mean-reduction", "projector-unclipped")


def plan_of(trials: int, shape: str, pairs: Sequence[str] | None = None) -> tuple[Preset, list[str | None]]:
    """Return a preset and the arms whose plan has about so many trials."""
    preset = load_preset("quick")
    arms = list(_FEW_ARMS) if shape == "seeds" else [None, *faults.FAULTS]
    if shape == "arms":
        every = tuple(f"{t}-{s}" for t in ARCHITECTURES for s in ARCHITECTURES)
        preset = replace(preset, pairs=tuple(pairs) if pairs is not None else every)
    one, two = (len(make_plan(replace(preset, seeds=tuple(range(n))), arms, GROUND).trials) for n in (1, 2))
    seeds = max(2, 1 + round((trials - one) / (two - one)))
    return replace(preset, seeds=tuple(range(seeds))), arms


def write(runs: Path, plan: Plan) -> StudyFolder:
    """Write a finished study of a plan's trials, with its tables."""
    study, chance = StudyFolder(runs / plan.study), random.Random(0)
    study.path.mkdir(parents=True)
    write_study(study, plan.preset.decision, plan.arms, plan.controls, "kdbench run --preset quick")
    for key, spec in plan.trials.items():
        write_trial(study.trial(key), spec, chance)
    write_table(read_study(study))
    return study


def write_trial(folder: Folder, spec: Spec, chance: random.Random) -> None:
    """Write a finished trial: its spec, its curve, its weights, and last its sealed result."""
    folder.write_spec(spec)
    scores = [round(95 + chance.gauss(0, 0.3), 4) for _ in range(EPOCHS)]
    norms = {"student": {"mean": 1.0, "max": 2.0}, "all": {"mean": 1.0, "max": 2.0}}
    lines = [
        {
            "epoch": number,
            "lr": 0.1,
            "loss": {"ce": 1.0, "total": 1.0},
            "train_accuracy": 90.0,
            "val_accuracy": score,
            "grad_norms": norms,
            "clipped_share": 0.25,
            "overflowed_steps": 0,
            "digest": f"{chance.getrandbits(64):016x}",
        }
        for number, score in enumerate(scores, 1)
    ]
    (folder.path / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (folder.path / "norms.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["step", "student", "all"])
        table.writerows([step, 1.5, 1.5] for step in range(1, STEPS + 1))
    safetensors.numpy.save_file({"weight": np.zeros(4, np.float32)}, folder.student)
    folder.write_result(folder.seal_files(result_of(folder.key, spec, scores, chance)))


def result_of(key: str, spec: Spec, scores: Sequence[float], chance: random.Random) -> Result:
    """Return what a trial like this would say: each audit has spoken, and a fault is caught by its own."""
    fault = faults.get(spec.fault) if spec.fault is not None else None
    caught = fault.ids(fault.caught_by) if fault is not None else []
    metrics = Metrics(95 + chance.gauss(0, 0.3), scores[-1], [95.0] * 10, *((90.0, 0.1, 0.1) if spec.teacher else ()))
    findings = [
        {
            "id": id,
            "name": name,
            "severity": "error",
            "status": "fail" if id in caught else "pass",
            "phase": "burn-in",
            "message": "the term acts with weight 0.7 beside the labels' 0.3, as it is meant to be",
            "observed": {"weight": 0.7, "steps": 50},
            "mend": "multiply the term by T * T",
            "where": None,
            "consequence_of": None,
            "reason": None,
            "decide_with": None,
        }
        for name, id in sorted(faults.audit_ids().items())
    ]
    story = FaultStory(fault.name, fault.seam, 10, True, caught, 1, False) if fault is not None else None
    teacher = TeacherRecord(spec.teacher.arch, None, None, 1.0, 95.0, 20.0, True) if spec.teacher is not None else None
    known = {"torch": "2", "device_name": "cpu", "device": "cpu", "code_digest": "0" * 16, "kdbench": "0"}
    times: dict[str, float | str] = {"started": "2026-01-01T00:00:00+00:00", "seconds": 12.0}
    return Result(
        key,
        "finished",
        selected_epoch=EPOCHS,
        metrics=metrics,
        findings=findings,
        fault=story,
        teacher=teacher,
        environment=known,
        times=times,
    )


def main() -> None:
    """Write the study that the command line asks for, and print its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--shape", choices=SHAPES, default="seeds")
    asked = parser.parse_args()
    study = write(asked.runs, make_plan(*plan_of(asked.trials, asked.shape), GROUND))
    print(f"{study.path}: {sum(1 for _ in study.trials())} trials")


if __name__ == "__main__":
    main()
