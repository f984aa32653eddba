"""Semantic segmentation, pixel-wise soft targets plus hard labels."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(8)
C, SIZE, IGNORE = 4, 20, 255


def shapes(n, seed):
    g = torch.Generator().manual_seed(seed)
    img = torch.zeros(n, 3, SIZE, SIZE)
    lab = torch.zeros(n, SIZE, SIZE, dtype=torch.long)
    yy, xx = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for i in range(n):
        for k in range(1, C):
            cy, cx = torch.randint(3, SIZE - 3, (2,), generator=g).tolist()
            r = int(torch.randint(2, 5, (1,), generator=g))
            inside = ((yy - cy).abs() + (xx - cx).abs() <= r) if k == 1 else \
                ((yy - cy) ** 2 + (xx - cx) ** 2 <= r * r) if k == 2 else \
                (torch.maximum((yy - cy).abs(), (xx - cx).abs()) <= r)
            lab[i][inside] = k
            img[i, k - 1] = img[i, k - 1].masked_fill(inside, 1.0)
    img += 0.7 * torch.randn(img.shape, generator=g)
    lab[:, 0, :] = IGNORE
    return TensorDataset(img, lab)


class SegNet(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.enc1 = nn.Sequential(nn.Conv2d(3, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU())
        self.enc2 = nn.Sequential(nn.Conv2d(w, 2 * w, 3, 2, 1), nn.BatchNorm2d(2 * w), nn.ReLU())
        self.dec = nn.Sequential(nn.Conv2d(3 * w, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU())
        self.cls = nn.Conv2d(w, C, 1)

    def forward(self, x):
        a = self.enc1(x)
        b = F.interpolate(self.enc2(a), size=a.shape[-2:], mode="nearest")
        return self.cls(self.dec(torch.cat([a, b], 1)))


class PixelWise(nn.Module):
    def __init__(self, ignore_index=IGNORE):
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, preds_s, preds_t, target):
        n, c, h, w = preds_s.shape
        flat_s = preds_s.view(-1, c)
        flat_t = preds_t.view(-1, c)
        keep = (target != self.ignore_index).view(-1)
        soft = -(F.softmax(flat_t, dim=1) * F.log_softmax(flat_s, dim=1)).sum(1)
        return soft[keep].mean()


@torch.no_grad()
def mean_iou(net, loader):
    net.eval()
    inter, union = torch.zeros(C), torch.zeros(C)
    for x, y in loader:
        p, ok = net(x).argmax(1), y != IGNORE
        for k in range(C):
            a, b = (p == k) & ok, (y == k) & ok
            inter[k] += (a & b).sum()
            union[k] += (a | b).sum()
    return (inter / union.clamp(min=1)).mean().item()


def run_epochs(net, loader, epochs, lr, loss_fn):
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    for e in range(epochs):
        net.train()
        for x, y in loader:
            loss = loss_fn(net(x), x, y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        print(f"  epoch {e} last loss {loss.item():.3f}")


train = DataLoader(shapes(480, 1), batch_size=32, shuffle=True)
val = DataLoader(shapes(120, 2), batch_size=60)

big = SegNet(16)
run_epochs(big, train, 5, 5e-3, lambda out, x, y: F.cross_entropy(out, y, ignore_index=IGNORE))
big.eval().requires_grad_(False)
print(f"big mIoU {mean_iou(big, val):.3f}")

pixel_wise = PixelWise()


def distil(out, x, y):
    with torch.no_grad():
        ref = big(x)
    return F.cross_entropy(out, y, ignore_index=IGNORE) + pixel_wise(out, ref, y)


small = SegNet(5)
run_epochs(small, train, 5, 5e-3, distil)
print(f"small mIoU {mean_iou(small, val):.3f}")
