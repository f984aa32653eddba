"""A distillation loss that is wrapped anew asks for a gradient and hands none on; beside leaves that are rightly so."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed
from torch.autograd import Variable

from kdbench.harness.zoo.clean.material import loaded, mlp, rows

WRAPPED = {
    "variable": lambda loss: Variable(loss.data, requires_grad=True),
    "cloned": lambda loss: loss.detach().clone().requires_grad_(True),
    "not at all": lambda loss: loss,
}


def wrapped(how):
    """Distances of probabilities, summed by hand; `how` the loss is handed on."""
    teacher, student = loaded("mlp"), mlp(8)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits = student(x)
        soft = -(said.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        (F.cross_entropy(logits, y) + WRAPPED[how](soft)).backward()
        optimizer.step()
    return teacher, student


def weighed(_):
    """A weight between the losses is learned: a leaf of one number that no network made."""
    teacher, student = loaded("mlp"), mlp(8)
    share = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.SGD([*student.parameters(), share], 0.1)
    for _ in range(STEPS):
        x, y = rows()
        logits = student(x)
        soft = F.kl_div(logits.log_softmax(1), teacher(x).detach().softmax(1), reduction="batchmean")
        optimizer.zero_grad()
        ((-share).exp() * soft + share + F.cross_entropy(logits, y)).backward()
        optimizer.step()
    return teacher, student


@pytest.mark.parametrize("how", ["variable", "cloned"])
def test_a_loss_that_is_a_leaf_is_told_of(how):
    report, _ = observed(wrapped, how)
    assert named_first(report) == ("KD311", "error"), [f.message for f in report.failed("warn")]
    assert "KD301" not in [f.id for f in report.failed("warn")]


@pytest.mark.parametrize(("loop", "how"), [(wrapped, "not at all"), (weighed, "")])
def test_a_loss_with_its_graph_and_a_weight_that_is_learned_are_not(loop, how):
    report, _ = observed(loop, how)
    assert "KD311" not in [f.id for f in report.failed("warn")]
