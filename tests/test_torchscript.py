"""A teacher that was traced or scripted, and one that was loaded so."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from test_which_training import STEPS, named_first, observed, step

from kdbench.harness.zoo.clean.material import WIDTH, mlp, rows, trained

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")


def distils(made, flips, folder):
    net = trained(mlp(24)).requires_grad_(False)
    teacher = torch.jit.script(net) if made == "scripted" else torch.jit.trace(net, torch.randn(2, WIDTH))
    if made == "loaded":
        teacher.save(str(folder / "teacher.pt"))
        teacher = torch.jit.load(str(folder / "teacher.pt"))
    student = mlp(12)
    adam = torch.optim.Adam(student.parameters(), 1e-2)
    for _ in range(STEPS):
        x, y = rows()
        with torch.no_grad():
            said = teacher(x)
        logits, said = student(x), said.flip(0) if flips else said
        term = F.kl_div((logits / 2).log_softmax(1), (said / 2).softmax(1), reduction="batchmean") * 4
        step(adam, 0.5 * F.cross_entropy(logits, y) + 0.5 * term)
    return net, teacher, student


@pytest.mark.parametrize("made", ["traced", "scripted", "loaded"])
def test_a_teacher_of_torchscript_is_seen_and_its_trace_is_left_alone(made, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)  # as where a tensor is asked for its value
        report, trace = observed(distils, made, False, tmp_path)
    assert len(trace.roles["teacher"]) == 1 and trace.roles["student"] == ["Sequential (student)"]
    assert named_first(report) is None
    assert not [f for f in report.findings if f.status == "error"]


def test_a_slip_beside_it_is_named(tmp_path):
    report, _ = observed(distils, "loaded", True, tmp_path)
    assert named_first(report) == ("KD305", "error")
