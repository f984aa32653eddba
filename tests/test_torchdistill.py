"""Our terms against torchdistill's losses, an implementation by others, where it has the method.

Its own errors are left out: its KDLoss loses T^2 at alpha 0, its LogitStdKDLoss too, so that one is given labels; and
its SPKDLoss divides rows by their L1 norm, where the paper and RepDistiller have L2.
"""

import pytest
import torch
from test_method_laws import answer, made

from kdbench.kd.methods import Answer, Batch
from kdbench.kd.procedure import Views

pytestmark = pytest.mark.packages
losses = pytest.importorskip("torchdistill.losses.mid_level")

N, CLASSES = 8, 5
OUT = {
    "student_module_path": "m",
    "student_module_io": "output",
    "teacher_module_path": "m",
    "teacher_module_io": "output",
}


def io(value):
    return {"m": {"output": value}}


def theirs(name, s, t, y):
    """Return the weighted sum of torchdistill's loss, with the weights of our defaults."""
    e_s, e_t = s.features[1].mean((2, 3)), t.features[1].mean((2, 3))
    if name == "at":
        pairs = {n: {side: {"io": "output", "path": n} for side in ("teacher", "student")} for n in ("0", "1")}
        a, b = ({str(i): {"output": f} for i, f in enumerate(x.features)} for x in (s, t))
        return losses.ATLoss(pairs)(a, b)
    if name == "pkt":
        return losses.PKTLoss(**OUT)(io(e_s), io(e_t))
    if name == "rkd":
        return losses.RKDLoss("m", "m", 25.0, 50.0, "mean")(io(e_s), io(e_t))
    if name == "sp":
        loss = losses.SPKDLoss("m", "m", "batchmean")
        loss.matmul_and_normalize = lambda z: torch.nn.functional.normalize(z.flatten(1) @ z.flatten(1).T)
        return loss(io(s.features[1]), io(t.features[1]))
    if name == "dist":
        return losses.DISTLoss(**OUT, beta=2.0, gamma=2.0, tau=4.0)(io(s.logits), io(t.logits))
    if name == "ls":
        loss = losses.LogitStdKDLoss(**OUT, temperature=2.0, alpha=1.0, beta=9.0)
        return loss(io(s.logits), io(t.logits), y) - torch.nn.functional.cross_entropy(s.logits, y)
    raise AssertionError(name)


WEIGHTED = {"at": 1000.0, "pkt": 30000.0, "sp": 3000.0}
"Weights that torchdistill's loss leaves to who calls it."


@pytest.mark.parametrize("name", ["at", "pkt", "rkd", "sp", "dist", "ls"])
def test_value_and_gradient(name):
    rng = torch.Generator().manual_seed(2)
    student, teacher = (answer(rng, N, CLASSES) for _ in range(2))
    labels = torch.randint(0, CLASSES, (N,), generator=rng)
    leaves = [student.logits.requires_grad_(), *(f.requires_grad_() for f in student.features)]
    method = made(name, CLASSES)
    terms = method(student, teacher, Batch(method.needs, labels, torch.arange(N), Views(None, None)))
    ours = sum(method.settings.weight(term) * value for term, value in terms.items())
    right = WEIGHTED.get(name, 1.0) * theirs(name, student, teacher, labels)
    torch.testing.assert_close(ours, right, rtol=1e-4, atol=1e-6)
    both = (torch.autograd.grad(x, leaves, retain_graph=True, allow_unused=True) for x in (ours, right))
    for a, b in zip(*both, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-4 * float(b.abs().max()))


def test_vid_given_the_same_means_and_variances():
    rng = torch.Generator().manual_seed(3)
    student, teacher = (answer(rng, N, CLASSES) for _ in range(2))
    method = made("vid", CLASSES)
    predicted = {}
    for at, (regressor, scale) in enumerate(zip(method.regressors, method.scales, strict=True)):
        mean = regressor(student.features[at])
        variance = (torch.log1p(scale.exp()) + 1e-5)[:, None, None].expand_as(mean)
        predicted[str(at)] = {"output": (mean, variance)}
    pairs = {n: {side: {"io": "output", "path": n} for side in ("teacher", "student")} for n in ("0", "1")}
    right = losses.VIDLoss(pairs)(predicted, {str(i): {"output": f} for i, f in enumerate(teacher.features)})
    batch = Batch(method.needs, torch.zeros(N, dtype=torch.int64), torch.arange(N), Views(None, None))
    torch.testing.assert_close(method(student, teacher, batch)["vid"], right)


def test_reviewkds_context_loss():
    from kdbench.kd.methods.reviewkd import _context_loss

    rng = torch.Generator().manual_seed(4)
    for size in (1, 2, 4, 8, 16):
        a, b = (torch.randn(3, 5, size, size, generator=rng) for _ in range(2))
        loss = losses.HierarchicalContextLoss(**OUT)(io((a, None)), io(b))
        torch.testing.assert_close(_context_loss(a, b), loss)


def test_crd_given_the_same_draws():
    """Its draws of negatives by itself stop with an AttributeError, so ours are handed to it."""
    rng = torch.Generator().manual_seed(5)
    student, teacher = (answer(rng, N, CLASSES) for _ in range(2))
    method = made("crd", CLASSES, negatives=7, dimensions=8)
    ids = torch.arange(N)
    labels = ids % CLASSES
    state = method.get_extra_state()
    rows = method.rows[ids]
    drawn = torch.cat([rows[:, None], method._others(labels)], dim=1)
    method.set_extra_state(state)
    loss = losses.CRDLoss("s", "empty", "t", 8, 12, 7, 12)
    loss.memory_v1.copy_(method.memory_student)
    loss.memory_v2.copy_(method.memory_teacher)
    e_s, e_t = (
        torch.nn.functional.normalize(linear(found.features[1].mean((2, 3))))
        for linear, found in ((method.embed_student, student), (method.embed_teacher, teacher))
    )
    supplied = {"pos_idx": rows, "contrast_idx": drawn}
    right = loss({"s": {"output": e_s}, "empty": {"input": supplied}}, {"t": {"output": e_t}})
    ours = method(student, teacher, Batch(method.needs, labels, ids, Views(None, None)))["crd"]
    torch.testing.assert_close(ours, right.squeeze(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.memory_student, loss.memory_v1)
    torch.testing.assert_close(method.memory_teacher, loss.memory_v2)


def test_a_wrong_weight_would_be_noticed():
    rng = torch.Generator().manual_seed(2)
    student, teacher = (answer(rng, N, CLASSES) for _ in range(2))
    softer = Answer(student.logits / 2, student.features)
    right = losses.DISTLoss(**OUT, tau=1.0)(io(student.logits), io(teacher.logits))
    assert not torch.allclose(right, losses.DISTLoss(**OUT, tau=1.0)(io(softer.logits), io(teacher.logits)), rtol=1e-3)
