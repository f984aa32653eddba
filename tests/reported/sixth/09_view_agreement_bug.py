"""Small labelled set plus cross-view self-distillation with centring and sharpening."""
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(33)
DIM, K, PROTOS = 24, 6, 6
basis = 0.75 * torch.randn(K, DIM)


def draw(n):
    y = torch.randint(K, (n,))
    return basis[y] + 0.9 * torch.randn(n, DIM), y


def augment(x):
    keep = (torch.rand_like(x) > 0.3).float()
    return x * keep + 0.3 * torch.randn_like(x)


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(DIM, 48), nn.GELU(), nn.Linear(48, 32), nn.GELU())
        self.head = nn.Linear(32, PROTOS)

    def forward(self, x):
        return self.head(self.trunk(x))


class ViewLoss(nn.Module):
    def __init__(self, tau_s=0.5, tau_t=0.25, momentum=0.9):
        super().__init__()
        self.tau_s, self.tau_t, self.momentum = tau_s, tau_t, momentum
        self.register_buffer("centre", torch.zeros(1, PROTOS))

    def forward(self, student_out, teacher_out):
        s = student_out / self.tau_s
        t = ((teacher_out - self.centre) / self.tau_t).softmax(-1).detach()
        s1, s2 = s.chunk(2)
        t1, t2 = t.chunk(2)
        loss = -(t1 * s2.log_softmax(-1)).sum(-1).mean() - (t2 * s1.log_softmax(-1)).sum(-1).mean()
        with torch.no_grad():
            self.centre.mul_(self.momentum).add_(teacher_out.mean(0, keepdim=True), alpha=1 - self.momentum)
        return loss / 2


@torch.no_grad()
def ema(dst, src, m):
    for d, s in zip(dst.parameters(), src.parameters()):
        d.lerp_(s, 1 - m)


def accuracy(net, x, y):
    with torch.no_grad():
        return (net(x).argmax(1) == y).float().mean().item()


few_x, few_y = draw(48)
test_x, test_y = draw(1000)
student = Backbone()
opt = torch.optim.Adam(student.parameters(), lr=3e-3)
for _ in range(60):
    opt.zero_grad()
    F.cross_entropy(student(augment(few_x)), few_y).backward()
    opt.step()
teacher = copy.deepcopy(student)
print("start", accuracy(student, test_x, test_y))

criterion = ViewLoss()
opt = torch.optim.Adam(student.parameters(), lr=2e-3)
for step in range(500):
    x, _ = draw(96)
    a, b = augment(x), augment(x)
    views = torch.cat([a, b])
    student_out, teacher_out = student(views), teacher(views)
    agree = criterion(teacher_out, student_out)
    loss = agree + 0.3 * F.cross_entropy(student(augment(few_x)), few_y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    ema(teacher, student, 0.98)
    if step % 100 == 0:
        print(step, f"agree {agree.item():.3f} student {accuracy(student, test_x, test_y):.3f} teacher {accuracy(teacher, test_x, test_y):.3f}")
print("end", accuracy(student, test_x, test_y), accuracy(teacher, test_x, test_y))
