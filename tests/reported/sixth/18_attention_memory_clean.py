"""Two-step class-incremental learning; the previous net guards the attention maps."""
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(151)
SIDE, PER_STEP, TOTAL = 12, 3, 6
stamps = (torch.rand(TOTAL, 4, 4) > 0.5).float() * 2 - 1


def pictures(n, classes):
    y = torch.tensor(classes)[torch.randint(len(classes), (n,))]
    img = 0.35 * torch.randn(n, 1, SIDE, SIDE)
    for i in range(n):
        r, c = torch.randint(0, SIDE - 3, (2,))
        img[i, 0, r:r + 4, c:c + 4] += stamps[y[i]]
    return img, y


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 16, 4, padding=2), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(24, TOTAL)

    def forward(self, x):
        return self.fc(self.features(x).amax((2, 3)))


class AttentionProbe:
    """Records the output of one layer and turns it into a normalised spatial map."""

    def __init__(self, layer):
        self.value = None
        self.handle = layer.register_forward_hook(self.record)

    def record(self, module, args, out):
        self.value = out

    def map(self):
        return F.normalize(self.value.pow(2).mean(1).flatten(1), dim=1)


def accuracy(net, classes):
    x, y = pictures(300, classes)
    with torch.no_grad():
        return (net(x)[:, classes].argmax(1) + classes[0] == y).float().mean().item()


first, second = list(range(PER_STEP)), list(range(PER_STEP, TOTAL))
model = Net()
opt = torch.optim.Adam(model.parameters(), lr=5e-3)
for _ in range(140):
    x, y = pictures(32, first)
    loss = F.cross_entropy(model(x)[:, :PER_STEP], y)
    opt.zero_grad()
    loss.backward()
    opt.step()
print("after step one:", accuracy(model, first))

previous = copy.deepcopy(model).eval().requires_grad_(False)
probe_old = AttentionProbe(previous.features)
probe_new = AttentionProbe(model.features)
opt = torch.optim.Adam(model.parameters(), lr=2e-3)
BETA, GAMMA = 1.0, 8.0
for it in range(140):
    x, y = pictures(32, second)
    out = model(x)
    with torch.no_grad():
        old = previous(x)
    logit_kd = F.kl_div((out[:, :PER_STEP] / 2).log_softmax(1), (old[:, :PER_STEP] / 2).softmax(1), reduction="batchmean") * 4
    attention_kd = (probe_new.map() - probe_old.map()).abs().sum(1).mean()
    new_ce = F.cross_entropy(out[:, PER_STEP:], y - PER_STEP)
    loss = new_ce + BETA * logit_kd + GAMMA * attention_kd / SIDE
    opt.zero_grad()
    loss.backward()
    opt.step()
    if it % 35 == 0:
        print(it, f"ce {new_ce.item():.3f} logit {logit_kd.item():.3f} attention {attention_kd.item():.3f}")
print("after step two: old", accuracy(model, first), "new", accuracy(model, second))
