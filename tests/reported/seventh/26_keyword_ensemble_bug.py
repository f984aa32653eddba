"""Keyword spotting: three CNN teachers on log-mel-like patches, one small student."""
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(26)
torch.set_num_threads(1)
GEN = torch.Generator().manual_seed(26)
WORDS, FRAMES, MELS = 10, 24, 12
TRACKS = torch.rand(WORDS, 3, generator=GEN)


def utterances(n, label_noise=0.0):
    y = torch.randint(0, WORDS, (n,), generator=GEN)
    start, slope, second = TRACKS[y].T[..., None]
    t = torch.linspace(0, 1, FRAMES)[None]
    f1 = (start + (slope - 0.5) * t).clamp(0, 1) * (MELS - 1)
    f2 = (second + 0.2 * torch.sin(6 * t)).clamp(0, 1) * (MELS - 1)
    x = sum(torch.exp(-(torch.arange(MELS) - f[..., None]) ** 2) for f in (f1, f2)) + 1.0 * torch.randn(n, FRAMES, MELS, generator=GEN)
    wrong = torch.rand(n, generator=GEN) < label_noise
    return x[:, None], torch.where(wrong, torch.randint(0, WORDS, (n,), generator=GEN), y)


def cnn(width):
    return nn.Sequential(nn.Conv2d(1, width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
                         nn.Flatten(), nn.Linear(width * 18, WORDS))


class Ensemble(nn.Module):
    def __init__(self, nets):
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x):
        return torch.stack([net(x) for net in self.nets], dim=1)      # (batch, teachers, words)


class EnsembleDistillLoss(nn.Module):
    def __init__(self, alpha, temp):
        super().__init__()
        self.alpha, self.temp = alpha, temp

    def forward(self, logits, teacher_logits, target):
        n_teachers = len(teacher_logits)
        soft = F.softmax(teacher_logits / self.temp, dim=-1)
        log_p = F.log_softmax(logits / self.temp, dim=-1).unsqueeze(1)
        kd = -(soft * log_p).sum(dim=(1, 2)).div(n_teachers).mean() * self.temp ** 2
        hard = F.cross_entropy(logits, target)
        return self.alpha * kd + (1 - self.alpha) * hard, kd, hard


def epochs(net, data, n, lr, step_fn):
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for epoch in range(n):
        net.train()
        logs = []
        for i in torch.randperm(len(data[0]), generator=GEN).split(64):
            loss, *rest = step_fn(data[0][i], data[1][i])
            opt.zero_grad()
            loss.backward()
            opt.step()
            logs.append([r.item() for r in rest])
        yield epoch, logs


def accuracy(scores, y):
    return (scores.argmax(1) == y).float().mean().item()


clean_set, noisy_set, val = utterances(1600), utterances(640, 0.75), utterances(600)
members = []
for seed in range(3):
    torch.manual_seed(100 + seed)
    net = cnn(16)
    list(epochs(net, clean_set, 5, 3e-3, lambda x, y: (F.cross_entropy(net(x), y),)))
    members.append(net)
teacher = Ensemble(members).eval().requires_grad_(False)
with torch.no_grad():
    print(f"ensemble acc {accuracy(teacher(val[0]).softmax(-1).mean(1), val[1]):.3f}")

student, criterion = cnn(5), EnsembleDistillLoss(alpha=0.9, temp=2.0)

def kd_step(x, y):
    with torch.no_grad():
        ref = teacher(x)
    return criterion(student(x), ref, y)

for epoch, logs in epochs(student, noisy_set, 12, 4e-3, kd_step):
    kd, hard = torch.tensor(logs).mean(0).tolist()
    with torch.no_grad():
        print(f"epoch {epoch} kd {kd:.4f} hard {hard:.4f} val acc {accuracy(student.eval()(val[0]), val[1]):.3f}")
