"""Semantic segmentation: pixel-wise distillation between two small conv nets."""
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(77)
SIZE, CLASSES = 16, 4


def scenes(n):
    yy, xx = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    label = torch.zeros(n, SIZE, SIZE, dtype=torch.long)
    for c in range(1, CLASSES):
        cy, cx = torch.randint(2, SIZE - 2, (2, n, 1, 1))
        r = torch.randint(2, 6, (n, 1, 1))
        inside = (yy - cy).abs() + (xx - cx).abs() <= r if c == 1 else (yy - cy) ** 2 + (xx - cx) ** 2 <= r * r
        label[inside] = c
    palette = torch.tensor([[0.0, 0.0], [1.0, -0.3], [-0.6, 1.0], [0.5, 0.8]])
    image = palette[label].permute(0, 3, 1, 2) + 0.6 * torch.randn(n, 2, SIZE, SIZE)
    return image, label


class SegNet(nn.Module):
    def __init__(self, width, blocks):
        super().__init__()
        mods = [nn.Conv2d(2, width, 3, padding=1), nn.ReLU()]
        for _ in range(blocks):
            mods += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*mods)
        self.classifier = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x):
        return self.classifier(self.encoder(x))


class PixelWise(nn.Module):
    def forward(self, preds_s, preds_t):
        n, c, h, w = preds_t.shape
        rows_s = preds_s.contiguous().view(-1, c)
        rows_t = preds_t.detach().contiguous().view(-1, c)
        return -(rows_t.softmax(1) * rows_s.log_softmax(1)).sum(1).mean()


def miou(net, images, labels):
    with torch.no_grad():
        pred = net(images).argmax(1)
    scores = []
    for c in range(CLASSES):
        a, b = pred == c, labels == c
        scores.append((a & b).sum().item() / max(1, (a | b).sum().item()))
    return sum(scores) / CLASSES


class Session:
    def __init__(self, teacher, student):
        self.teacher, self.student = teacher, student
        self.pixel = PixelWise()

    def learn_teacher(self, steps):
        opt = torch.optim.Adam(self.teacher.parameters(), 4e-3)
        for _ in range(steps):
            x, y = scenes(12)
            opt.zero_grad()
            F.cross_entropy(self.teacher(x), y).backward()
            opt.step()
        self.teacher.eval()

    def distil(self, steps, w_pixel):
        opt = torch.optim.Adam(self.student.parameters(), 5e-3)
        for i in range(steps):
            x, y = scenes(12)
            with torch.no_grad():
                pt = self.teacher(x)
            ps = self.student(x)
            px = self.pixel(ps, pt)
            loss = 0.3 * F.cross_entropy(ps, y) + w_pixel * px
            opt.zero_grad()
            loss.backward()
            opt.step()
            if i % 40 == 0:
                print(f"{i:4d} pixel {px.item():.3f} total {loss.item():.3f}")


val = scenes(120)
session = Session(SegNet(20, 3), SegNet(6, 1))
session.learn_teacher(120)
print("teacher miou", miou(session.teacher, *val))
session.distil(200, 1.0)
print("student miou", miou(session.student, *val))
