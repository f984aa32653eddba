import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(32)
TEACHER_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
TEACHER_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def images(n=32):
    """Raw images in [0, 1] with a class-dependent coloured stripe pattern."""
    y = torch.randint(0, 5, (n,))
    t = torch.linspace(0, 6.28, 16)
    wave = torch.sin(t[None] * (y[:, None] + 1) + torch.rand(n, 1) * 6.28)
    x = 0.45 + 0.25 * wave[:, None, None, :].expand(n, 3, 16, 16) * torch.rand(n, 3, 1, 1)
    return (x + 0.08 * torch.randn(n, 3, 16, 16)).clamp(0, 1), y


class Normalize:
    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def __call__(self, x):
        return (x - self.mean) / self.std


def trunk(w, out):
    return nn.Sequential(nn.Conv2d(3, w, 5, 2, 2), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, 2, 1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * w, out))


class DistillationMethod(nn.Module):
    """Pulls the student's embedding to the embedding of a frozen, pretrained teacher."""

    def __init__(self, teacher, student, transform):
        super().__init__()
        self.teacher, self.student, self.transform = teacher, student, transform
        self.teacher_normalize = Normalize(TEACHER_MEAN, TEACHER_STD)
        self.projection = nn.Linear(24, 48)

    def training_step(self, raw):
        views = self.transform(raw)
        with torch.no_grad():
            t = self.teacher(views)
        s = self.projection(self.student(views))
        return (1 - F.cosine_similarity(s, t, dim=-1)).mean() + 0.1 * F.mse_loss(s, t)


teacher = trunk(32, 48)
probe = nn.Linear(48, 5)
opt = torch.optim.Adam([*teacher.parameters(), *probe.parameters()], lr=3e-3)
norm = Normalize(TEACHER_MEAN, TEACHER_STD)
for _ in range(80):
    x, y = images()
    opt.zero_grad(); F.cross_entropy(probe(teacher(norm(x))), y).backward(); opt.step()
teacher.eval().requires_grad_(False)

student = trunk(12, 24)
method = DistillationMethod(teacher, student, transform=Normalize(0.0, 1.0))
params = [*student.parameters(), *method.projection.parameters()]
optimizer = torch.optim.AdamW(params, lr=3e-3)
for step in range(100):
    x, _ = images()
    loss = method.training_step(x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
with torch.no_grad():
    student.eval()
    x, y = images(300)
    print(f"teacher probe on student embedding {(probe(method.projection(student(x))).argmax(1) == y).float().mean().item():.4f}")
