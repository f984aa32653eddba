"""Distil a single-scale, anchor-free detector into a thinner one.

The head follows the usual export convention: raw maps while training, scores and
boxes ready for post-processing in eval mode. The teacher is used in eval mode.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

NUM_CLASSES, GRID, STRIDE = 3, 8, 4


class Head(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.cls = nn.Conv2d(width, NUM_CLASSES, 1)
        self.box = nn.Conv2d(width, 2, 1)
        nn.init.constant_(self.cls.bias, -3.0)

    def forward(self, x):
        cls, box = self.cls(x), self.box(x)
        if self.training:
            return cls, box
        return cls.sigmoid(), box.exp() * STRIDE


class Detector(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.head = Head(width)

    def forward(self, x):
        return self.head(self.stem(x))


def scenes(n, g):
    """Noisy canvases with two coloured rectangles; targets live in the centre cells."""
    img = 0.35 * torch.randn(n, 3, GRID * STRIDE, GRID * STRIDE, generator=g)
    cls = torch.zeros(n, NUM_CLASSES, GRID, GRID)
    size = torch.zeros(n, 2, GRID, GRID)
    for i in range(n):
        for _ in range(2):
            cy, cx = torch.randint(1, GRID - 1, (2,), generator=g).tolist()
            h, w = torch.randint(2, 5, (2,), generator=g).tolist()
            c = int(torch.randint(0, NUM_CLASSES, (1,), generator=g))
            y, x = cy * STRIDE + 2, cx * STRIDE + 2
            img[i, c, y - h:y + h, x - w:x + w] += 1.0
            cls[i, :, cy, cx] = 0
            cls[i, c, cy, cx] = 1
            size[i, :, cy, cx] = torch.tensor([h, w]).float() / STRIDE
    return img, cls, size


def detection_loss(cls_logits, box_raw, cls_t, size_t):
    pos = cls_t.amax(1, keepdim=True)
    n_pos = pos.sum().clamp(min=1)
    cls_loss = F.binary_cross_entropy_with_logits(cls_logits, cls_t, reduction="sum") / n_pos
    box_loss = (F.l1_loss(box_raw.exp(), size_t, reduction="none") * pos).sum() / n_pos
    return cls_loss + box_loss


def distill_loss(student_out, teacher_out, n_pos):
    s_cls, s_box = student_out
    t_cls, t_box = teacher_out
    target = t_cls
    weight = target.amax(1, keepdim=True)
    cls_loss = F.binary_cross_entropy_with_logits(s_cls, target, reduction="sum")
    box_loss = (F.smooth_l1_loss(s_box.exp() * STRIDE, t_box, reduction="none") * weight).sum()
    return (cls_loss + box_loss) / n_pos


@torch.no_grad()
def evaluate(model, data, conf=0.25):
    was_training = model.training
    model.eval()
    img, cls_t, _ = data
    scores, _ = model(img)
    hit = scores > conf
    tp = (hit & (cls_t > 0)).sum().item()
    background = scores[cls_t.amax(1, keepdim=True).expand_as(scores) == 0].mean().item()
    model.train(was_training)
    return 2 * tp / max(hit.sum().item() + cls_t.sum().item(), 1), background


def run(model, train, steps, lr, teacher=None, kd_weight=1.0, batch=16):
    opt = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=5e-4)
    img, cls_t, size_t = train
    model.train()
    for step in range(1, steps + 1):
        pick = torch.randint(0, len(img), (batch,))
        out = model(img[pick])
        loss = detection_loss(*out, cls_t[pick], size_t[pick])
        if teacher is not None:
            with torch.no_grad():
                t_out = teacher(img[pick])
            loss = loss + kd_weight * distill_loss(out, t_out, cls_t[pick].sum().clamp(min=1))
        opt.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        opt.step()
        if step % 25 == 0:
            print(f"  step {step:3d} loss {loss.item():.3f}")
    return model


def main():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(5)
    train, val = scenes(120, g), scenes(48, g)
    print("teacher")
    teacher = run(Detector(16), train, 75, 0.01).eval().requires_grad_(False)
    print("  F1@0.25 %.3f, background score %.4f" % evaluate(teacher, val))
    print("student")
    student = run(Detector(8), train, 75, 0.01, teacher=teacher)
    print("  F1@0.25 %.3f, background score %.4f" % evaluate(student, val))


if __name__ == "__main__":
    main()
