"""Second-stage adaptation of a segmentation net: pseudo labels plus self-distillation from the first-stage net."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(39)
K = 4


def unet(w):
    return nn.Sequential(nn.Conv2d(1, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 3, padding=2, dilation=2), nn.ReLU(),
                         nn.Conv2d(w, K, 1))


def domain(shift, n=8, s=20):
    lab = torch.zeros(n, s, s, dtype=torch.long)
    yy, xx = torch.meshgrid(torch.arange(s), torch.arange(s), indexing="ij")
    for i in range(n):
        for k in range(1, K):
            r, c = torch.randint(3, s - 3, (2,)).tolist()
            lab[i][(yy - r) ** 2 + (xx - c) ** 2 < (k + 1) ** 2] = k
    return (lab.float() / K + shift).unsqueeze(1) + 0.12 * torch.randn(n, 1, s, s), lab


class CustomModel:
    def __init__(self, net, teacher, distillation=1.0, lr=3e-3):
        self.net, self.teacher_DP = net, teacher.eval()
        self.distillation = distillation
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr)

    def step(self, target_image, target_imageS, threshold_arg):
        out = self.net(target_imageS)
        loss_ce = F.cross_entropy(out, threshold_arg, ignore_index=250)
        student = F.log_softmax(out, dim=1)
        with torch.no_grad():
            teacher = F.softmax(self.teacher_DP(target_image), dim=1)
        loss_kd = F.kl_div(student, teacher, reduction="none").sum(1)
        mask = (threshold_arg != 250).float()
        loss_kd = (loss_kd * mask).sum() / mask.sum()
        loss = loss_ce + self.distillation * loss_kd
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss_ce.item(), loss_kd.item()


stage1 = unet(20)
opt = torch.optim.Adam(stage1.parameters(), lr=5e-3)
for _ in range(60):
    x, y = domain(0.0)
    opt.zero_grad(); F.cross_entropy(stage1(x), y).backward(); opt.step()

net = unet(20)
net.load_state_dict({k: v + 0.05 * torch.randn_like(v) for k, v in stage1.state_dict().items()})
model = CustomModel(net, stage1)
for it in range(80):
    x, y = domain(0.15)
    with torch.no_grad():
        conf, pseudo = stage1(x).softmax(1).max(1)
    pseudo[conf < 0.6] = 250
    ce, kd = model.step(x, x + 0.05 * torch.randn_like(x), pseudo)
    if it % 20 == 0:
        print(f"iter {it} ce {ce:.4f} kd {kd:.4f}")
with torch.no_grad():
    x, y = domain(0.15, 40)
    print(f"target pixel accuracy {(net(x).argmax(1) == y).float().mean().item():.4f}")
