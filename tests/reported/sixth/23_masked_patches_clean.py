"""Masked-patch self-distillation with an averaged tokenizer and running centre."""
import copy
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(8)
PATCHES, DIM, KINDS, PROTO = 9, 12, 5, 5
looks = 1.2 * torch.randn(KINDS, DIM)


def scene(n):
    """Every scene mixes two kinds of patches in a fixed layout, so context tells the masked ones."""
    pair = torch.stack([torch.randint(KINDS, (n,)), torch.randint(KINDS, (n,))], 1)
    layout = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0])
    kind = pair[:, layout]
    return looks[kind] + 0.8 * torch.randn(n, PATCHES, DIM), kind


class PatchNet(nn.Module):
    def __init__(self, width=32):
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(DIM))
        self.pos = nn.Parameter(0.1 * torch.randn(PATCHES, width))
        self.inp = nn.Linear(DIM, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, PROTO)

    def forward(self, x, mask=None):
        if mask is not None:
            x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        return self.head(self.block(self.inp(x) + self.pos))


class PatchLoss(nn.Module):
    def __init__(self, tau_s=0.5, tau_t=0.25, m=0.9):
        super().__init__()
        self.tau_s, self.tau_t, self.m = tau_s, tau_t, m
        self.register_buffer("center", torch.zeros(1, 1, PROTO))

    def forward(self, student_tokens, teacher_tokens):
        t = ((teacher_tokens - self.center) / self.tau_t).softmax(-1)
        loss = -(t * (student_tokens / self.tau_s).log_softmax(-1)).sum(-1).mean()
        self.update_center(teacher_tokens)
        return loss

    @torch.no_grad()
    def update_center(self, teacher_tokens):
        total = teacher_tokens.sum(1, keepdim=True)
        batch_center = total / teacher_tokens.shape[1]
        self.center.mul_(self.m).add_(batch_center, alpha=1 - self.m)


@torch.no_grad()
def patch_accuracy(net, hide=0.0):
    x, kind = scene(400)
    mask = torch.rand(400, PATCHES) < hide
    pred = net(x, mask).argmax(-1)
    return (pred == kind).float().mean().item()


x_few, k_few = scene(24)
net = PatchNet()
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
for _ in range(60):
    loss = F.cross_entropy(net(x_few).flatten(0, 1), k_few.flatten())
    opt.zero_grad()
    loss.backward()
    opt.step()
avg = copy.deepcopy(net).requires_grad_(False).eval()
print("start: visible", patch_accuracy(net), "masked", patch_accuracy(net, 0.4))

objective = PatchLoss()
opt = torch.optim.Adam(net.parameters(), lr=2e-3)
for step in range(180):
    x, _ = scene(24)
    mask = torch.rand(24, PATCHES) < 0.4
    with torch.no_grad():
        picked_t = avg(x)[mask].unsqueeze(0)
    picked_s = net(x, mask)[mask].unsqueeze(0)
    distil = objective(picked_s, picked_t)
    labelled = F.cross_entropy(net(x_few).flatten(0, 1), k_few.flatten())
    opt.zero_grad()
    (distil + 0.3 * labelled).backward()
    opt.step()
    with torch.no_grad():
        for a, b in zip(avg.parameters(), net.parameters()):
            a.mul_(0.98).add_(b, alpha=0.02)
    if step % 36 == 0:
        print(step, f"distil {distil.item():.3f} visible {patch_accuracy(net):.3f} masked {patch_accuracy(net, 0.4):.3f}")
print("end: visible", patch_accuracy(net), "masked", patch_accuracy(net, 0.4))
