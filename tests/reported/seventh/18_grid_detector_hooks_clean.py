"""Hierarchical feature distillation for a one-object-per-cell grid detector (forward hooks)."""
import torch
from torch import nn
import torch.nn.functional as F
torch.manual_seed(18)
torch.set_num_threads(1)
G = torch.Generator().manual_seed(18)
SIDE, CELLS = 24, 6


def scenes(n):
    img = 0.5 * torch.randn(n, 1, SIDE, SIDE, generator=G)
    obj, box = torch.zeros(n, CELLS, CELLS), torch.zeros(n, 2, CELLS, CELLS)
    for i in range(n):
        for _ in range(3):
            cy, cx = torch.randint(0, CELLS, (2,), generator=G).tolist()
            h, w = (1 + torch.randint(0, 2, (2,), generator=G)).tolist()
            img[i, 0, 4 * cy + 2 - h:4 * cy + 2 + h, max(4 * cx + 2 - w, 0):4 * cx + 2 + w] += 1.2
            obj[i, cy, cx], box[i, :, cy, cx] = 1.0, torch.tensor([h / 3, w / 3])
    return img, obj, box


class Detector(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, w, 3, 2, 1), nn.SiLU())
        self.neck = nn.Sequential(nn.Conv2d(w, 2 * w, 3, 2, 1), nn.SiLU(), nn.Conv2d(2 * w, 2 * w, 3, 1, 1), nn.SiLU())
        self.head = nn.Conv2d(2 * w, 3, 1)

    def forward(self, x):
        return self.head(self.neck(self.stem(x)))


def det_loss(out, obj, box):
    conf = F.binary_cross_entropy_with_logits(out[:, 0], obj, pos_weight=torch.tensor(3.0))
    size = (F.smooth_l1_loss(out[:, 1:], box, reduction="none").sum(1) * obj).sum() / obj.sum()
    return conf + size


class HierarchicalDistiller:
    def __init__(self, teacher, student, layers=("stem", "neck")):
        self.teacher, self.student, self.layers = teacher, student, layers
        self.cache = {"t": {}, "s": {}}
        for tag, net in (("t", teacher), ("s", student)):
            for name in layers:
                getattr(net, name).register_forward_hook(self.saver(tag, name))
        self.adapters = nn.ModuleDict({"stem": nn.Conv2d(8, 24, 1), "neck": nn.Conv2d(16, 48, 1)})

    def saver(self, tag, name):
        def hook(module, args, output):
            self.cache[tag][name] = output
        return hook

    def feature_loss(self, images):
        for store in self.cache.values():
            store.clear()
        with torch.no_grad():
            self.teacher(images)
        self.student(images)
        return sum(F.mse_loss(self.adapters[k](self.cache["s"][k]), self.cache["t"][k]) for k in self.layers)


def f1(net, img, obj):
    with torch.no_grad():
        pred = (net(img)[:, 0] > 0).float()
    return (2 * (pred * obj).sum() / (pred.sum() + obj.sum())).item()


train, val = scenes(400), scenes(150)
teacher = Detector(24)
opt = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for step in range(150):
    i = torch.randint(0, 400, (24,), generator=G)
    opt.zero_grad()
    det_loss(teacher(train[0][i]), train[1][i], train[2][i]).backward()
    opt.step()
teacher.eval().requires_grad_(False)
print(f"teacher f1 {f1(teacher, *val[:2]):.3f}")
student = Detector(8)
kd = HierarchicalDistiller(teacher, student)
opt = torch.optim.Adam([*student.parameters(), *kd.adapters.parameters()], lr=2e-3)
for step in range(1, 201):
    i = torch.randint(0, 400, (24,), generator=G)
    det = det_loss(student(train[0][i]), train[1][i], train[2][i])
    feat = kd.feature_loss(train[0][i])
    opt.zero_grad()
    (det + 4.0 * feat).backward()
    opt.step()
    if step % 40 == 0:
        print(f"step {step} det {det.item():.4f} feat {feat.item():.4f} val f1 {f1(student, *val[:2]):.3f}")
