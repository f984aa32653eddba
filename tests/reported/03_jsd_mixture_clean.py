import torch
from torch import nn
import torch.nn.functional as F

torch.manual_seed(3)
V, D, L = 24, 32, 16


class GRULM(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.emb = nn.Embedding(V, hidden)
        self.rnn = nn.GRU(hidden, hidden, batch_first=True)
        self.out = nn.Linear(hidden, V)

    def forward(self, x):
        return self.out(self.rnn(self.emb(x))[0])


def generalized_jsd_loss(student_logits, teacher_logits, beta=0.5, temperature=1.0, mask=None):
    student_lp = F.log_softmax(student_logits / temperature, dim=-1)
    teacher_lp = F.log_softmax(teacher_logits / temperature, dim=-1)
    b = torch.tensor(beta)
    mixture_lp = torch.logsumexp(torch.stack([student_lp + torch.log(1 - b), teacher_lp + torch.log(b)]), dim=0)
    kl_teacher = F.kl_div(mixture_lp, teacher_lp, reduction="none", log_target=True).sum(-1)
    kl_student = F.kl_div(mixture_lp, student_lp, reduction="none", log_target=True).sum(-1)
    jsd = beta * kl_teacher + (1 - beta) * kl_student
    return (jsd * mask).sum() / mask.sum()


def sample_batch(n=32):
    x = torch.zeros(n, L, dtype=torch.long)
    x[:, 0] = torch.randint(0, V, (n,))
    noise = torch.rand(n, L) < 0.15
    for i in range(1, L):
        nxt = (x[:, i - 1] * 5 + 7) % V
        x[:, i] = torch.where(noise[:, i], torch.randint(0, V, (n,)), nxt)
    lengths = torch.randint(6, L, (n, 1))
    return x, (torch.arange(L - 1)[None] < lengths).float()


teacher = GRULM(48)
opt = torch.optim.Adam(teacher.parameters(), lr=1e-2)
for _ in range(80):
    x, m = sample_batch()
    ce = F.cross_entropy(teacher(x)[:, :-1].transpose(1, 2), x[:, 1:], reduction="none")
    opt.zero_grad()
    ((ce * m).sum() / m.sum()).backward()
    opt.step()
teacher.eval()
for p in teacher.parameters():
    p.requires_grad = False

student = GRULM(16)
optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
for it in range(120):
    x, m = sample_batch()
    with torch.no_grad():
        t_logits = teacher(x)
    s_logits = student(x)
    loss = generalized_jsd_loss(s_logits[:, :-1], t_logits[:, :-1], beta=0.5, mask=m)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    if it % 30 == 0:
        print(it, round(loss.item(), 4))

x, m = sample_batch(256)
with torch.no_grad():
    agree = ((student(x).argmax(-1) == teacher(x).argmax(-1))[:, :-1].float() * m).sum() / m.sum()
print(f"agreement with teacher {agree:.4f}")
