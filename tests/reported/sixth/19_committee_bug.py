"""Ensemble -> single net; all members' logits travel as one (batch, member, class) tensor."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(1010)
IN, OUT, MEMBERS, BATCH = 12, 5, 4, 64
mix = torch.randn(OUT, 3, IN) * 1.15


def draw(n):
    y = torch.randint(OUT, (n,))
    return mix[y, torch.randint(3, (n,))] + 0.9 * torch.randn(n, IN), y


def net(width):
    return nn.Sequential(nn.Linear(IN, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, OUT))


class Committee(nn.Module):
    def __init__(self, members):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x):
        return torch.stack([m(x) for m in self.members], dim=1)


class CommitteeLoss(nn.Module):
    """alpha * mean over members of soft cross-entropy + (1 - alpha) * cross-entropy"""

    def __init__(self, alpha=0.8, temp=2.0):
        super().__init__()
        self.alpha, self.temp = alpha, temp

    def forward(self, student_logits, teacher_logits, y):
        n_teachers = len(teacher_logits)
        log_q = (student_logits / self.temp).log_softmax(-1).unsqueeze(1)
        p = (teacher_logits / self.temp).softmax(-1)
        per_member = -(p * log_q).sum(-1).mean(0)
        soft = self.temp ** 2 * per_member.sum() / n_teachers
        hard = F.cross_entropy(student_logits, y)
        return self.alpha * soft + (1 - self.alpha) * hard, soft.detach(), hard.detach()


def train_member(k):
    m = net(96)
    boot_x, boot_y = draw(900)
    opt = torch.optim.Adam(m.parameters(), lr=3e-3, weight_decay=1e-4)
    for _ in range(120):
        i = torch.randint(900, (96,))
        opt.zero_grad()
        F.cross_entropy(m(boot_x[i]), boot_y[i]).backward()
        opt.step()
    return m


@torch.no_grad()
def accuracy(scores, y):
    return (scores.argmax(-1) == y).float().mean().item()


held_x, held_y = draw(1500)
teachers = Committee([train_member(k) for k in range(MEMBERS)]).eval().requires_grad_(False)
print("members", [round(accuracy(m(held_x), held_y), 3) for m in teachers.members],
      "vote", accuracy(teachers(held_x).softmax(-1).mean(1), held_y))

pool_x, pool_y = draw(1200)
noisy = torch.rand(1200) < 0.35
pool_y = torch.where(noisy, torch.randint(OUT, (1200,)), pool_y)
student = net(24)
criterion = CommitteeLoss()
opt = torch.optim.Adam(student.parameters(), lr=3e-3)
for step in range(400):
    i = torch.randint(1200, (BATCH,))
    with torch.no_grad():
        t = teachers(pool_x[i])
    loss, soft, hard = criterion(student(pool_x[i]), t, pool_y[i])
    opt.zero_grad()
    loss.backward()
    opt.step()
    if step % 80 == 0:
        print(step, f"soft {soft:.3f} hard {hard:.3f}")
with torch.no_grad():
    print("student", accuracy(student(held_x), held_y))
