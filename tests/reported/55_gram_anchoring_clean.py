import copy
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(55)


class GramLoss(nn.Module):
    """Matches patch-to-patch similarities with an earlier network; img_level=False relates patches of the whole batch."""

    def __init__(self, apply_norm=True, img_level=True, remove_neg=True):
        super().__init__()
        self.apply_norm, self.remove_neg = apply_norm, remove_neg
        self.img_level = img_level

    def forward(self, output_feats, target_feats, img_level=None):
        img_level = self.img_level if img_level is None else img_level
        if self.apply_norm:
            output_feats, target_feats = F.normalize(output_feats, dim=-1), F.normalize(target_feats, dim=-1)
        if not img_level:
            output_feats, target_feats = output_feats.flatten(0, 1), target_feats.flatten(0, 1)
        s = output_feats @ output_feats.transpose(-1, -2)
        t = target_feats @ target_feats.transpose(-1, -2)
        if self.remove_neg:
            s, t = s.clamp(min=0), t.clamp(min=0)
        return F.mse_loss(s, t)


class PatchEncoder(nn.Module):
    def __init__(self, dim=24):
        super().__init__()
        self.patch = nn.Conv2d(1, dim, 4, 4)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        self.head = nn.Linear(dim, 6)

    def forward(self, x):
        p = self.patch(x).flatten(2).transpose(1, 2)
        p = p + self.mlp(p)
        p = p + self.attn(p, p, p, need_weights=False)[0]
        return p, self.head(p.mean(1))


def textures(n=16, noise=0.3):
    y = torch.randint(0, 6, (n,))
    g = torch.arange(16).float()
    phase = 6.28 * torch.rand(n, 1, 1)
    wave = torch.sin(g[None, None] * (0.4 + 0.25 * (y % 3)[:, None, None]) + phase)
    x = torch.where((y >= 3)[:, None, None], wave.transpose(1, 2) * torch.ones(n, 16, 16), wave * torch.ones(n, 16, 16))
    return x.unsqueeze(1) + noise * torch.randn(n, 1, 16, 16), y


def fit(net, steps, extra=None, noise=0.3, lr=2e-3):
    opt = torch.optim.AdamW(net.parameters(), lr=lr)
    for step in range(steps):
        x, y = textures(noise=noise)
        patches, logits = net(x)
        ce = F.cross_entropy(logits, y)
        reg = extra(x, patches) if extra else torch.zeros(())
        opt.zero_grad()
        (ce + 4.0 * reg).backward()
        opt.step()
        if step % 30 == 0:
            print(f"step {step} ce {ce.item():.4f} gram {reg.item():.5f}")
    return ce.item(), reg.item()


student = PatchEncoder()
fit(student, 60)
gram_teacher = copy.deepcopy(student).eval().requires_grad_(False)
gram_loss = GramLoss(img_level=False)


def anchor(x, patches):
    with torch.no_grad():
        target, _ = gram_teacher(x)
    return gram_loss(patches, target)


ce, gram = fit(student, 80, anchor, noise=0.8, lr=4e-3)
print(f"final ce {ce:.4f} gram {gram:.5f}")
