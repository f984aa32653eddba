"""The examples of docs/language-models.md are run as they stand, with tiny models made here, where TRL is installed."""

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "language-models.md"
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S))
SHARED = {
    "max_steps": 8, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "use_cpu": True, "bf16": False,
    "report_to": [], "save_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


def gkd(words, folder):
    from trl.experimental.gkd import GKDConfig

    pairs = [s.split(" ", 1) for s in words.sentences(64)]
    talks = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]
    return GKDConfig(folder, max_new_tokens=6, lmbda=0.5, beta=0.5, temperature=0.9, **SHARED), {"messages": talks}


def distillation(words, folder):
    from trl import DistillationConfig

    prompts = [[{"role": "user", "content": s.split(" ", 1)[0]}] for s in words.sentences(64)]
    return DistillationConfig(folder, max_completion_length=6, **SHARED), {"prompt": prompts}


def test_each_trainer_has_an_example_of_at_most_ten_lines():
    """Needs no package."""
    assert set(EXAMPLES) == {"gkd", "distillation"}
    assert all(len(text.splitlines()) <= 10 for text in EXAMPLES.values())
    for name, text in EXAMPLES.items():
        compile(text, name, "exec")


@pytest.mark.packages
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrong", ["", "dropout in the teacher's attention"])
@pytest.mark.parametrize("make", [gkd, distillation])
def test_the_example_for(make, wrong, capsys, monkeypatch, tmp_path):
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    monkeypatch.syspath_prepend(str(HERE / "packages"))
    monkeypatch.delitem(sys.modules, "tiny_words", raising=False)
    import tiny_words

    tokenizer = tiny_words.tokenizer()
    arguments, data = make(tiny_words, str(tmp_path))
    teacher = tiny_words.learn(tiny_words.llama(64, seed=1), tokenizer)
    if wrong:  # and nobody puts it into evaluation mode
        teacher.train()
        teacher.eval = lambda: teacher
        for layer in teacher.model.layers:
            layer.self_attn.attention_dropout = 0.2
    names = {
        "student": tiny_words.llama(16),
        "teacher": teacher,
        "arguments": arguments,
        "data": datasets.Dataset.from_dict(data),
        "tokenizer": tokenizer,
    }
    exec(compile(EXAMPLES[make.__name__], f"language-models.md, {make.__name__}", "exec"), names)
    report = names["audit"].report
    assert str(report).strip() in capsys.readouterr().out
    failed = {f.id for f in report.failed("error")}
    passed = {f.id for f in report.findings if f.status == "pass"}
    assert failed == ({"KD301"} if wrong else set())
    assert {"KD101", "KD102", "KD302", "KD311"} <= passed
    assert wrong or {"KD305", "KD313"} <= passed
