"""Semantic segmentation: hints from three stages of a wide encoder-decoder.

Forward hooks collect the stage outputs of both networks; 1x1 projectors lift the
student's maps to the teacher's width before they are compared.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

CLASSES, SIZE = 4, 24
STAGES = ("enc1", "enc2", "dec")


def block(cin, cout, stride=1):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


class SegNet(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.widths = {"enc1": w, "enc2": 2 * w, "dec": w}
        self.enc1 = block(3, w, 2)
        self.enc2 = block(w, 2 * w, 2)
        self.dec = block(2 * w, w)
        self.classify = nn.Conv2d(w, CLASSES, 1)

    def forward(self, x):
        h = self.dec(self.enc2(self.enc1(x)))
        return F.interpolate(self.classify(h), size=x.shape[-2:], mode="bilinear")


class StageTap:
    """Keeps the latest output of the named stages of a network."""

    def __init__(self, net, stages):
        self.maps = {}
        for name in stages:
            stage = getattr(net, name)
            stage.register_forward_hook(lambda mod, inp, out, name=name: self.maps.__setitem__(name, out))


class HintLoss(nn.Module):
    def __init__(self, student, teacher, stages):
        super().__init__()
        self.student_tap, self.teacher_tap = StageTap(student, stages), StageTap(teacher, stages)
        self.project = nn.ModuleDict({
            s: nn.Conv2d(student.widths[s], teacher.widths[s], 1, bias=False) for s in stages})

    def forward(self):
        loss = 0.0
        for name, t_map in self.teacher_tap.maps.items():
            s_map = self.project[name](self.student_tap.maps[name])
            loss = loss + F.mse_loss(F.normalize(s_map, dim=1), F.normalize(t_map.detach(), dim=1)) * s_map.size(1)
        return loss


def shapes(n, seed):
    """Noisy scenes with one filled shape per foreground class; 255 marks the border."""
    g = torch.Generator().manual_seed(seed)
    yy, xx = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    tint = torch.tensor([[0.0, 0, 0], [1, 0.2, 0], [0, 1, 0.3], [0.6, 0, 1]])
    img, lab = torch.empty(n, 3, SIZE, SIZE), torch.zeros(n, SIZE, SIZE, dtype=torch.long)
    for i in range(n):
        for c in range(1, CLASSES):
            cy, cx = torch.randint(4, SIZE - 4, (2,), generator=g).tolist()
            lab[i][(yy - cy) ** 2 + (xx - cx).abs() ** (1 + c % 2) < 16] = c
        img[i] = tint[lab[i]].permute(2, 0, 1) + 0.7 * torch.randn(3, SIZE, SIZE, generator=g)
    lab[:, [0, -1]] = 255
    lab[:, :, [0, -1]] = 255
    return img, lab


@torch.no_grad()
def mean_iou(net, data):
    net.eval()
    img, lab = data
    guess, ious = net(img).argmax(1), []
    for c in range(CLASSES):
        a, b = (guess == c) & (lab != 255), lab == c
        ious.append((a & b).sum().item() / max((a | b).sum().item(), 1))
    net.train()
    return sum(ious) / CLASSES


def fit_teacher(data, steps=90):
    net = SegNet(16)
    opt = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        pick = torch.randint(0, len(data[0]), (12,))
        loss = F.cross_entropy(net(data[0][pick]), data[1][pick], ignore_index=255)
        opt.zero_grad()
        loss.backward()
        opt.step()
    return net


def main():
    torch.manual_seed(0)
    train, val = shapes(120, 1), shapes(60, 2)
    teacher = fit_teacher(train)
    print(f"teacher mIoU {mean_iou(teacher, val):.3f}")
    teacher.eval()

    few = train[0][:24], train[1][:24]
    student = SegNet(5)
    hints = HintLoss(student, teacher, STAGES)
    opt = torch.optim.AdamW([*student.parameters(), *hints.project.parameters()], lr=4e-3)
    for step in range(1, 81):
        pick = torch.randint(0, len(train[0]), (12,))
        img = train[0][pick]
        with torch.no_grad():
            teacher(img)
        student(img)
        hint = hints()
        sup = torch.randint(0, len(few[0]), (6,))
        seg = F.cross_entropy(student(few[0][sup]), few[1][sup], ignore_index=255)
        loss = seg + hint
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 20 == 0:
            print(f"step {step} seg {seg.item():.3f} hint {hint.item():.3f} mIoU {mean_iou(student, val):.3f}")


if __name__ == "__main__":
    main()
