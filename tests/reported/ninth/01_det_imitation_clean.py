"""Grid detector: small network learns from a bigger one (logits of the boxes' cells + masked feature imitation)."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(11)
IMG, NCLS = 32, 3
COLORS = torch.tensor([[1.0, 0.2, 0.1], [0.1, 1.0, 0.3], [0.2, 0.3, 1.0]])


def make_batch(n):
    img = torch.rand(n, 3, IMG, IMG) * 0.9
    box = torch.zeros(n, 4)
    cls = torch.randint(0, NCLS, (n,))
    for i in range(n):
        w = int(torch.randint(8, 15, (1,)))
        x = int(torch.randint(0, IMG - w, (1,)))
        y = int(torch.randint(0, IMG - w, (1,)))
        tint = 0.45 * COLORS[cls[i]].view(3, 1, 1)
        img[i, :, y:y + w, x:x + w] = 0.55 * img[i, :, y:y + w, x:x + w] + tint
        box[i] = torch.tensor([x, y, x + w, y + w])
    return img, box, cls


def block(i, o, s):
    return nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.GroupNorm(4, o), nn.SiLU())


class Detector(nn.Module):
    """stride 4 or 8 trunk, one (background + classes) prediction for each cell"""

    def __init__(self, width, stride):
        super().__init__()
        layers = [block(3, width, 2), block(width, 2 * width, 2)]
        if stride == 8:
            layers.append(block(2 * width, 2 * width, 2))
        self.trunk = nn.Sequential(*layers)
        self.neck = block(2 * width, 2 * width, 1)
        self.head = nn.Conv2d(2 * width, NCLS + 1, 1)
        self.stride = stride

    def forward(self, x):
        return self.head(self.neck(self.trunk(x)))


def cell_mask(box, stride):
    g = IMG // stride
    c = (torch.arange(g) + 0.5) * stride
    inx = (c[None] > box[:, 0:1]) & (c[None] < box[:, 2:3])
    iny = (c[None] > box[:, 1:2]) & (c[None] < box[:, 3:4])
    return iny[:, :, None] & inx[:, None, :]


def det_loss(out, box, cls, stride):
    m = cell_mask(box, stride)
    tgt = torch.where(m, cls[:, None, None] + 1, torch.zeros_like(cls)[:, None, None])
    return F.cross_entropy(out, tgt, weight=torch.tensor([0.2, 1.0, 1.0, 1.0]))


class Tap:
    def __init__(self, module):
        self.feats = []
        module.register_forward_hook(lambda m, i, o: self.feats.append(o))

    def clear(self):
        self.feats.clear()


class Imitation(nn.Module):
    def __init__(self, big, small, c_big, c_small):
        super().__init__()
        self.adapt = nn.Conv2d(c_small, c_big, 1)
        self.nets = [big, small]
        self.taps = [Tap(big.neck), Tap(small.neck)]

    def forward(self, img, box):
        big, small = self.nets
        for t in self.taps:
            t.clear()
        with torch.no_grad():
            big(img)
        small(img)
        f_big, f_small = self.taps[0].feats[-1], self.taps[1].feats[-1]
        f_big = F.avg_pool2d(f_big, small.stride // big.stride)
        m = cell_mask(box, small.stride).unsqueeze(1).float()
        diff = (self.adapt(f_small) - f_big).pow(2) * m
        return diff.sum() / (m.sum() * f_big.shape[1]).clamp(min=1)


@torch.no_grad()
def accuracy(net, n=128):
    torch.manual_seed(999)
    img, box, cls = make_batch(n)
    out = net(img).argmax(1)
    m = cell_mask(box, net.stride)
    tgt = (cls[:, None, None] + 1).expand_as(out)
    return (out[m] == tgt[m]).float().mean().item()


big = Detector(16, 4)
opt = torch.optim.AdamW(big.parameters(), lr=3e-3)
for it in range(60):
    img, box, cls = make_batch(24)
    opt.zero_grad()
    det_loss(big(img), box, cls, 4).backward()
    opt.step()
big.eval().requires_grad_(False)
print("big, cell accuracy", round(accuracy(big), 3))

torch.manual_seed(5)
small = Detector(12, 8)
imit = Imitation(big, small, 32, 24)
opt = torch.optim.AdamW([*small.parameters(), *imit.adapt.parameters()], lr=8e-3)
sched = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 100)
for it in range(100):
    img, box, cls = make_batch(24)
    l_det = det_loss(small(img), box, cls, 8)
    l_imit = imit(img, box)
    opt.zero_grad()
    (l_det + 2.0 * l_imit).backward()
    opt.step()
    sched.step()
    if it % 25 == 24:
        print(f"iter {it + 1} det {l_det.item():.4f} imitation {l_imit.item():.4f}")
print("small, cell accuracy", round(accuracy(small), 3))
