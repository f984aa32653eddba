# class-incremental LwF with recorded responses: 5 old classes, then 5 new ones
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import TensorDataset, DataLoader

torch.manual_seed(12); torch.set_num_threads(1)
g = torch.Generator().manual_seed(12)
OLD, NEW, T, LAMBDA = 5, 5, 2.0, 4.0
glyphs = (torch.rand(OLD + NEW, 1, 10, 10, generator=g) > 0.6).float()


def render(classes, n):
    y = classes[torch.randint(0, len(classes), (n,), generator=g)]
    x = glyphs[y] + 0.7 * torch.randn(n, 1, 10, 10, generator=g)
    return x, y


def make_net():
    return nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
                         nn.Linear(32 * 25, 64), nn.ReLU(), nn.Linear(64, OLD + NEW))


@torch.no_grad()
def record_responses(net, x):
    net.eval()
    return torch.cat([net(chunk) for chunk in x.split(256)])


@torch.no_grad()
def evaluate(net, x, y):
    net.eval()
    logits = net(x)
    old = y < OLD
    within_old = (logits[old, :OLD].argmax(1) == y[old]).float().mean().item()
    return dict(old=within_old, new=(logits[~old].argmax(1) == y[~old]).float().mean().item(),
                all=(logits.argmax(1) == y).float().mean().item())


def lwf_loss(logits, y, recorded):
    new_ce = F.cross_entropy(logits[:, OLD:], y - OLD)
    keep = F.kl_div(F.log_softmax(logits[:, :OLD] / T, 1),
                    F.softmax(recorded[:, :OLD] / T, 1), reduction="batchmean") * T * T
    return new_ce, keep


net = make_net()
old_x, old_y = render(torch.arange(OLD), 2000)
opt = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
for x, y in DataLoader(TensorDataset(old_x, old_y), batch_size=50, shuffle=True, generator=g):
    opt.zero_grad()
    F.cross_entropy(net(x)[:, :OLD], y).backward()
    opt.step()

test_x, test_y = render(torch.arange(OLD + NEW), 1000)
print("after old classes:", {k: round(v, 3) for k, v in evaluate(net, test_x, test_y).items()})

new_x, new_y = render(torch.arange(OLD, OLD + NEW), 2000)
responses = record_responses(net, new_x)
loader = DataLoader(TensorDataset(new_x, new_y, responses), batch_size=50, shuffle=True, generator=g)
opt = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for epoch in range(6):
    net.train()
    ce_sum = keep_sum = 0.0
    for x, y, rec in loader:
        ce, keep = lwf_loss(net(x), y, rec)
        opt.zero_grad()
        (ce + LAMBDA * keep).backward()
        opt.step()
        ce_sum += ce.item()
        keep_sum += keep.item()
    print(f"epoch {epoch} ce {ce_sum / len(loader):.4f} keep {keep_sum / len(loader):.4f}",
          {k: round(v, 3) for k, v in evaluate(net, test_x, test_y).items()})
