"""Every example of docs/audit.md is run as it stands: on right code, and on broken code."""

import re
from pathlib import Path

import pytest
import torch
from test_asserts import Loop

pytest_plugins = ["pytester"]
PAGE = Path(__file__).resolve().parent.parent / "docs" / "audit.md"
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))


def test_each_place_has_an_example_of_at_most_ten_lines():
    assert set(EXAMPLES) == {"loop", "pytest", "lightning", "huggingface"}
    assert all(len(text.splitlines()) <= 10 for text in EXAMPLES.values())


def test_the_example_for_pytest(pytester: pytest.Pytester):
    prelude = """
        from test_asserts import Loop
        loop = Loop({wrong!r})
        step, student, teacher = loop.step, loop.student, loop.teacher
        projector, optimizer = loop.projector, loop.optimizer
    """
    pytester.syspathinsert(Path(__file__).parent)
    for wrong, outcome in (("", {"passed": 2}), ("no T squared", {"failed": 2})):
        lines = "\n".join(line.strip() for line in prelude.format(wrong=wrong).splitlines())
        pytester.makepyfile(lines + "\n" + EXAMPLES["pytest"])
        result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        result.assert_outcomes(**outcome)
        assert ("KD312 kd-scale  " in result.stdout.str()) == bool(wrong)


def loop(wrong: str) -> dict[str, object]:
    made = Loop("no T squared" if wrong else "")
    return {
        "student": made.student,
        "teacher": made.teacher,
        "projector": made.projector,
        "optimizer": made.optimizer,
        "loader": [(None, None)] * 6,
        "train_step": lambda x, y: made.step(),
    }


def lightning(wrong: str) -> dict[str, object]:
    pytest.importorskip("lightning")
    from test_lightning import Distillation

    data = torch.utils.data.TensorDataset(torch.randn(160, 12), torch.randint(0, 5, (160,)))
    return {"module": Distillation(wrong), "loader": torch.utils.data.DataLoader(data, 32)}


def huggingface(wrong: str) -> dict[str, object]:
    pytest.importorskip("transformers")
    from test_huggingface import DistillationTrainer, Sentences, bert, settings

    return {
        "DistillationTrainer": lambda *args, **kwargs: DistillationTrainer(*args, **kwargs, wrong=wrong),
        "student": bert(8, 1),
        "teacher": bert(16, 2).eval(),
        "arguments": settings(Path.cwd(), max_steps=6),
        "data": Sentences(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", ["", "no T squared"])
@pytest.mark.parametrize("make", [loop, lightning, huggingface])
def test_the_example_for(make, wrong, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = make(wrong)
    exec(compile(EXAMPLES[make.__name__], f"audit.md, {make.__name__}", "exec"), names)
    shown = capsys.readouterr().out
    assert "KD302 teacher-frozen" in shown.partition("passed: ")[2]
    assert ("KD312 kd-scale  " in shown) == bool(wrong)


def test_the_fixed_example_is_the_other_one_without_its_mistakes():
    folder = PAGE.parent / "examples"
    fixed, broken = (
        (folder / name).read_text(encoding="utf-8").split('"""', 2)[2] for name in ("fixed.py", "train.py")
    )
    for wrong, right in (
        ("alpha * soft + hint", "alpha * soft * T * T + hint"),
        ("student.parameters(), 1.0", "parameters, 1.0"),
    ):
        assert broken.count(wrong) == 1
        broken = broken.replace(wrong, right)
    assert fixed == broken
