"""The command line's manners: fast help, one clear sentence for a slip, exit 2, nothing written."""

import errno
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import cli_runner, write_images

from kdbench.harness.cli import COMMANDS, cli, run_cli
from kdbench.kd.models import build
from kdbench.kd.teacher import save_checkpoint


def kdbench(*args):
    """Run a command in this process; return its exit code and what it printed on stdout and stderr."""
    runner = cli_runner()
    codes = []
    with runner.isolation() as streams:
        codes.append(run_cli(lambda: cli.main([str(a) for a in args], prog_name="kdbench", standalone_mode=False)))
        out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
    return codes[0], out, err


def test_help_of_kdbench_and_of_every_command_imports_nothing_heavy():
    code = """
import sys
from kdbench.harness.cli import COMMANDS, cli
try:
    for words in ([], *([name] for name in COMMANDS)):
        cli.main([*words, "--help"], standalone_mode=False)
finally:
    heavy = {"torch", "torchvision", "mlflow", "pandas", "scipy", "numpy", "sklearn", "matplotlib"} & set(sys.modules)
    print("heavy:", sorted(heavy))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "heavy: []" in done.stdout
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize(
    ("by_hand", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("pass", 70),
    ],
)
def test_ctrl_c_is_told_from_what_a_package_makes_of_it_while_it_is_imported(by_hand, code):
    """NumPy, cut off in the middle of its import and imported once more, raises an ImportError."""
    script = f"""
import os, signal, sys
from kdbench.harness import cli
signal.signal(signal.SIGINT, signal.default_int_handler)

def broken(name):
    try:
        {by_hand}
    except KeyboardInterrupt:
        pass
    raise ImportError("cannot load module more than once per process")

cli.importlib.import_module = broken
sys.argv = ["kdbench", "run"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert (done.stderr == "interrupted\n") is (code != 70)
    assert "Traceback" not in done.stderr


def test_ctrl_c_before_the_command_itself_is_imported_leaves_no_traceback():
    script = """
import sys

class Interrupts:
    def find_spec(self, name, *_):
        if name == "kdbench.harness.cli":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
from kdbench.__main__ import main
main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_an_error_that_nobody_foresaw_is_one_sentence_and_a_file(monkeypatch):
    def broken():
        raise RuntimeError("\x1b]0;title\x07" + "long " * 1000)

    monkeypatch.delenv("KDBENCH_DEBUG", raising=False)
    with cli_runner().isolation() as streams:
        assert run_cli(broken) == 70
        said = streams[1].getvalue().decode()
    assert "kdbench broke, and that is its fault: RuntimeError: \\x1b]0;title\\x07long" in said
    assert "Traceback" not in said and len(said) < 3000 and said.count("\n") == 1
    file = Path(re.search(r"\S*kdbench-error-\S*\.txt", said)[0])
    assert "in broken" in file.read_text()
    file.unlink()
    monkeypatch.setenv("KDBENCH_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run_cli(broken)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 3, "No space left on device (runs/x); make room"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
        (OSError(errno.ELOOP, "Too many links"), 70, "that is its fault"),
    ],
)
def test_the_state_of_a_machine_is_no_error_of_kdbench(monkeypatch, tmp_path, error, code, says):
    def broken():
        raise error

    monkeypatch.delenv("KDBENCH_DEBUG", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with cli_runner().isolation() as streams:
        assert run_cli(broken) == code
        assert says in streams[1].getvalue().decode()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    code, out, _ = kdbench(command, "--help")
    assert code == 0 and "Usage: kdbench" in out


@pytest.fixture
def quiet_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


BAD = {
    "command": (["rnu"], "unknown command 'rnu'; did you mean 'run'"),
    "option": (["run", "--sedes", "0"], "--seeds"),
    "variant": (["run", "--variant", "bug"], "unknown variant 'bug'; did you mean 'bugged'"),
    "pair": (["run", "--pair", "r50-r17"], "pair r50-r17: unknown network 'r17'; did you mean 'r18'"),
    "method": (["run", "--method", "logits"], "unknown method 'logits'; did you mean 'logit'"),
    "fault": (["run", "--fault", "imagenet-stm"], "unknown fault 'imagenet-stm'; did you mean 'imagenet-stem'"),
    "fault without bugs": (["run", "--variant", "corrected", "--fault", "imagenet-stem"], "variant has no fault"),
    "preset": (["run", "--preset", "quik"], "unknown preset 'quik'; did you mean 'quick'"),
    "precision": (["run", "--precision", "bf61"], "unknown precision 'bf61'; did you mean 'bf16'"),
    "precision of a GPU": (
        ["run", "--precision", "tf32"],
        "precision tf32 needs --device cuda; leave it out on a processor",
    ),
    "graphs of a GPU": (["run", "--graphs"], "graphs needs --device cuda; leave it out on a processor"),
    "device": (["run", "--device", "gpu"], "unknown device 'gpu'"),
    "data set": (["run", "--dataset", "cifar"], "unknown data set 'cifar'; did you mean 'cifar10'"),
    "folder without data": (
        ["run", "--dataset", "folder"],
        "needs a folder with train/CLASS/* and test/CLASS/* images (--data DIR)",
    ),
    "data for digits": (
        ["run", "--data", "x"],
        "takes no folder; images of your own are data set 'folder' (--dataset folder --data DIR)",
    ),
    "data that is not there": (["run", "--dataset", "folder", "--data", "none"], "none does not exist"),
    "seeds": (["run", "--seeds", "2-0"], "seeds '2-0' are no range"),
    "one number as seeds": (["run", "--seeds", "5"], "--seeds 5 might mean 5 seeds or the seed 5; write 0-4 for 5"),
    "one number as seeds of the zoo": (["audits", "matrix", "--zoo-seeds", "2"], "--zoo-seeds 2 might mean 2 seeds"),
    "epochs": (["run", "--epochs", "0"], "0 is not in the range"),
    "projector fault without projectors": (
        ["run", "--fault", "projector-unclipped", "--method", "logit"],
        "logit has no projectors",
    ),
    "teacher that is not there": (["run", "--teacher-weights", "t.pt"], "t.pt does not exist"),
    "hash without teacher": (["run", "--teacher-sha256", "00"], "no file was named"),
    "too small a data set": (["run", "--preset", "paper"], "train_size 45000 + val_size 5000"),
    "fault to show": (["faults", "show", "random-techer"], "did you mean 'random-teacher'"),
    "no study": (["compare", "corrected", "bugged"], "runs holds no study; start one with: kdbench run"),
    "no study to open": (["ui"], "runs holds no study"),
    "no study to mirror": (["mirror"], "runs holds no study"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_slip_is_one_sentence_exit_2_and_nothing_written(name, quiet_folder):
    args, says = BAD[name]
    if name == "too small a data set":
        args = [*args, "--dataset", "digits"]
    code, out, err = kdbench(*args)
    assert code == 2 and says in err, err
    assert out == "" and "Traceback" not in err
    *before, last = err.strip().splitlines()
    assert last.startswith("error: ") and all(line.endswith("loading PyTorch") for line in before), err
    assert list(quiet_folder.rglob("*")) == []


NOTHING = {
    "preset beside a file": (
        ["run", "study.toml", "--preset", "quick"],
        "--preset and the study file study.toml are two",
    ),
    "file of another kind": (["run", "quick"], "quick: a study file ends in .toml; name a preset with --preset"),
    "weights without a teacher": (
        ["run", "--method", "baseline", "--teacher-weights", "t.pt"],
        "--teacher-weights does nothing here: no method of this study has a teacher",
    ),
    "teacher's epochs without a teacher": (
        ["run", "--method", "baseline", "--teacher-epochs", "3"],
        "--teacher-epochs does nothing here",
    ),
    "fold without a teacher": (["run", "--method", "baseline", "--fold-teacher"], "--fold-teacher does nothing here"),
    "epochs of a trained teacher": (
        ["run", "--teacher-weights", "t.pt", "--teacher-epochs", "3"],
        "--teacher-epochs does nothing with --teacher-weights",
    ),
    "quiet and verbose": (["run", "-q", "-v"], "-q and -v contradict each other"),
    "simulation of a fault": (
        ["signature", "--simulate", "0.4", "--fault", "kl-reversed"],
        "--fault does nothing with --simulate",
    ),
    "simulation of a study": (["signature", "--simulate", "0.4", "--epochs", "3"], "--epochs does nothing with --sim"),
    "seeds of a signature": (
        ["signature", "--fault", "kl-reversed", "--seeds", "0-2"],
        "--seeds does nothing here: the seeds are 0 to 2, 4, 7 or 11",
    ),
    "two parts of an archive": (["reproduce", "a.zip", "--only", "a", "--trials", "1"], "say one of the two"),
    "margin of a study": (["compare", "corrected", "bugged", "--margin", "1"], "--margin goes with --csv or --mlflow"),
    "study of a table": (["compare", "--csv", "a.csv", "--study", "a"], "--study goes with arms of a study"),
    "output of an audit": (["audit", "--output", "x", "train.py"], "--output does nothing without --matrix"),
    "pair of a script": (["audit", "--pair", "r18-r18", "train.py"], "--pair is for our own training"),
    "norm without a script": (["audit", "--max-norm", "1"], "--max-norm is for a script, and none was named"),
    "steps of a list": (["audit", "--list", "--steps", "3"], "--steps does nothing with --list"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_an_option_that_would_do_nothing_is_refused(name, quiet_folder):
    args, says = NOTHING[name]
    code, out, err = kdbench(*args)
    assert code == 2 and says in err and out == "", err
    assert list(quiet_folder.rglob("*")) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["rnu"], "unknown command 'rnu'; did you mean 'run'? (kdbench --help lists them)"),
        (["audits", "lst"], "unknown command of kdbench audits 'lst'; did you mean 'list'?"),
        (["faults", "xyzzy"], "unknown command of kdbench faults 'xyzzy'; there are: gallery, list, show"),
        (["run", "--method", "logits"], "did you mean 'logit'? (kdbench methods lists them; --method-file FILE loads"),
        (
            ["run", "--fault", "kl-revered"],
            "did you mean 'kl-reversed'? (kdbench faults list shows them; --faults FILE",
        ),
        (
            ["run", "--fault", "xyzzy"],
            "clip-after-step, clip-before-backward (kdbench faults list shows them; --faults FILE loads",
        ),
        (["run", "--preset", "quik"], "did you mean 'quick'? (a file of your own is named in its place: kdbench run"),
        (
            ["run", "--pair", "r50-r17"],
            "did you mean 'r18'? (kdbench methods lists them; --model-file FILE loads a network",
        ),
        (["run", "mine.toml"], "mine.toml does not exist; kdbench init writes a study to start from"),
    ],
)
def test_an_unknown_name_names_the_nearest_and_how_to_bring_ones_own(args, says, quiet_folder):
    code, out, err = kdbench(*args)
    assert (code, out) == (2, "") and says in err
    assert len(err.splitlines()[-1]) < 250, "and not all that there are"


def test_what_is_wrong_with_an_option_points_to_its_commands_help():
    code, _, err = kdbench("audits", "matrix", "--format", "xml")
    assert code == 2 and err.endswith("(kdbench audits matrix --help shows the options)\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_that_is_not_there_is_not_replaced(quiet_folder):
    code, _, err = kdbench("run", "--device", "cuda")
    assert code == 2 and "sees no CUDA device" in err
    assert not list(quiet_folder.rglob("*"))


def teacher_of(arch, width, path):
    save_checkpoint(build(arch, "cifar", 10, width, torch.Generator().manual_seed(0)), path)
    return path


@pytest.mark.parametrize(
    ("spoil", "extra", "says"),
    [
        (lambda path: teacher_of("r18", 8, path), (), "not of this architecture"),
        (lambda path: teacher_of("r34", 4, path), (), "of another shape"),
        (lambda path: path.write_bytes(b"cut off"), (), "truncated"),
        (lambda path: teacher_of("r34", 8, path), ("--teacher-sha256", "00ff"), "not the 00ff"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_before_anything_runs(spoil, extra, says, quiet_folder):
    path = quiet_folder / "teacher.safetensors"
    spoil(path)
    code, out, err = kdbench("run", "--teacher-weights", path, *extra)
    assert code == 2 and says in err and str(path) in err and out == ""
    assert list(quiet_folder.rglob("*")) == [path]


def test_a_runs_folder_that_cannot_be_written_is_refused(quiet_folder):
    (quiet_folder / "taken").write_text("a file")
    code, _, err = kdbench("run", "--runs", "taken/runs")
    assert code == 2 and "cannot be written to" in err


def test_a_data_cache_that_cannot_be_written_is_refused(quiet_folder, monkeypatch):
    monkeypatch.setenv("KDBENCH_CACHE", "/proc/none")
    code, _, err = kdbench("run")
    assert code == 2 and "KDBENCH_CACHE" in err


def test_images_of_one_colour_are_refused(quiet_folder):
    from PIL import Image

    write_images(quiet_folder / "grey", train=40)
    for path in (quiet_folder / "grey").rglob("*.png"):
        Image.new("RGB", (32, 32), (9, 9, 9)).save(path)
    options = ["--train-size", "40", "--val-size", "20", "--dataset", "folder", "--data", "grey"]
    code, _, err = kdbench("run", *options)
    assert code == 2 and "constant" in err


@pytest.mark.parametrize("text", ["", "{", "{}", "[]"])
def test_a_broken_study_file_is_named(quiet_folder, text):
    (quiet_folder / "runs" / "a").mkdir(parents=True)
    (quiet_folder / "runs" / "a" / "study.json").write_text(text)
    code, _, err = kdbench("compare", "corrected", "bugged")
    assert code == 2 and "is not a study's file: " in err and "; delete it, and run" in err


def test_markup_in_a_name_is_printed_as_it_is(quiet_folder, capsys):
    from rich.markup import escape

    from kdbench.harness.cli.common import stdout

    stdout().print(f"records: {escape('out[v1]/[/b]/q')}")
    assert "out[v1]/[/b]/q" in capsys.readouterr().out


def test_images_of_one_class_are_refused(quiet_folder):
    write_images(quiet_folder / "pets", classes=("cat",))
    code, _, err = kdbench("run", "--dataset", "folder", "--data", "pets")
    assert code == 2 and "has one class, cat" in err


def test_dry_run_shows_trials_and_cost_and_writes_nothing(quiet_folder):
    code, out, err = kdbench("run", "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0 and plan["schema"] == "kdbench.plan/1"
    assert plan["trials"] == plan["to_run"] == len(plan["plan"]) == 33
    assert sum(row["control"] for row in plan["plan"]) == 4, "a trial twice, and the positive control over three seeds"
    assert plan["estimated_seconds"] > 0 and plan["pflop"] == pytest.approx(0.0138, rel=0.05)
    assert "33 trials" in err
    code, out, _ = kdbench("run", "--dry-run", "--variant", "corrected")
    assert code == 0 and out.count("\n") == 15
    assert not list(quiet_folder.rglob("*"))


def test_several_studies_must_be_told_apart(quiet_folder):
    for name in ("a", "b"):
        (quiet_folder / "runs" / name).mkdir(parents=True)
        (quiet_folder / "runs" / name / "study.json").write_text("{}")
    code, _, err = kdbench("compare", "corrected", "bugged")
    assert code == 2 and "holds 2 studies; say which: --study a | b" in err
    code, _, err = kdbench("compare", "corrected", "bugged", "--study", "c")
    assert code == 2 and "unknown study 'c'" in err


def test_faults_are_listed_and_shown():
    code, out, _ = kdbench("faults", "list", "--json")
    listed = json.loads(out)
    assert code == 0 and listed["schema"] == "kdbench.faults/1"
    names = [f["name"] for f in listed["faults"]]
    assert {"imagenet-stem", "projector-unclipped", "random-teacher"} <= set(names) and len(names) >= 38
    assert all(bool(f["caught_by"]) != bool(f["escapes"]) for f in listed["faults"])
    code, out, _ = kdbench("faults", "show", "projector-unclipped")
    assert code == 0
    assert "-    return [[*student.parameters(), *method.parameters()]]" in out
    assert "+    return [[*student.parameters()]]" in out and "KD201" in out and "kd-capacity-gap" in out


def test_a_fault_that_escapes_is_shown_with_its_reason():
    code, out, _ = kdbench("faults", "show", "teacher-in-optimizer")
    assert code == 0 and "escapes every audit: the teacher answers without a gradient" in " ".join(out.split())


def test_doctor_runs_a_convolution_and_finds_the_folders(quiet_folder):
    code, out, _ = kdbench("doctor", "--no-timing", "--json")
    found = json.loads(out)
    assert code == 0 and found["healthy"]
    assert (found["devices"][0]["kind"], found["devices"][0]["works"]) == ("cpu", True)
    assert all(found["packages"].values()) and found["workers"] == found["cores"] >= 1
    code, out, _ = kdbench("doctor", "--no-timing", "--runs", "/proc/none/runs")
    assert code == 3 and "not writable" in out
