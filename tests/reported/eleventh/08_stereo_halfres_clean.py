"""Stereo matching: a full-resolution cost-volume teacher and a half-resolution
student.  Both start with supervised regression on labelled pairs (the student on
few of them); the student is then distilled on unlabelled pairs.
Disparities of a network are in pixels of its own output grid.
"""
import torch
import torch.nn.functional as F
from torch import nn

H, W, MAX_DISP = 16, 40, 8


def scene(n, gen):
    """Right image is random texture; left(x) = right(x - d)."""
    right = torch.rand(n, 1, H, W + MAX_DISP, generator=gen)
    right = F.avg_pool2d(right, 3, 1, 1) * 2
    coarse = torch.rand(n, 1, 2, 3, generator=gen) * 6.0 + 0.5
    disp = F.interpolate(coarse, size=(H, W), mode="bilinear", align_corners=True)
    xs = torch.arange(W).float() + MAX_DISP - disp
    gx = xs / (W + MAX_DISP - 1) * 2 - 1
    gy = torch.linspace(-1, 1, H).view(1, 1, H, 1).expand_as(gx)
    left = F.grid_sample(right, torch.stack([gx, gy], -1)[:, 0], align_corners=True)
    noise = lambda im: im + 0.02 * torch.randn(im.shape, generator=gen)
    return {"left": noise(left), "right": noise(right[..., MAX_DISP:]), "disp": disp}


class StereoNet(nn.Module):
    def __init__(self, width, stride, candidates):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1))
        self.candidates = candidates
        self.refine = nn.Sequential(
            nn.Conv2d(candidates, 2 * width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(2 * width, candidates, 3, padding=1))

    def forward(self, left, right):
        fl, fr = F.normalize(self.features(left), dim=1), F.normalize(self.features(right), dim=1)
        cost = torch.stack([(fl * F.pad(fr, (d, 0))[..., : fl.size(-1)]).sum(1)
                            for d in range(self.candidates)], 1)
        prob = torch.softmax(10 * cost + self.refine(cost), 1)
        return torch.einsum("bdhw,d->bhw", prob, torch.arange(self.candidates).float())[:, None]


def to_half(disp):
    return F.avg_pool2d(disp, 2) / 2


def end_point_error(net, data, half):
    net.eval()
    with torch.no_grad():
        out = net(data["left"], data["right"])
        if half:
            out = F.interpolate(out, scale_factor=2, mode="bilinear", align_corners=False) * 2
    net.train()
    return (out - data["disp"])[..., MAX_DISP:].abs().mean().item()


def regress(net, pool, steps, lr, convert):
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    n = len(pool["disp"])
    for _ in range(steps):
        pick = torch.randint(0, n, (12,))
        out = net(pool["left"][pick], pool["right"][pick])
        loss = F.smooth_l1_loss(out, convert(pool["disp"][pick]))
        opt.zero_grad()
        loss.backward()
        opt.step()


def distill(student, teacher, gen, steps):
    opt = torch.optim.AdamW(student.parameters(), lr=2e-3)
    sched = torch.optim.lr_scheduler.StepLR(opt, 30, gamma=0.5)
    for step in range(steps):
        pair = scene(12, gen)
        with torch.no_grad():
            target = to_half(teacher(pair["left"], pair["right"]))
        loss = F.smooth_l1_loss(student(pair["left"], pair["right"]), target)
        opt.zero_grad()
        loss.backward()
        opt.step()
        sched.step()
        if step % 20 == 19:
            print(f"distil step {step + 1}: loss {loss.item():.4f}")


def main():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    labelled, test = scene(240, gen), scene(60, torch.Generator().manual_seed(8))
    teacher = StereoNet(14, 1, MAX_DISP)
    regress(teacher, labelled, 110, 5e-3, lambda d: d)
    teacher.requires_grad_(False)
    print(f"teacher EPE {end_point_error(teacher, test, half=False):.3f} px")
    teacher.eval()

    student = StereoNet(10, 2, MAX_DISP // 2 + 1)
    few = {k: v[:24] for k, v in labelled.items()}
    regress(student, few, 30, 4e-3, to_half)
    print(f"student after regression: EPE {end_point_error(student, test, half=True):.3f} px")
    distill(student, teacher, gen, 80)
    print(f"student after distillation: EPE {end_point_error(student, test, half=True):.3f} px")


if __name__ == "__main__":
    main()
