"""Each method's terms and their gradients against its paper's formula, in float64, sample by sample."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_method_laws import LAWS, answer, made
from torch import nn

from kdbench.harness.run.trial import declared
from kdbench.kd.errors import InputError
from kdbench.kd.methods import METHODS, Answer, Batch, read_settings
from kdbench.kd.procedure import Views

N, CLASSES = 6, 4


def kl(p, q):
    return sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def dist(s, t, y, m):
    q, p = ((z.logits / 4).softmax(1) for z in (s, t))
    rows = sum(1 - correlation(q[i], p[i]) for i in range(N)) / N
    columns = sum(1 - correlation(q[:, c], p[:, c]) for c in range(CLASSES)) / CLASSES
    return {"inter": 16 * rows, "intra": 16 * columns}


def ls(s, t, y, m):
    def softened(z):
        return ((z - z.mean()) / z.std() / 2).softmax(0)

    return {"kd": 4 * sum(kl(softened(t.logits[i]), softened(s.logits[i])) for i in range(N)) / N}


def powered(s, t, i):
    """Return the power sum of an image and its divergence."""
    p = t.logits[i].softmax(0) ** 0.1
    return p.sum(), kl(p / p.sum(), s.logits[i].softmax(0))


def ttm(s, t, y, m):
    return {"kd": sum(powered(s, t, i)[1] for i in range(N)) / N}


def wttm(s, t, y, m):
    return {"kd": sum(math.prod(powered(s, t, i)) for i in range(N)) / N}


def nkd(s, t, y, m):
    target = rest = 0.0
    for i in range(N):
        q, p = s.logits[i].softmax(0), t.logits[i].softmax(0)
        target = target - p[y[i]] * q[y[i]].log() / N
        for c in {*range(CLASSES)} - {int(y[i])}:
            rest = rest - p[c] / (1 - p[y[i]]) * (q[c] / (1 - q[y[i]])).log() / N
    return {"target": target, "rest": rest}


def mlkd(s, t, y, m):
    found = {"instance": 0.0, "batch": 0.0, "class": 0.0}
    for temperature in (2, 3, 4, 5, 6):
        q, p = ((z.logits / temperature).softmax(1) for z in (s, t))
        found["instance"] += temperature**2 * sum(kl(p[i], q[i]) for i in range(N)) / N
        for i in range(N):
            for j in range(N):
                found["batch"] += ((q[i] * q[j]).sum() - (p[i] * p[j]).sum()) ** 2 / N
        for a in range(CLASSES):
            for b in range(CLASSES):
                found["class"] += ((q[:, a] * q[:, b]).sum() - (p[:, a] * p[:, b]).sum()) ** 2 / CLASSES
    return found


def normed(x, norm):
    """Return batch norm in training mode by its definition, with a module's own scale and shift."""
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    scale, shift = (p.double()[:, None, None] for p in (norm.weight, norm.bias))
    return (x - mean) / (variance + norm.eps).sqrt() * scale + shift


def mixed(x, conv):
    """Return a 1x1 convolution as the product of matrices that it is."""
    found = torch.einsum("oc,bchw->bohw", conv.weight.double()[:, :, 0, 0], x)
    return found if conv.bias is None else found + conv.bias.double()[:, None, None]


def fitnet(s, t, y, m):
    conv, norm, _ = m.regressor
    f = normed(mixed(s.features[1], conv), norm).clamp(min=0)
    return {"hint": (f - t.features[1]).square().sum() / f.numel()}


def attention(f, i):
    found = sum(channel.square() for channel in f[i])
    return found / found.square().sum().sqrt()


def at(s, t, y, m):
    return {"at": sum(_map_distance(f_s, f_t) for f_s, f_t in zip(s.features, t.features, strict=True))}


def _map_distance(f_s, f_t):
    return sum((attention(f_s, i) - attention(f_t, i)).square().mean() for i in range(N)) / N


def sp(s, t, y, m):
    def rows(f):
        g = [[(f[i] * f[j]).sum() for j in range(N)] for i in range(N)]
        return [[x / sum(v**2 for v in row).sqrt() for x in row] for row in g]

    a, b = rows(s.features[1]), rows(t.features[1])
    return {"sp": sum((a[i][j] - b[i][j]) ** 2 for i in range(N) for j in range(N)) / N**2}


def huber(a, b):
    apart = (a - b).abs()
    return torch.where(apart < 1, apart**2 / 2, apart - 0.5)


def embedded(found):
    return found.features[1].mean((2, 3))


def rkd(s, t, y, m):
    def distances(e):
        d = {(i, j): (e[i] - e[j]).square().sum().sqrt() for i in range(N) for j in range(N) if i != j}
        mean = sum(d.values()) / len(d)
        return {pair: value / mean for pair, value in d.items()}

    def cosine(e, i, j, k):
        return F.cosine_similarity(e[i] - e[j], e[k] - e[j], dim=0)

    e_s, e_t = embedded(s), embedded(t)
    d_s, d_t = distances(e_s), distances(e_t)
    triples = [(i, j, k) for j in range(N) for i in range(N) for k in range(N) if i != j and k != j]
    return {
        "distance": sum(huber(d_s[pair], d_t[pair]) for pair in d_s) / N**2,  # an image is 0 from itself on both sides
        "angle": sum(huber(cosine(e_s, *at), cosine(e_t, *at)) for at in triples) / N**3,
    }


def pkt(s, t, y, m):
    def affinities(e):
        k = [[(F.cosine_similarity(e[i], e[j], dim=0) + 1) / 2 for j in range(N)] for i in range(N)]
        return [[x / sum(row) for x in row] for row in k]

    a, b = affinities(embedded(s)), affinities(embedded(t))
    return {"pkt": sum(kl(b[i], a[i]) for i in range(N)) / N**2}


def vid(s, t, y, m):
    found = 0.0
    for regressor, scale, f_s, f_t in zip(m.regressors, m.scales, s.features, t.features, strict=True):
        first, _, second, _, third = regressor
        mean = mixed(mixed(mixed(f_s, first).clamp(min=0), second).clamp(min=0), third)
        variance = (1 + scale.double().exp()).log() + 1e-5
        likely = torch.distributions.Normal(mean, variance.sqrt()[:, None, None].expand_as(mean)).log_prob(f_t)
        found = found - (likely + math.log(2 * math.pi) / 2).mean()  # but for the constant
    return {"vid": found}


def reviewkd(s, t, y, m):
    def whole(found):
        return [found.features[-1].mean((2, 3), keepdim=True), *reversed(found.features)]

    def enlarged(x, size):
        return (
            x
            if x.shape[-1] == size
            else x.repeat_interleave(size // x.shape[-1], 2).repeat_interleave(size // x.shape[-1], 3)
        )

    later, total = None, 0.0
    for fusion, f_s, f_t in zip(m.fusions, whole(s), whole(t), strict=True):
        x = normed(mixed(f_s, fusion.enter[0]), fusion.enter[1])
        if later is not None:
            later = enlarged(later, x.shape[-1])
            shares = mixed(torch.cat([x, later], 1), fusion.weigh[0]).sigmoid()
            x = shares[:, :1] * x + shares[:, 1:] * later
        later = x
        out = normed(F.conv2d(x, fusion.leave[0].weight.double(), padding=1), fusion.leave[1])
        parts, weight = [(1.0, (out - f_t).square().mean())], 1.0
        for size in (4, 2, 1):
            if size < f_t.shape[-1]:
                weight /= 2
                a, b = (f.unflatten(2, (size, -1)).unflatten(4, (size, -1)).mean((3, 5)) for f in (out, f_t))
                parts.append((weight, (a - b).square().mean()))
        total = total + sum(w * value for w, value in parts) / sum(w for w, _ in parts)
    return {"review": total}


FORMULAS = {f.__name__: f for f in (dist, ls, ttm, wttm, nkd, mlkd, fitnet, at, sp, rkd, pkt, vid, reviewkd)}


def drawn(size=4):
    rng = torch.Generator().manual_seed(5)
    student, teacher = (answer(rng, N, CLASSES, size=size) for _ in range(2))
    return student, teacher, torch.randint(0, CLASSES, (N,), generator=rng)


def leaves(found, dtype):
    return Answer(
        found.logits.to(dtype).detach().clone().requires_grad_(),
        tuple(f.to(dtype).detach().clone().requires_grad_() for f in found.features),
    )


@pytest.mark.parametrize("name", FORMULAS)
def test_a_term_and_its_gradient_are_those_of_the_papers_formula(name):
    student, teacher, labels = drawn()
    method = made(name, CLASSES)
    with torch.random.fork_rng():  # scales of batch norms and variances that are not all alike
        torch.manual_seed(1)
        for p in method.parameters():
            if p.ndim == 1:
                nn.init.normal_(p, 1.0, 0.3)
    mine, theirs = leaves(student, torch.float32), leaves(student, torch.float64)
    found = method(mine, teacher, Batch(method.needs, labels, torch.arange(N), Views(None, None)))
    double = Answer(teacher.logits.double(), tuple(f.double() for f in teacher.features))
    wanted = FORMULAS[name](theirs, double, labels, method)
    assert found.keys() == wanted.keys()
    inputs = [*zip([mine.logits, *mine.features], [theirs.logits, *theirs.features], strict=True)]
    for term in found:
        assert found[term].item() == pytest.approx(wanted[term].item(), rel=1e-4), term
        both = ([found[term], [a for a, _ in inputs]], [wanted[term], [b for _, b in inputs]])
        ours, right = (torch.autograd.grad(v, x, retain_graph=True, allow_unused=True) for v, x in both)
        for a, b in zip(ours, right, strict=True):
            assert (a is None or not a.any()) == (b is None or not b.any())
            if a is not None and b is not None:
                torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


def test_crd_is_noise_contrastive_estimation_against_both_memories():
    """The draws are the method's own, so they are read off it; everything else is the formula."""
    student, teacher, labels = drawn()
    method = made("crd", CLASSES, negatives=5, dimensions=8)
    state = method.get_extra_state()
    ids = torch.tensor([3, 0, 7, 2, 9, 4])
    labels = ids % CLASSES  # as `made` labels its 12 images
    memories = {side: getattr(method, f"memory_{side}").double().clone() for side in ("student", "teacher")}
    batch = Batch(method.needs, labels, ids, Views(None, None))
    drawn_rows = method._others(labels)
    method.set_extra_state(state)
    assert drawn_rows.min() >= 0 and drawn_rows.max() < 12
    order = sorted(range(12), key=lambda i: (i % CLASSES, i))
    assert all(order[int(r)] % CLASSES != int(y) for y, row in zip(labels, drawn_rows, strict=True) for r in row)

    def embedding(found, linear):
        e = embedded(found).double() @ linear.weight.double().T + linear.bias.double()
        return e / e.square().sum(1, keepdim=True).sqrt()

    e = {"student": embedding(student, method.embed_student), "teacher": embedding(teacher, method.embed_teacher)}
    total, n, k = 0.0, 12, 5
    for mine, other in (("student", "teacher"), ("teacher", "student")):
        rows = [[order.index(int(i)), *map(int, row)] for i, row in zip(ids, drawn_rows, strict=True)]
        scores = [[(e[mine][i] @ memories[other][r] / 0.07).exp() for r in rows[i]] for i in range(N)]
        z = sum(map(sum, scores)) / (N * (k + 1)) * n
        for row in scores:
            p = [x / z for x in row]
            total = total - (p[0] / (p[0] + k / n)).log() / N
            total = total - sum((k / n / (x + k / n)).log() for x in p[1:]) / N
    found = method(student, teacher, batch)["crd"]
    assert found.item() == pytest.approx(float(total.detach()), rel=1e-4)
    for side, e_side in e.items():
        for i, row in enumerate(int(order.index(int(i))) for i in ids):
            mixed_in = 0.5 * memories[side][row] + 0.5 * e_side[i]
            wanted = mixed_in / mixed_in.square().sum().sqrt()
            torch.testing.assert_close(getattr(method, f"memory_{side}")[row].double(), wanted, rtol=1e-4, atol=1e-5)
    untouched = [order.index(i) for i in range(12) if i not in ids.tolist()]
    assert torch.equal(method.memory_student[untouched].double(), memories["student"][untouched])


def test_crds_constants_are_those_of_the_first_batch_and_its_negatives_are_drawn_anew():
    student, teacher, labels = drawn()
    method = made("crd", CLASSES)
    batch = Batch(method.needs, torch.arange(N) % CLASSES, torch.arange(N), Views(None, None))
    first = method._others(labels)
    assert not torch.equal(first, method._others(labels))
    method(student, teacher, batch)
    sums = method.sums.clone()
    assert (sums > 0).all()
    method(teacher, student, batch)
    assert torch.equal(method.sums, sums)


@pytest.mark.parametrize("name", ["at", "fitnet", "vid", "reviewkd"])
def test_stages_of_other_sizes_are_pooled_to_the_smaller_or_enlarged(name):
    """A teacher of half the size: what is matched has one size on both sides, and the student still learns."""
    student, teacher, labels = drawn()
    small = Answer(teacher.logits, tuple(F.avg_pool2d(f, 2) for f in teacher.features))
    mine = leaves(student, torch.float32)
    method = made(name, CLASSES)
    (term,) = method(mine, small, Batch(method.needs, labels, torch.arange(N), Views(None, None))).values()
    term.backward()
    assert term.isfinite() and sum(f.grad.abs().sum() for f in mine.features if f.grad is not None) > 0


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("ttm", {"power": 0.0}, "method ttm: power is 0.0; it must be positive"),
        ("wttm", {"power": -1.0}, "method wttm: power is -1.0; it must be positive"),
        ("crd", {"negatives": 0}, "method crd: negatives is 0; it must be at least 1"),
        ("crd", {"momentum": 1.0}, "method crd: momentum is 1.0; it lies from 0 to below 1"),
        ("dist", {"temperature": 0.0}, "method dist: temperature is 0.0; it must be positive"),
        ("at", {"at_weight": -1.0}, "method at: at_weight is -1.0; a weight must not be negative"),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, values, says):
    with pytest.raises(InputError) as error:
        read_settings(name, values)
    assert says in str(error.value)


def test_a_hint_of_a_stage_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="hint_stage is 3; the networks have the stages 1 to 2"):
        made("fitnet", hint_stage=3)


@pytest.mark.parametrize("name", sorted({*LAWS} - {"logit", "dkd"}))
def test_an_audit_is_told_that_the_form_is_the_methods_own(name):
    assert declared(name, made(name).settings).form == "own"
    assert METHODS[name].paper and METHODS[name].title
