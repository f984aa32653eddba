"""A script as it is written for a GPU: mixed precision, loss scaling, pinned memory, copies that do not wait.

The audits leave it alone and name what is broken in its twins, on a GPU and, where it is quick, on a processor.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))
SCRIPT = Path(__file__).parent / "cuda_script.py"
UNSCALE = "        scaler.unscale_(optimizer)\n"
CLIP = "        nn.utils.clip_grad_norm_(parameters, 1.0)\n"
SOFT = """F.softmax(teacher_logits.float() / T, 1), reduction="batchmean"
        )
        loss = F.cross_entropy(logits.float(), y) + 0.5 * T * T * soft"""
TWINS = {
    "projector-unclipped": ("KD201", "clip_grad_norm_(parameters", "clip_grad_norm_(student.parameters()"),
    "clip-before-unscale": ("KD203", UNSCALE + CLIP, CLIP + UNSCALE),
    "missing-t-squared": ("KD312", "0.5 * T * T * soft", "0.5 * soft"),
    "small-and-of-two-temperatures": ("KD313", SOFT, SOFT.replace(" / T", "").replace("T * T * ", "")),
    "teacher-train-mode": ("KD301", "teacher.eval()", "teacher.train()"),
    "projector-untrained": (
        "KD101",
        "Conv2d(8, 32, 1).to(device)\nparameters = [*student.parameters(), *projector.parameters()]",
        "Conv2d(8, 32, 1).to(device)\nparameters = [*student.parameters()]",
    ),
}


def python(device, *arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=SCRIPT.parents[1],
        env={**os.environ, "DEVICE": device, "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def audited(device, script):
    done = python(device, "-m", "kdbench", "audit", "--format", "json", "--steps", "0", "--kd-weight", "0.5", script)
    return done, [
        f["id"] for f in json.loads(done.stdout)["findings"] if f["status"] == "fail" and f["severity"] != "info"
    ]


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_the_script_is_clean_and_ends_in_the_same_weights_observed_or_not(device):
    alone = python(device, SCRIPT)
    done, failed = audited(device, SCRIPT)
    assert done.returncode == 0 and failed == [], done.stderr
    assert alone.returncode == 0, alone.stderr
    assert alone.stdout.strip() and alone.stdout.strip() in done.stderr


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("name", TWINS)
def test_what_is_broken_in_a_twin_is_named_first(name, device, tmp_path):
    if device == "cpu" and name not in ("missing-t-squared", "small-and-of-two-temperatures"):
        pytest.skip("tests/scripts has these on a processor")
    expected, old, new = TWINS[name]
    text = SCRIPT.read_text(encoding="utf-8")
    assert text.count(old) == 1
    twin = tmp_path / "train.py"
    twin.write_text(text.replace(old, new), encoding="utf-8")
    done, failed = audited(device, twin)
    assert failed[:1] == [expected], (failed, done.stderr)
