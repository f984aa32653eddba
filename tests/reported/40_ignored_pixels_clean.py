import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(40)
IGNORE, K, S = 250, 4, 20


class SegNet(nn.Module):
    def __init__(self, w, stride=2):
        super().__init__()
        self.f = nn.Sequential(nn.Conv2d(2, w, 3, stride, 1), nn.GroupNorm(2, w), nn.ReLU(), nn.Conv2d(w, w, 3, 1, 1), nn.ReLU())
        self.c = nn.Conv2d(w, K, 1)

    def forward(self, x):
        return {"out": F.interpolate(self.c(self.f(x)), size=x.shape[-2:], mode="bilinear", align_corners=True)}


def frames(n=8):
    """Left border columns carry no valid label, as rectified frames do."""
    base = torch.randint(0, K, (n, 5, 5)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    x = torch.stack([torch.cos(base * 1.57), torch.sin(base * 1.57)], 1) + 0.6 * torch.randn(n, 2, S, S)
    y = base.clone()
    width = torch.randint(4, 10, (n, 1, 1))
    void = (torch.arange(S)[None, None] < width).expand(n, S, S)
    y[void] = IGNORE
    x = x.masked_fill(void.unsqueeze(1), 3.0)
    return x, y


def distillation_step(student_model, teacher_model, optimizer, x, y, w_kd=2.0, T=2.0):
    student = student_model(x)["out"]
    with torch.no_grad():
        teacher = F.softmax(teacher_model(x)["out"] / T, dim=1)
    loss_ce = F.cross_entropy(student, y, ignore_index=IGNORE)
    loss_kd = F.kl_div(F.log_softmax(student / T, dim=1), teacher, reduction="none")
    mask = (y != IGNORE).float().unsqueeze(1).expand_as(loss_kd)
    loss_kd = (loss_kd * mask).sum() / mask.sum() * K * T * T
    loss = loss_ce + w_kd * loss_kd
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss_ce.item(), loss_kd.item()


def main():
    teacher, student = SegNet(24, 1), SegNet(6, 2)
    opt = torch.optim.Adam(teacher.parameters(), lr=5e-3)
    for _ in range(60):
        x, y = frames()
        opt.zero_grad()
        F.cross_entropy(teacher(x)["out"], y, ignore_index=IGNORE).backward()
        opt.step()
    teacher.requires_grad_(False).eval()
    opt = torch.optim.Adam(student.parameters(), lr=5e-3)
    for it in range(90):
        ce, kd = distillation_step(student, teacher, opt, *frames())
        if it % 30 == 0:
            print(f"{it} ce {ce:.4f} kd {kd:.4f}")
    with torch.no_grad():
        x, y = frames(64)
        ok = student(x)["out"].argmax(1)[y != IGNORE] == y[y != IGNORE]
    print(f"valid-pixel accuracy {ok.float().mean().item():.4f}")


main()
