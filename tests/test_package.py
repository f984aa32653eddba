"""One import package: what is installed puts `kdbench` and its pytest plugin on the user's path, and no more."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import kdbench

ROOT = Path(__file__).resolve().parent.parent
THE_USERS = ("kd.py", "audits/__init__.py", "harness/__init__.py")


@pytest.fixture
def folder(tmp_path):
    """A project that has modules called kd, audits and harness of its own, each of which says when it is imported."""
    for name in THE_USERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"print('the user has a {name}')\nMINE = True\n")
    return tmp_path


def run(*words, cwd, **environment):
    """Run a command; what it printed on both streams, and its exit code."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def test_the_door_is_free_and_leads_to_the_audits():
    code = "import sys, kdbench; assert 'torch' not in sys.modules and kdbench.__version__\n"
    code += "from kdbench import audits; assert kdbench.watch is audits.watch and kdbench.Clip and kdbench.KD\n"
    code += "assert kdbench.check_split is audits.check_split and 'watch' in dir(kdbench)\n"
    code += "assert {*dir(kdbench)} == {'__version__', *audits.__all__} == {*kdbench.__all__}, dir(kdbench)\n"
    code += "from kdbench import *; assert watch is audits.watch"
    assert run("-c", code, cwd=ROOT) == (0, "")
    with pytest.raises(AttributeError, match="no attribute 'wacth'"):
        _ = kdbench.wacth


def test_every_folder_of_modules_is_in_the_wheel_and_has_one_version():
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT) for top in ("kd", "audits", "harness") for p in (ROOT / top).rglob("*.py")}
    packages = {"kdbench." + ".".join(folder.parts) for folder in folders}
    assert packages <= {*table["packages"]}, "add them to packages in pyproject.toml"
    assert all((ROOT / Path(*name.split(".")[1:])).is_dir() for name in table["packages"])


def test_modules_of_the_users_are_in_nobodys_way(folder):
    """`kdbench --version` and a study with its workers, from a folder that is first on the path."""
    code, said = run("-m", "kdbench", "--version", cwd=folder, PYTHONPATH=f".{os.pathsep}{ROOT}")
    assert (code, said) == (0, f"kdbench, version {kdbench.__version__}\n")
    study = (ROOT / "tests" / "earlier" / "earlier.toml").read_text(encoding="utf-8")
    (folder / "own.toml").write_text(study)
    words = ("run", "own.toml", "--variant", "corrected", "--method", "baseline", "--seeds", "0", "--no-controls")
    code, said = run("-m", "kdbench", *words, cwd=folder, PYTHONPATH=f".{os.pathsep}{ROOT}")
    assert "1 trained" in said and "the user has" not in said and code in (0, 1), said


def test_a_projects_own_tests_find_their_own_audits(folder):
    """The plugin is loaded, and `import audits` is still theirs."""
    text = "import kd, audits, harness\n\ndef test_it():\n    assert kd.MINE and audits.MINE and harness.MINE\n"
    (folder / "test_mine.py").write_text(text)
    code, said = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--trace-config", cwd=folder)
    assert code == 0 and "1 passed" in said and "kdbench_pytest" in said, said


@pytest.mark.long
def test_a_wheel_in_a_fresh_environment_has_one_name_beside_the_plugins(tmp_path, folder):
    """Built by way of the sdist, and installed without its dependencies, which this environment lends it."""
    build = f"from setuptools import build_meta; print(build_meta.build_sdist({str(tmp_path)!r}))"
    code, said = run("-c", build, cwd=ROOT)
    assert code == 0, said
    (sdist,) = tmp_path.glob("*.tar.gz")
    words = ("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, sdist)
    code, said = run(*words, cwd=tmp_path)
    assert code == 0, said
    (wheel,) = tmp_path.glob("*.whl")
    names = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"kdbench", "kdbench_pytest.py"}
    venv.create(tmp_path / "fresh", with_pip=False)
    (site,) = (tmp_path / "fresh" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    lent = [p for p in sys.path if p.endswith("site-packages") or (Path(p) / "torch").is_dir()]
    (site / "lent.pth").write_text("\n".join(lent) + "\n")
    python = tmp_path / "fresh" / "bin" / "python"
    code = """
import kdbench, kdbench.harness.run.trial, kdbench.harness.publish.report
from kdbench.harness.plan.preset import load_preset
print(kdbench.watch.__module__)
print(len(load_preset("quick").methods))
import kd
print(kdbench.__file__)
"""
    done = subprocess.run([python, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    first, second, third, fourth = done.stdout.splitlines() or [done.stderr] * 4
    assert (first, int(second) >= 3, third) == ("kdbench.audits.watch", True, "the user has a kd.py")
    assert Path(fourth).is_relative_to(tmp_path / "fresh")
    shutil.copy(ROOT / "docs" / "examples" / "train.py", folder / "train.py")
    words = [python, "-m", "kdbench", "audit", "--format", "json", "train.py"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and [f["id"] for f in found["findings"] if f["severity"] == "error"][:2] == [
        "KD201",
        "KD312",
    ]
