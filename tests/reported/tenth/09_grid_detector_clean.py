"""Feature imitation for a one-stage grid detector with two scales."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(31)
S, CLASSES, FEAT_W = 6, 3, 2.0


def scenes(n, seed):
    g = torch.Generator().manual_seed(seed)
    img = 0.3 * torch.randn(n, 3, 24, 24, generator=g)
    obj, box, cls = torch.zeros(n, S, S), torch.zeros(n, S, S, 2), torch.zeros(n, S, S, dtype=torch.long)
    for i in range(n):
        c = int(torch.randint(0, CLASSES, (1,), generator=g))
        cy, cx = torch.randint(4, 20, (2,), generator=g).tolist()
        h = int(torch.randint(2, 5, (1,), generator=g))
        img[i, c, cy - h:cy + h, cx - h:cx + h] += 1.5
        r, q = cy // 4, cx // 4
        obj[i, r, q] = 1
        box[i, r, q] = torch.tensor([h / 4.0, (cy % 4 + cx % 4) / 8.0])
        cls[i, r, q] = c
    return img, obj, box, cls


class Detector(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, w, 3, 2, 1), nn.BatchNorm2d(w), nn.LeakyReLU(0.1))
        self.down = nn.Sequential(nn.Conv2d(w, 2 * w, 3, 2, 1), nn.BatchNorm2d(2 * w), nn.LeakyReLU(0.1))
        self.neck = nn.Sequential(nn.Conv2d(2 * w, 2 * w, 3, 1, 1), nn.BatchNorm2d(2 * w), nn.LeakyReLU(0.1))
        self.head = nn.Conv2d(2 * w, 1 + 2 + CLASSES, 1)
        self.channels = (w, 2 * w)

    def forward(self, x):
        f1 = self.stem(x)
        f2 = self.neck(self.down(f1))
        return self.head(f2).permute(0, 2, 3, 1), (f1, f2)


def detection_loss(pred, obj, box, cls):
    pos = obj.bool()
    conf = F.binary_cross_entropy_with_logits(pred[..., 0], obj, pos_weight=torch.tensor(5.0))
    reg = F.smooth_l1_loss(pred[..., 1:3][pos], box[pos])
    kind = F.cross_entropy(pred[..., 3:][pos], cls[pos])
    return conf + reg + kind


@torch.no_grad()
def hit_rate(net, data):
    net.eval()
    img, obj, _, cls = data
    pred = net(img)[0]
    at = pred[..., 0].flatten(1).argmax(1)
    rows = torch.arange(len(img))
    right_cell = obj.flatten(1)[rows, at] == 1
    right_cls = pred[..., 3:].flatten(1, 2)[rows, at].argmax(-1) == cls.flatten(1)[rows, at]
    return (right_cell & right_cls).float().mean().item()


def minibatches(data, bs, epochs):
    for _ in range(epochs):
        for ids in torch.randperm(len(data[0])).split(bs):
            yield tuple(t[ids] for t in data)


train, test = scenes(800, 1), scenes(200, 2)

t_model = Detector(24)
opt = torch.optim.Adam(t_model.parameters(), lr=3e-3)
t_model.train()
for img, *gt in minibatches(train, 40, 8):
    opt.zero_grad()
    detection_loss(t_model(img)[0], *gt).backward()
    opt.step()
print("t_model hit rate", round(hit_rate(t_model, test), 3))
t_model.eval().requires_grad_(False)

model = Detector(6)
converters = nn.ModuleList(nn.Conv2d(s, t, 1) for s, t in zip(model.channels, t_model.channels))
groups = [{"params": model.parameters()}, {"params": converters.parameters()}]
optimizer = torch.optim.Adam(groups, lr=3e-3)
for step, (img, *gt) in enumerate(minibatches(train, 40, 6)):
    model.train()
    with torch.no_grad():
        t_feats = t_model(img)[1]
    pred, feats = model(img)
    imitation = sum(F.mse_loss(conv(f), t) for conv, f, t in zip(converters, feats, t_feats))
    loss = detection_loss(pred, *gt) + FEAT_W * imitation
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 0:
        print(f"step {step} total {loss.item():.3f} imitation {imitation.item():.3f}")
print("model hit rate", round(hit_rate(model, test), 3))
