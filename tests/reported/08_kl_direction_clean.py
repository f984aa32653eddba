import torch
import torch.nn as nn
import torch.nn.functional as F

"""Self-distillation of a sentence tagger.  alpha=0.0 -> forward KL(teacher || student), 1.0 -> reverse KL."""

torch.manual_seed(8)
TAGS, WORDS = 9, 60


class Tagger(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.words = nn.Embedding(WORDS, dim)
        self.enc = nn.LSTM(dim, dim, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(2 * dim, TAGS)

    def forward(self, w):
        return self.tags(self.enc(self.words(w))[0])


def divergence(student_log_probs, teacher_log_probs, alpha):
    if alpha == 0.0:
        kl = F.kl_div(student_log_probs, teacher_log_probs, reduction="none", log_target=True)
    elif alpha == 1.0:
        kl = F.kl_div(teacher_log_probs, student_log_probs, reduction="none", log_target=True)
    else:
        raise ValueError(alpha)
    return kl.sum(-1)


def sentences(n):
    w = torch.randint(1, WORDS, (n, 12))
    tags = (w + torch.roll(w, 1, 1)) % TAGS
    flip = torch.rand(n, 12) < 0.2
    tags = torch.where(flip, torch.randint(0, TAGS, (n, 12)), tags)
    mask = torch.arange(12)[None] < torch.randint(5, 13, (n, 1))
    return w * mask, tags, mask


def fit(net, loss_fn, steps, lr):
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for _ in range(steps):
        loss = loss_fn(*sentences(32))
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


teacher = Tagger(40)
fit(teacher, lambda w, y, m: F.cross_entropy(teacher(w)[m], y[m]), 100, 1e-2)
teacher.requires_grad_(False)
teacher.eval()
student = Tagger(8)


def kd(w, y, m, alpha=0.0, T=1.5):
    s = F.log_softmax(student(w) / T, dim=-1)
    t = F.log_softmax(teacher(w) / T, dim=-1)
    return divergence(s, t, alpha)[m].mean() * T ** 2


last = fit(student, kd, 120, 8e-3)
with torch.no_grad():
    w, y, m = sentences(300)
    acc = (student(w).argmax(-1)[m] == y[m]).float().mean()
print(f"kd {last:.4f}  tag accuracy {acc:.4f}")
