"""Reverse distillation for anomaly detection with a projection layer (two optimisers)."""
import torch
import torch.nn as nn
import torch.nn.functional as F
torch.manual_seed(16)
torch.set_num_threads(1)
GEN = torch.Generator().manual_seed(16)
ACCUMULATION_STEPS, BATCH, SIDE = 4, 8, 16


def textures(n, kinds):
    k = kinds[torch.randint(0, len(kinds), (n,), generator=GEN)].float()
    yy, xx = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ang = k[:, None, None] * 0.39
    phase = 6.28 * torch.rand(n, 1, 1, generator=GEN)
    img = torch.sin(1.3 * (xx * ang.cos() + yy * ang.sin()) + phase)
    return (img + 0.25 * torch.randn(n, SIDE, SIDE, generator=GEN))[:, None], k.long()


def damage(x):
    x, mark = x.clone(), torch.zeros(len(x), SIDE, SIDE)
    for i in range(len(x)):
        r, c = torch.randint(0, SIDE - 5, (2,), generator=GEN).tolist()
        x[i, 0, r:r + 5, c:c + 5] = torch.randn(5, 5, generator=GEN)
        mark[i, r:r + 5, c:c + 5] = 1
    return x, mark


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1 = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU())
        self.l2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(32, 8)

    def features(self, x):
        a = self.l1(x)
        return a, self.l2(a)

    def forward(self, x):
        return self.fc(self.features(x)[1].mean((2, 3)))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up2 = nn.Sequential(nn.Conv2d(12, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 32, 3, 1, 1))
        self.up1 = nn.Sequential(nn.ReLU(), nn.ConvTranspose2d(32, 16, 4, 2, 1))

    def forward(self, z):
        b = self.up2(z)
        return self.up1(b), b


def distance_maps(fs_t, fs_s):
    return [1 - F.cosine_similarity(t, s, dim=1) for t, s in zip(fs_t, fs_s)]


teacher = Encoder()
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for _ in range(120):
    x, k = textures(64, torch.arange(8))
    opt.zero_grad()
    F.cross_entropy(teacher(x), k).backward()
    opt.step()
teacher.eval().requires_grad_(False)

proj, decoder = nn.Conv2d(32, 12, 1), Decoder()
optimizer_proj = torch.optim.SGD(proj.parameters(), lr=0.1, momentum=0.9)
optimizer_distill = torch.optim.SGD(decoder.parameters(), lr=0.2, momentum=0.9)
normal, _ = textures(160, torch.tensor([1, 2]))
test_x, test_m = damage(textures(100, torch.tensor([1, 2]))[0])
for i in range(ACCUMULATION_STEPS * 120):
    idx = torch.randint(0, len(normal), (BATCH,), generator=GEN)
    with torch.no_grad():
        feats = teacher.features(normal[idx])
    loss = sum(m.mean() for m in distance_maps(feats, decoder(proj(feats[1]))))
    optimizer_proj.zero_grad()
    optimizer_distill.zero_grad()
    (loss / ACCUMULATION_STEPS).backward()
    if (i + 1) % ACCUMULATION_STEPS == 0:
        optimizer_proj.step()
        optimizer_distill.step()
    if (i + 1) % (ACCUMULATION_STEPS * 20) == 0:
        with torch.no_grad():
            feats = teacher.features(test_x)
            maps = distance_maps(feats, decoder(proj(feats[1])))
            amap = maps[0] + F.interpolate(maps[1][:, None], size=SIDE)[:, 0]
            ratio = (amap[test_m == 1].mean() / amap[test_m == 0].mean()).item()
        print(f"update {(i + 1) // ACCUMULATION_STEPS} loss {loss.item():.4f} damaged/normal score ratio {ratio:.2f}")
