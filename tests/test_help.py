"""What the command line says of itself: help in groups, examples that work, names that complete."""

import os
import shlex
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from test_cli import kdbench

from kdbench.harness.cli import COMMANDS, JOBS, cli, completion
from kdbench.harness.faults import FAULTS
from kdbench.harness.plan.outline import PRESETS, outline
from kdbench.kd.methods import METHODS


def every_command():
    """Yield each command with the words that call it, groups and their commands included."""
    yield (), cli
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        yield (name,), command
        if isinstance(command, click.Group):
            yield from (((name, word), found) for word, found in command.commands.items())


EVERY = dict(every_command())


def words(name):
    return " ".join(name) or "kdbench"


@pytest.mark.parametrize("name", EVERY, ids=words)
def test_help_fits_80_columns_and_ends_with_examples(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = kdbench(*name, "--help")
    assert code == 0 and err == ""
    assert max(len(line) for line in out.splitlines()) <= 80
    before, _, examples = out.partition("\nExamples\n")
    assert before.startswith("Usage: kdbench")
    assert 2 <= examples.count("  # ") <= 6, "two to six examples"
    assert all(line.startswith("  ") for line in examples.splitlines())


@pytest.mark.parametrize("name", EVERY, ids=words)
def test_an_options_help_is_a_sentence_in_a_named_group(name):
    fragments = {"Of", "With", "Where", "Without", "As", "In", "Default:", "Default"}
    for param in EVERY[name].params:
        if isinstance(param, click.Option) and not param.hidden:
            help = param.help or ""
            assert help.split(" ")[0] not in fragments and help[-1:] in (".", ")"), (param.opts, help)
            if len(EVERY[name].params) > 6:
                assert getattr(param, "panel", None), f"{param.opts} stands in no group"


def typed(examples):
    """Yield the words of each command among examples, what precedes `kdbench` and follows a shell's sign left out."""
    for example in examples:
        for line in example.commands.replace("\\\n", " ").splitlines():
            found = shlex.split(line)
            if "kdbench" in found:
                yield found[found.index("kdbench") + 1 : found.index(">") if ">" in found else None]


@pytest.mark.parametrize("name", EVERY, ids=words)
def test_an_example_names_commands_options_and_values_that_exist(name):
    for rest in typed(EVERY[name].examples):
        command, context = cli, click.Context(cli)
        while isinstance(command, click.Group) and rest:
            command = command.get_command(context, rest.pop(0))
            context = click.Context(command, context, **command.context_settings)
        given, _, _ = command.make_parser(context).parse_args(rest)  # an unknown option raises
        for names, known in (("fault_names faults", FAULTS), ("methods", METHODS), ("preset_name", PRESETS)):
            for value in (given.get(n) for n in names.split()):
                assert {*([value] if isinstance(value, str) else value or ())} <= {*known}
    if name:
        assert any(words(name) in line for example in EVERY[name].examples for line in example.commands.splitlines())


def test_an_example_of_an_option_that_is_gone_would_be_seen():
    command = EVERY["run",]
    with pytest.raises(click.NoSuchOption):
        command.make_parser(click.Context(command)).parse_args(["--sedes", "0-4"])


@pytest.mark.parametrize("name", [(), ("audits",), ("faults",)], ids=words)
def test_a_group_by_itself_shows_its_help(name):
    assert kdbench(*name) == kdbench(*name, "--help")
    assert kdbench(*name)[0] == 0


def test_the_first_screen_lists_every_command_under_a_job():
    _, out, _ = kdbench()
    assert [*COMMANDS] == [name for commands in JOBS.values() for name in commands]
    places = [out.index(f"\n{job}\n") for job in JOBS]
    assert places == sorted(places) and all(f"\n {name} " in out for name in COMMANDS)
    assert '$(_KDBENCH_COMPLETE=bash_source kdbench)"' in out


@pytest.mark.parametrize("args", [[], ["--help"], ["--version"], ["rnu"]])
def test_the_first_screen_imports_no_command(args):
    code = f"""
import sys
sys.argv = ["kdbench", *{args!r}]
from kdbench.harness import cli
try:
    cli.main()
finally:
    print("imported:", [name for name in sys.modules if name.startswith("kdbench.") and name.endswith("_command")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "imported: []" in done.stdout, done.stderr


def completed(*args):
    """Return what Tab offers for the last of these words."""
    found = ShellComplete(cli, {}, "kdbench", "_KDBENCH_COMPLETE").get_completions(list(args[:-1]), args[-1])
    return [item.value for item in found]


def test_names_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        (tmp_path / "elsewhere" / name).mkdir(parents=True)
        (tmp_path / "elsewhere" / name / "study.json").write_text("{}")
    assert completed("run", "--fault", "missing-t") == ["missing-t-squared"]
    assert completed("faults", "show", "imagenet-stem+missing-t") == ["imagenet-stem+missing-t-squared"]
    assert completed("audits", "matrix", "--fault", "random-t") == ["random-teacher"]
    assert completed("audit", "--method", "log") == ["logit"]
    assert completed("run", "--method", "logit+fe") == ["logit+feature"]
    assert completed("run", "--preset", "") == [*PRESETS]
    assert completed("compare", "corr") == ["corrected"]
    assert completed("status", "--runs", "elsewhere", "--study", "") == ["first", "second"]
    assert completed("report", "x") == []
    assert completed("rep") == ["report", "reproduce"]
    assert completed("nothing", "x") == []


def test_what_completes_is_what_is_registered():
    """The names are read from the sources, without importing them."""
    ours = [name for name, fault in FAULTS.items() if fault.function.__module__.startswith("kdbench.harness.faults")]
    assert completion.fault_names() == sorted(ours) and len(ours) > 50
    assert completion.method_names() == sorted(
        name for name, kind in METHODS.items() if kind.__module__.startswith("kdbench.kd.methods")
    )


def test_tab_imports_nothing_heavy_and_runs_nobodys_code(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    code = """
import sys
from kdbench.harness import cli
try:
    cli.main()
finally:
    print("heavy:", sorted({"torch", "numpy", "mlflow"} & set(sys.modules)))
"""
    typed = "kdbench run --faults mine.py --fault kl-rev"
    environment = {"_KDBENCH_COMPLETE": "bash_complete", "COMP_WORDS": typed, "COMP_CWORD": "5"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["plain,kl-reversed", "heavy:", "[]"], done.stderr


def test_a_study_is_outlined_before_anything_heavy_is_imported(tmp_path):
    nothing = {"dataset": None, "pairs": (), "methods": (), "seeds": None, "arms": None}
    assert outline("quick", **nothing) == (
        "quick: digits, r34-r18; 4 arms x 3 methods x 3 seeds: at most 36 students, their teachers and controls"
    )
    asked = {**nothing, "methods": ("logit",), "pairs": ("r50-r18",), "seeds": "0-4", "arms": 2}
    assert (
        outline("quick", **asked)
        == "quick: digits, r50-r18; 2 arms x 5 seeds: at most 10 students, their teachers and controls"
    )
    one = {**asked, "seeds": "0-0", "arms": 1}
    assert outline("quick", **one, controls=False) == "quick: digits, r50-r18; 1 arm: at most 1 student, their teachers"
    file = tmp_path / "mine.toml"
    for text in ("", "[study]", "[study]\nseeds = 5", "study = 3"):
        file.write_text(text)
        assert outline(str(file), **nothing) is None, "the reading that follows says what is wrong"
    assert outline("quick", **{**nothing, "seeds": "5"}) is None
