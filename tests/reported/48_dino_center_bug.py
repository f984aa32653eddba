"""DINO on synthetic patterns: two global views, a momentum teacher, centring and sharpening."""
import copy
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(48)


class DINOLoss(nn.Module):
    def __init__(self, out_dim, student_temp=0.1, teacher_temp=0.06, center_momentum=0.9):
        super().__init__()
        self.student_temp, self.teacher_temp = student_temp, teacher_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student_output, teacher_output):
        student_out = (student_output / self.student_temp).chunk(2)
        teacher_out = F.softmax((teacher_output - self.center) / self.teacher_temp, dim=-1).detach().chunk(2)
        total, n = 0.0, 0
        for iq, q in enumerate(teacher_out):
            for v, s in enumerate(student_out):
                if v != iq:
                    total = total + torch.sum(-q * F.log_softmax(s, dim=-1), dim=-1).mean()
                    n += 1
        self.update_center(teacher_output)
        return total / n

    @torch.no_grad()
    def update_center(self, teacher_output):
        batch_center = torch.sum(teacher_output, dim=0, keepdim=True)
        world = 1
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(batch_center)
            batch_center = batch_center / (len(teacher_output) * dist.get_world_size())
        self.center = self.center * self.center_momentum + batch_center * (1 - self.center_momentum)


class Net(nn.Module):
    def __init__(self, dim=24, out=20):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, dim, 4, 4), nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1), nn.GELU())
        self.head = nn.Sequential(nn.Linear(dim, 48), nn.GELU(), nn.Linear(48, 16))
        self.last_layer = nn.Linear(16, out, bias=False)

    def forward(self, x):
        z = F.normalize(self.head(self.backbone(x).mean((2, 3))), dim=-1)
        return self.last_layer(z)


def view(x):
    shift = torch.randint(-3, 4, (1,)).item()
    return torch.roll(x, shift, -1) * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)) + 0.2 * torch.randn_like(x)


def patterns(n=48):
    y = torch.randint(0, 6, (n, 1, 1, 1))
    g = torch.arange(16).float()
    return torch.sin((y + 1) * g.view(1, 1, 1, 16) * 0.4) * torch.cos(y * g.view(1, 1, 16, 1) * 0.3), y.flatten()


student = Net()
teacher = copy.deepcopy(student).requires_grad_(False)
criterion = DINOLoss(20)
optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.02)
for it in range(100):
    x, _ = patterns()
    both = torch.cat([view(x), view(x)])
    loss = criterion(student(both), teacher(both))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 3.0)
    optimizer.step()
    with torch.no_grad():
        for q, k in zip(student.parameters(), teacher.parameters()):
            k.mul_(0.97).add_(q, alpha=0.03)
    if it % 25 == 0:
        print(f"it {it} loss {loss.item():.4f}")
with torch.no_grad():
    p = F.softmax(teacher(patterns(200)[0]) / 0.1, -1).mean(0)
print(f"entropy of mean teacher assignment {-(p * (p + 1e-9).log()).sum().item():.4f}")
