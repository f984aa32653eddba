"""The big net was trained with its own preprocessing, the student with dataset statistics."""
import os
import tempfile
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(365)
C, S, K = 3, 10, 5
tint = torch.rand(K, C, 1, 1) * 0.08
grid = torch.rand(K, 1, S, S) * 0.06


def photos(n):
    """Dark RGB pictures with values in [0, 1]."""
    y = torch.randint(K, (n,))
    raw = 0.08 + tint[y] + grid[y] * (0.5 + torch.rand(n, 1, 1, 1)) + 0.11 * torch.randn(n, C, S, S)
    return raw.clamp(0, 1), y


class Normalize:
    def __init__(self, mean, std):
        self.mean = torch.tensor(mean).view(1, C, 1, 1)
        self.std = torch.tensor(std).view(1, C, 1, 1)

    def __call__(self, img):
        return (img - self.mean) / self.std

    def undo(self, img):
        return img * self.std + self.mean


class Classifier(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(C, width, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
                                  nn.Linear(width * 25, hidden), nn.ReLU(), nn.Linear(hidden, K))

    def forward(self, x):
        return self.body(x)


stats = photos(512)[0]
STUDENT_NORM = Normalize(stats.mean((0, 2, 3)).tolist(), stats.std((0, 2, 3)).tolist())
TEACHER_NORM = Normalize([0.5] * C, [0.5] * C)


class Guided(nn.Module):
    def __init__(self, teacher, student):
        super().__init__()
        self.teacher, self.student = teacher.eval().requires_grad_(False), student

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            t = self.teacher(TEACHER_NORM(STUDENT_NORM.undo(x)))
        return self.student(x), t


def train_big(path):
    big = Classifier(16, 64)
    opt = torch.optim.Adam(big.parameters(), lr=3e-3)
    for _ in range(160):
        img, y = photos(48)
        opt.zero_grad()
        F.cross_entropy(big(TEACHER_NORM(img)), y).backward()
        opt.step()
    img, y = photos(600)
    print("big net", (big(TEACHER_NORM(img)).argmax(1) == y).float().mean().item())
    torch.save({"model": big.state_dict()}, path)


def main():
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "big.pth")
        train_big(path)
        teacher = Classifier(16, 64)
        teacher.load_state_dict(torch.load(path)["model"])
    model = Guided(teacher, Classifier(4, 16))
    opt = torch.optim.Adam(model.student.parameters(), lr=4e-3)
    model.train()
    for step in range(200):
        img, y = photos(48)
        s, t = model(STUDENT_NORM(img))
        kd = F.kl_div((s / 3).log_softmax(1), (t / 3).softmax(1), reduction="batchmean") * 9
        loss = 0.5 * kd + 0.5 * F.cross_entropy(s, y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 40 == 0:
            print(f"{step} kd {kd.item():.3f}")
    model.eval()
    img, y = photos(800)
    with torch.no_grad():
        print("student", (model(STUDENT_NORM(img))[0].argmax(1) == y).float().mean().item())


main()
