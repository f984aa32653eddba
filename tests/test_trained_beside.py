"""A teacher that has a training of its own beside the distillation, and a student whose optimizer never steps."""

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed
from torch import nn

from kdbench.harness.zoo.clean.material import WIDTH, mlp, rows


def learn(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def bandit(slip):
    """An agent learns by rewards; a small network is taught what the agent does, batch after batch.

    Wrong: the agent's optimizer steps twice and the student's never; or the agent is trained by the student's loss.
    """
    agent, student = mlp(24), mlp(8)
    value = nn.Linear(WIDTH, 1)
    own = torch.optim.Adam([*agent.parameters(), *value.parameters()], 1e-3)
    mine = torch.optim.Adam(student.parameters(), 1e-2)
    if slip == "joint":
        mine.add_param_group({"params": [*agent.parameters()]})
    for _ in range(2 * STEPS):
        x, y = rows()
        said = agent(x)
        chosen = said.detach().softmax(1).multinomial(1)
        gain = (chosen.squeeze(1) == y).float() - value(x).squeeze(1)
        picked = torch.distributions.Categorical(logits=said).log_prob(chosen.squeeze(1))
        learn(own, gain.pow(2).mean() - (gain.detach() * picked).mean())
        taught = agent(x) if slip == "joint" else agent(x).detach()
        mine.zero_grad()
        F.kl_div(student(x).log_softmax(1), taught.softmax(1), reduction="batchmean").backward()
        (own if slip == "other" else mine).step()
    return agent, value, student


def autoencoder(slip):
    """A wide encoder goes on learning to rebuild its input; a thin one learns the codes of it.

    Wrong: after the thin one's backward the wide one's optimizer steps again.
    """
    code = 6
    wide = nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, code))
    back, thin = nn.Linear(code, WIDTH), nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, code))
    rebuild = torch.optim.SGD([*wide.parameters(), *back.parameters()], 0.05)
    copy = torch.optim.SGD(thin.parameters(), 0.05)
    for _ in range(2 * STEPS):
        x, _ = rows()
        learn(rebuild, F.mse_loss(back(wide(x)), x))
        copy.zero_grad()
        F.mse_loss(thin(x), wide(x).detach()).backward()
        (rebuild if slip else copy).step()
    return wide, back, thin


@pytest.mark.parametrize("loop", [bandit, autoencoder], ids=lambda loop: loop.__name__)
def test_a_teacher_with_a_training_of_its_own_is_not_accused(loop):
    report, seen = observed(loop, "")
    assert [f.message for f in report.failed("warn")] == []
    assert seen.peers and seen.roles["teacher"]


def test_a_teacher_that_the_students_loss_trains_too_is():
    report, _ = observed(bandit, "joint")
    assert named_first(report) == ("KD102", "error"), [f.message for f in report.failed("warn")]


@pytest.mark.parametrize("loop", [bandit, autoencoder], ids=lambda loop: loop.__name__)
def test_a_student_whose_optimizer_never_steps_is_told_of(loop):
    report, _ = observed(loop, "other")
    assert named_first(report) == ("KD215", "error"), [f.message for f in report.failed("warn")]
    found = next(f for f in report.findings if f.id == "KD215")
    assert "never stepped" in found.message and found.observed["zeroed"] >= STEPS
    assert found.where["file"] == "tests/test_trained_beside.py"
