"""Clean is said of a distillation term that was understood; of another, what was seen of it and what helps."""

import json
import sys
import textwrap

import pytest
from conftest import cli_runner

from kdbench.audits.laws import soft_loss
from kdbench.harness.cli import cli, run_cli

HEAD = """
import torch, kdbench
from torch import nn
import torch.nn.functional as F

torch.manual_seed(3)
CENTRES = 2 * torch.randn(6, 10)

def draw(n=32):
    y = torch.randint(6, (n,))
    return CENTRES[y] + torch.randn(n, 10), y

def divergence(mine, other, a=0.5):
    mixed = a * other.log_softmax(1) + (1 - a) * mine.log_softmax(1)
    return (mixed.logsumexp(1) / (a - 1)).mean()

teacher, student = (nn.Sequential(nn.Linear(10, w), nn.ReLU(), nn.Linear(w, 6)) for w in (24, 8))
optimizer = torch.optim.Adam(teacher.parameters(), 1e-2)
for _ in range(60):
    x, y = draw()
    optimizer.zero_grad()
    F.cross_entropy(teacher(x), y).backward()
    optimizer.step()
teacher.eval().requires_grad_(False)
optimizer = torch.optim.Adam(student.parameters(), 1e-2)
"""
LOOP = """
for _ in range(12):
    x, y = draw()
    logits, said = student(x), teacher(x)
    loss = F.cross_entropy(logits, y) + TERM
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
OWN = "divergence(logits, said)"


def audit(*args):
    runner = cli_runner()
    with runner.isolation() as streams:
        code = run_cli(lambda: cli.main(["audit", *map(str, args)], prog_name="kdbench", standalone_mode=False))
        sys.stdout.flush()
        return code, streams[0].getvalue().decode(), streams[1].getvalue().decode()


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    soft_loss.CHECKED.clear()

    def write(term, before=""):
        (tmp_path / "own.py").write_text(HEAD + textwrap.dedent(before) + LOOP.replace("TERM", term))
        return "own.py"

    return write


def first_line(text):
    return text.splitlines()[0]


def test_a_term_that_was_not_understood_is_undecided_and_the_first_line_says_so(script):
    code, out, _ = audit(script(OWN))
    assert code == 4
    assert first_line(out).startswith(
        "Undecided: the distillation term was not understood: student and teacher meet in"
    )
    assert "at own.py:14" in first_line(out) and "no known form fits its gradient" in " ".join(out.split())
    assert "--form own" in out and "--waive KD313=REASON" in out and "check_soft_loss" in out
    code, out, _ = audit("--format", "json", script(OWN))
    found = json.loads(out)
    assert (code, found["verdict"]) == (4, "undecided")


@pytest.mark.parametrize(
    ("options", "before", "said"),
    [
        (
            ["--waive", "KD313=Rényi's divergence, as in our paper"],
            "",
            "accepted as it is: Rényi's divergence, as in our",
        ),
        (["--form", "own"], "", "declared to be of a form of its own"),
        (
            [],
            "assert kdbench.check_soft_loss(divergence).status == 'pass'",
            "divergence, a form of its own that check_",
        ),
    ],
    ids=["waived", "declared", "checked"],
)
def test_a_form_of_ones_own_is_clean_by_waiver_declaration_or_property_check(script, options, before, said):
    code, out, _ = audit(*options, script(OWN, before))
    assert code == 0 and said in " ".join(out.split()), out


def test_a_contract_declares_it_too(script, tmp_path):
    assert audit("--write-contract", "kdbench.lock", script(OWN))[0] == 4
    lock = tmp_path / "kdbench.lock"
    assert '# form = "own"' in lock.read_text()
    lock.write_text(lock.read_text().replace('# form = "own"', 'form = "own"'))
    assert audit("own.py")[0] == 0
    lock.write_text('form = "mine"\n')
    code, _, err = audit("own.py")
    assert code == 2 and "unknown form 'mine'" in err


def test_the_check_of_another_function_helps_nobody(script):
    other = "kdbench.check_soft_loss(lambda s, t: F.mse_loss(s.softmax(1), t.softmax(1)))"
    assert audit(script(OWN, other))[0] == 4


def test_a_wrong_term_fails_however_it_is_declared(script):
    wrong = "F.kl_div(said.log_softmax(1), logits.softmax(1), reduction='batchmean')"
    code, out, _ = audit("--form", "own", script(wrong))
    assert code == 1 and "arguments are swapped" in out


@pytest.mark.parametrize(
    "term",
    [
        "9 * F.kl_div((logits / 3).log_softmax(1), (said / 3).softmax(1), reduction='batchmean')",
        "F.mse_loss(logits, said)",
        "F.mse_loss(student[0](x)[:, :4], teacher[0](x)[:, :4])",
        "(1 - F.cosine_similarity(student[1](student[0](x)), teacher[1](teacher[0](x))[:, :8])).mean()",
    ],
    ids=["kl", "logits", "features", "cosine"],
)
def test_a_known_form_is_clean(script, term):
    code, out, _ = audit(script(term))
    assert code == 0 and "\nClean: " in out, out
