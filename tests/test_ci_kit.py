"""The action and the hook run in a repository made on the spot: red for a wrong script, green for a right one."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from test_audit_command import RIGHT, WRONG

import kdbench

ROOT = Path(__file__).resolve().parent.parent
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def repository(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "right.py").write_text(RIGHT)
    git("init", "-q", cwd=tmp_path)
    return tmp_path


def git(*words, cwd):
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True, timeout=60)


def act(folder, **inputs):
    """Run the action's steps as GitHub's runner does; return the exit code, the log and the outputs."""
    given = {name: str(item.get("default", "")) for name, item in ACTION["inputs"].items()} | inputs
    log, outputs = "", folder / "outputs"
    for step in ACTION["runs"]["steps"]:
        if "if" in step and not eval(step["if"].replace("inputs.install", repr(given["install"]))):
            continue
        assert step["shell"] == "bash" and "${{" not in step["run"], "an input in a command could hold one"
        filled = {k: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: given[m[1]], v) for k, v in step["env"].items()}
        env = {**os.environ, "PATH": PATH, "GITHUB_OUTPUT": str(outputs), "GITHUB_ACTION_PATH": str(ROOT), **filled}
        words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        log += done.stdout + done.stderr
        if done.returncode:
            break
    told = dict(line.split("=", 1) for line in outputs.read_text().splitlines()) if outputs.exists() else {}
    return done.returncode, log, told


def test_the_action_fails_a_wrong_script_and_marks_its_line(repository):
    code, log, told = act(repository, script="wrong.py", install="false", python=sys.executable)
    assert (code, told) == (1, {"verdict": "failed"})
    assert re.search(r"^::error file=wrong.py,line=\d+,title=KD312 kd-scale::", log, re.M)
    sarif = json.loads((repository / "kdbench.sarif").read_text())
    assert sarif["runs"][0]["results"][0]["ruleId"] == "KD312"


def test_the_action_passes_a_right_one_and_hands_on_options_and_arguments(repository):
    (repository / "right.py").write_text("import sys\nassert sys.argv[1:] == ['--epochs', '1']\n" + RIGHT)
    options = {
        "script": "right.py --epochs 1",
        "options": "--alpha 0.7 --steps 9 --waive 'KD205=on purpose, * as it is'",
        "sarif": "own.sarif",
    }
    code, log, told = act(repository, install="false", python=sys.executable, **options)
    assert (code, told) == (0, {"verdict": "clean"}), log
    assert (repository / "own.sarif").exists()


def test_the_action_says_what_is_a_slip_of_its_user(repository):
    code, log, told = act(repository, script="no.py", install="false", python=sys.executable)
    assert (code, told) == (2, {"verdict": "usage-error"}) and "no.py does not exist" in log


def test_the_action_installs_what_stands_beside_it():
    (step,) = (step for step in ACTION["runs"]["steps"] if step["name"] == "Install kdbench")
    assert (
        step["run"] == '"$PYTHON" -m pip install --quiet "$GITHUB_ACTION_PATH"' and (ROOT / "pyproject.toml").exists()
    )


@pytest.mark.long
def test_the_hook_holds_up_a_push(repository, tmp_path_factory):
    """pre-commit takes the hook from a repository with the file that stands at the top of this one."""
    source = tmp_path_factory.mktemp("source")
    (source / ".pre-commit-hooks.yaml").write_bytes((ROOT / ".pre-commit-hooks.yaml").read_bytes())
    git("init", "-q", cwd=source)
    git("add", ".", cwd=source)
    git("commit", "-qm", "hooks", cwd=source)
    revision = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=source, text=True).strip()
    env = {**os.environ, "PATH": PATH, "PRE_COMMIT_HOME": str(tmp_path_factory.mktemp("home"))}
    for script, code, says in (("wrong.py", 1, "KD312 kd-scale"), ("right.py", 0, "Passed")):
        hook = {"id": "kdbench-audit", "args": [script]}
        config = {"repos": [{"repo": str(source), "rev": revision, "hooks": [hook]}]}
        (repository / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))
        git("add", ".", cwd=repository)
        words = [sys.executable, "-m", "pre_commit", "run", "--hook-stage", "pre-push", "--all-files"]
        done = subprocess.run(words, cwd=repository, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == code and says in done.stdout, done.stdout + done.stderr


def test_the_page_shows_what_there_is():
    page = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
    blocks = {name: yaml.safe_load(text) for name, text in re.findall(r"<!-- (\w+) -->\n```yaml\n(.*?)```", page, re.S)}
    (step,), (hook,) = blocks["action"], blocks["hook"]
    assert {*step["with"]} <= {*ACTION["inputs"]} and all(f"| `{name}` |" in page for name in ACTION["inputs"])
    known = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    assert [one["id"] for one in hook["hooks"]] == [one["id"] for one in known]


def test_what_is_to_be_cited_is_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == kdbench.__version__ and cited["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors", "type"} <= {*cited}
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls["Paper"] == cited["references"][0]["url"]


def test_issue_forms_are_well_formed():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.name != "config.yml":
            assert form["name"] and form["description"] and form["body"]
            ids = [part["id"] for part in form["body"]]
            assert len({*ids}) == len(ids) and all(part["attributes"]["label"] for part in form["body"])
