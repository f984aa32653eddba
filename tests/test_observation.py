"""What observing a script leaves as it was, and what is said of scripts that crash, exit, or never distil."""

import json
import random
import runpy
import sys
import textwrap
from multiprocessing import get_context

import corpus
import pytest

# The end of a script that writes down what it came to: weights, and where its random numbers stand.
EPILOGUE = """
import hashlib as _h, os as _o, random as _r
import numpy as _n
_d = _h.sha256()
for _m in [v for v in list(globals().values()) if isinstance(v, torch.nn.Module)]:
    for _k, _v in _m.state_dict().items():
        _d.update(_k.encode()); _d.update(_v.detach().double().numpy().tobytes())
_states = [torch.get_rng_state().tolist(), _r.getstate(), _n.random.get_state()[1].tolist()]
_digests = [_d.hexdigest(), *(_h.sha256(repr(s).encode()).hexdigest() for s in _states)]
open(_o.environ["DIGEST"], "w").write(" ".join(_digests))
"""
UNCHANGED = ["plain_loop", "text_transformer", "amp_gradscaler", "handwritten_kl", "two_students", "feature_hooks"]


def run_alone(path):
    import torch

    torch.set_num_threads(1)
    sys.argv = [path]
    runpy.run_path(path, run_name="__main__")


def seeded(run, *args):
    """Run from the same random state, whatever the process that was forked had drawn."""
    import numpy as np

    random.seed(1)
    np.random.seed(1)
    run(*args)


def in_child(target, *args):
    """Run a function in a process of its own; return its exit code."""
    process = get_context("fork").Process(target=target, args=args)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.parametrize("name", UNCHANGED)
def test_a_script_ends_in_the_same_weights_and_random_state_observed_or_not(name, tmp_path, monkeypatch):
    script = tmp_path / f"{name}.py"
    script.write_text((corpus.SCRIPTS / f"{name}.py").read_text() + EPILOGUE)
    digests = []
    for run, arguments in ((run_alone, []), (corpus.observe, [{"steps": 0}])):
        out = tmp_path / run.__name__
        monkeypatch.setenv("DIGEST", str(out))
        assert in_child(seeded, run, str(script), *arguments) == 0
        digests.append(out.read_text().split())
    assert digests[0] == digests[1] and len(digests[0]) == 4


def observe_text(tmp_path, text, **options):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return corpus.observe_all([path], **options)[0]


SETUP = """
    import torch, torch.nn as nn, torch.nn.functional as F
    torch.manual_seed(0)
    teacher, student = nn.Linear(8, 4), nn.Linear(8, 4)
    opt = torch.optim.SGD(student.parameters(), lr=0.1)

    def step():
        x, y = torch.randn(32, 8), torch.randint(4, (32,))
        with torch.no_grad():
            t = teacher(x)
        z = student(x)
        kd = F.kl_div(F.log_softmax(z / 2, 1), F.softmax(t / 2, 1), reduction="batchmean") * 4
        loss = 0.5 * F.cross_entropy(z, y) + 0.5 * kd
        opt.zero_grad()
        loss.backward()
        opt.step()
"""


def test_a_script_that_crashes_is_reported_on_up_to_there(tmp_path):
    seen = observe_text(tmp_path, SETUP + "\n    for _ in range(5):\n        step()\n    raise ValueError('mine')\n")
    assert "ValueError: mine" in seen["error"] and "script.py" in seen["error"] and "audits" not in seen["error"]
    assert seen["steps"] == 5 and "KD104" in [f[0] for f in seen["failed"]]


def test_the_exit_code_of_a_script_is_kept(tmp_path):
    seen = observe_text(tmp_path, SETUP + "\n    step()\n    raise SystemExit(3)\n")
    assert seen["exit"] == 3 and seen["error"] is None


def test_a_script_is_stopped_after_the_steps_asked_for_counted_from_the_first_distillation(tmp_path):
    seen = observe_text(
        tmp_path, SETUP + "\n    for _ in range(1000):\n        step()\n    open('end', 'w')\n", steps=7
    )
    assert seen["steps"] == 7 and "7 steps" in seen["stopped"]
    assert not (tmp_path / "end").exists()


def test_a_script_that_catches_exceptions_is_stopped_too(tmp_path):
    text = (
        SETUP
        + "\n    for _ in range(1000):\n        try:\n            step()\n        except Exception:\n            pass\n"
    )
    assert observe_text(tmp_path, text, steps=4)["steps"] == 4
    bare = text.replace("except Exception:", "except:").replace("range(1000)", "range(3)") + "    print('goes on')\n"
    assert observe_text(tmp_path, bare, steps=2)["steps"] == 2


def test_a_script_in_which_nothing_is_distilled_ends_at_its_time(tmp_path):
    text = "\n    import time\n    while True:\n        time.sleep(0.05)\n"
    seen = observe_text(tmp_path, text, max_seconds=1)
    assert "seconds were over" in seen["stopped"] and seen["sights"] == 0


def test_modules_of_the_users_called_like_ours_are_theirs(tmp_path):
    for name in ("kd", "audits", "harness"):
        (tmp_path / f"{name}.py").write_text(f"whose = 'mine, {name}'\n")
    text = "import kd, audits, harness\n" + textwrap.dedent(SETUP) + "step()\nassert kd.whose == 'mine, kd'\n"
    text += "assert audits.whose == 'mine, audits' and harness.whose == 'mine, harness'\nraise SystemExit(7)\n"
    seen = observe_text(tmp_path, text)
    assert seen["error"] is None and seen["exit"] == 7 and seen["sights"] == 1


def test_processes_that_a_script_starts_are_named_and_loader_workers_are_not(tmp_path):
    text = (
        SETUP
        + """
    from multiprocessing import Process
    import subprocess, sys
    from torch.utils.data import DataLoader, TensorDataset
    def train_elsewhere():
        pass
    for _ in DataLoader(TensorDataset(torch.randn(8, 2)), num_workers=1):
        pass
    p = Process(target=train_elsewhere); p.start(); p.join()
    subprocess.run([sys.executable, "-c", "pass"])
    step()
    """
    )
    script, out = tmp_path / "script.py", tmp_path / "seen.json"
    script.write_text(textwrap.dedent(text))
    assert in_child(corpus._observe_to, str(out), str(script), {}) == 0
    seen = json.loads(out.read_text())
    assert seen["error"] is None
    assert any("train_elsewhere" in u for u in seen["unobserved"]) and any("python" in u for u in seen["unobserved"])
    assert len(seen["unobserved"]) == 2


def test_an_error_of_ours_is_said_and_the_script_goes_on(tmp_path, monkeypatch):
    text = (
        SETUP
        + """
    import sys
    ours = [m for m in __import__("gc").get_objects() if type(m).__name__ == "Inference"]
    ours[0].window = None  # as if the audits were broken
    for _ in range(5):
        step()
    raise SystemExit(5)
    """
    )
    seen = observe_text(tmp_path, text)
    assert seen["exit"] == 5 and seen["broken"] is not None and seen["counts"]["error"] > 0


RUNS_ON = SETUP + "\n    for _ in range(20):\n        step()\n    best = student.state_dict()\n"


def test_what_comes_after_the_steps_is_seen_and_changes_nothing_of_them(tmp_path):
    end = """
    student.load_state_dict(best)
    for p in teacher.parameters():
        p.data.add_(1)
    torch.no_grad().__enter__()
    for seed in (0, 1):
        torch.manual_seed(seed)
        student(torch.randn(40, 8))
"""
    seen = observe_text(tmp_path, RUNS_ON + end, steps=7, runs_on=30)
    failed = [f[0] for f in seen["failed"]]
    assert seen["steps"] == 7 and seen["afterwards"] == "it ran on to its end"
    assert "KD335" in failed and "KD302" not in failed
    assert seen["status"]["KD332"] == "pass"
    assert "KD335" not in [f[0] for f in observe_text(tmp_path, RUNS_ON + end, steps=7)["failed"]]


def test_what_crashes_after_the_steps_is_judged_by_them(tmp_path):
    seen = observe_text(tmp_path, RUNS_ON + "    raise ValueError('mine')\n", steps=7, runs_on=30)
    assert seen["error"] is None and seen["afterwards"] == "afterwards it crashed: ValueError: mine"
    assert "KD104" in [f[0] for f in seen["failed"]]


@pytest.mark.parametrize("rest", ["student(torch.randn(4, 8))", "__import__('time').sleep(0.05)"])
def test_a_script_that_runs_on_for_long_is_cut_off(tmp_path, rest):
    text = RUNS_ON + f"    while True:\n        {rest}\n"
    seen = observe_text(tmp_path, text, steps=7, runs_on=0.3)
    assert seen["afterwards"] == "it was cut off 0.3 seconds later" and seen["steps"] == 7
