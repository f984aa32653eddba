"""Mixed-precision distillation: autocast forward, GradScaler backward, clipping on unscaled gradients."""

import torch
import torch.nn as nn
import torch.nn.functional as F

DEVICE = "cpu"
CFG = dict(classes=5, size=16, temperature=3.0, lam=1.0, lr=4e-3, clip=1.0, batch=64, iters=40)

torch.manual_seed(42)


class Normalize(nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def block(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())


def build(width):
    net = nn.Sequential(block(3, width), block(width, 2 * width), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    net.append(nn.Linear(8 * width, CFG["classes"]))
    return net.to(DEVICE)


class Pool:
    """Pixels in [0, 1], grouped around one pattern per class."""

    def __init__(self, n, patterns):
        self.y = torch.randint(0, len(patterns), (n,))
        self.x = (patterns[self.y] + 0.35 * torch.randn(n, 3, CFG["size"], CFG["size"])).clamp(0, 1)

    def batch(self):
        i = torch.randint(0, len(self.y), (CFG["batch"],))
        return self.x[i].to(DEVICE), self.y[i].to(DEVICE)


patterns = torch.rand(CFG["classes"], 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
train_pool, test_pool = Pool(700, patterns), Pool(250, patterns)
normalize = Normalize((0.5, 0.5, 0.5), (0.3, 0.3, 0.3))
teacher_normalize = Normalize((0.5, 0.5, 0.5), (0.3, 0.3, 0.3))


def test(net):
    net.eval()
    with torch.no_grad():
        return (net(normalize(test_pool.x)).argmax(1) == test_pool.y).float().mean().item()


teacher = build(16)
opt_t = torch.optim.Adam(teacher.parameters(), lr=4e-3)
for _ in range(30):
    x, y = train_pool.batch()
    opt_t.zero_grad()
    F.cross_entropy(teacher(normalize(x)), y).backward()
    opt_t.step()
print("teacher accuracy: %.3f" % test(teacher))
teacher.eval().requires_grad_(False)

student = build(6)
opt = torch.optim.AdamW(student.parameters(), lr=CFG["lr"])
scaler = torch.amp.GradScaler(DEVICE, init_scale=1024.0)
student.train()
for it in range(CFG["iters"]):
    x, y = train_pool.batch()
    opt.zero_grad(set_to_none=True)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        with torch.no_grad():
            zt = teacher(teacher_normalize(x))
        zs = student(normalize(x))
    tau = CFG["temperature"]
    zs, zt = zs.float(), zt.float()
    kd = F.kl_div(F.log_softmax(zs / tau, -1), F.log_softmax(zt / tau, -1), reduction="batchmean", log_target=True)
    loss = F.cross_entropy(zs, y) + CFG["lam"] * tau**2 * kd
    scaler.scale(loss).backward()
    scaler.unscale_(opt)
    nn.utils.clip_grad_norm_(student.parameters(), CFG["clip"])
    scaler.step(opt)
    scaler.update()
    if it % 10 == 0:
        print(it, "loss %.3f scale %.0f" % (loss.item(), scaler.get_scale()))

print("student accuracy: %.3f" % test(student))
