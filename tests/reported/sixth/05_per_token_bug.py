import os
import tempfile
import torch
from torch import nn
import torch.nn.functional as F

SEED, V, L = 7, 16, 20
torch.manual_seed(SEED)
rules = torch.softmax(2.5 * torch.randn(V, V, V), dim=-1)


def generate(n):
    s = torch.randint(V, (n, 2))
    for _ in range(L - 2):
        nxt = torch.multinomial(rules[s[:, -2], s[:, -1]], 1)
        s = torch.cat([s, nxt], 1)
    return s


class CausalConv(nn.Module):
    def __init__(self, width, layers):
        super().__init__()
        self.embed = nn.Embedding(V, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 2) for _ in range(layers))
        self.unembed = nn.Linear(width, V)

    def forward(self, ids):
        h = self.embed(ids).transpose(1, 2)
        for conv in self.convs:
            h = h + torch.relu(conv(F.pad(h, (1, 0))))
        return self.unembed(h.transpose(1, 2))


def lm_loss(logits, ids):
    return F.cross_entropy(logits[:, :-1].reshape(-1, V), ids[:, 1:].reshape(-1))


class PerTokenKD:
    """alpha * KL(teacher || student) + (1 - alpha) * next token cross entropy"""

    def __init__(self, alpha=0.8, temperature=1.5):
        self.alpha, self.temperature = alpha, temperature

    def __call__(self, student_logits, teacher_logits, ids):
        s = student_logits[:, :-1] / self.temperature
        t = teacher_logits[:, 1:] / self.temperature
        kl = F.kl_div(s.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="none").sum(-1)
        soft = kl.mean() * self.temperature ** 2
        return self.alpha * soft + (1 - self.alpha) * lm_loss(student_logits, ids), soft


def pretrain(path):
    net = CausalConv(96, 3)
    opt = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(220):
        ids = generate(48)
        opt.zero_grad()
        lm_loss(net(ids), ids).backward()
        opt.step()
    torch.save(net.state_dict(), path)


def run():
    with tempfile.TemporaryDirectory() as box:
        path = os.path.join(box, "lm.pt")
        pretrain(path)
        teacher = CausalConv(96, 3)
        teacher.load_state_dict(torch.load(path))
    teacher.eval()
    held = generate(300)
    student = CausalConv(40, 2)
    criterion = PerTokenKD()
    opt = torch.optim.Adam(student.parameters(), lr=5e-3)
    with torch.no_grad():
        print("held-out nll: teacher", lm_loss(teacher(held), held).item(),
              "student", lm_loss(student(held), held).item())
    for it in range(140):
        ids = generate(32)
        with torch.no_grad():
            teacher_logits = teacher(ids)
        loss, soft = criterion(student(ids), teacher_logits, ids)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if it % 35 == 0:
            print(it, "soft", soft.item())
    with torch.no_grad():
        print("held-out nll: student", lm_loss(student(held), held).item())


run()
