"""Keypoint heatmaps: nose, left/right eye, left/right hand of a front-facing
figure ("left" is the one on the left of the picture).  The teacher sees the
stored image; the student sees a randomly mirrored, noisier one.
"""
import os
import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

SIZE, KEYPOINTS = 26, 5
MIRROR = torch.tensor([0, 2, 1, 4, 3])
OFFSETS = torch.tensor([[0.0, 0.0], [-3.0, -3.0], [3.0, -3.0], [-7.0, 5.0], [7.0, 5.0]])
LEVEL = torch.tensor([1.0, 0.6, 0.6, 0.8, 0.8])


def blobs(xy, sigma):
    grid = torch.arange(SIZE, dtype=torch.float32)
    dx = (grid[None, None, :] - xy[..., 0:1]) ** 2
    dy = (grid[None, None, :] - xy[..., 1:2]) ** 2
    return torch.exp(-(dy[..., :, None] + dx[..., None, :]) / (2 * sigma ** 2))


class Figures(Dataset):
    def __init__(self, n, seed):
        g = torch.Generator().manual_seed(seed)
        centre = 9 + 8 * torch.rand(n, 1, 2, generator=g)
        self.xy = (centre + OFFSETS + 0.6 * torch.randn(n, KEYPOINTS, 2, generator=g)).clamp(0, SIZE - 1)
        image = (LEVEL[None, :, None, None] * blobs(self.xy, 1.0)).sum(1, keepdim=True)
        self.image = image + 0.1 * torch.randn(image.shape, generator=g)

    def __len__(self):
        return len(self.image)

    def __getitem__(self, i):
        return {"image": self.image[i], "heat": blobs(self.xy[i][None], 1.5)[0], "xy": self.xy[i]}


class HeatNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        layers, c = [], 1
        for dilation in (1, 2, 4, 4, 2):
            layers += [nn.Conv2d(c, width, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            c = width
        self.net = nn.Sequential(*layers, nn.Conv2d(c, KEYPOINTS, 1))

    def forward(self, x):
        return self.net(x)


def mirror_maps(maps):
    return maps.flip(-1)[:, MIRROR]


@torch.no_grad()
def pck(net, data, radius=2.0):
    net.eval()
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    flat = net(batch["image"]).flatten(2).argmax(-1)
    found = torch.stack([flat % SIZE, flat // SIZE], -1).float()
    return ((found - batch["xy"]).norm(dim=-1) < radius).float().mean().item()


def train_teacher(data, path):
    net = HeatNet(14).train()
    opt = torch.optim.Adam(net.parameters(), lr=4e-3)
    for _ in range(3):
        for b in DataLoader(data, batch_size=16, shuffle=True):
            loss = F.mse_loss(net(b["image"]), b["heat"])
            opt.zero_grad()
            loss.backward()
            opt.step()
    torch.save(net.state_dict(), path)


def main():
    torch.manual_seed(4)
    train, test = Figures(480, 0), Figures(120, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "teacher.pt")
        train_teacher(train, path)
        teacher = HeatNet(14)
        teacher.load_state_dict(torch.load(path))
    teacher.eval().requires_grad_(False)
    print(f"teacher PCK {pck(teacher, test):.3f}")

    student = HeatNet(8)
    opt = torch.optim.Adam(student.parameters(), lr=6e-3)
    step = 0
    for _ in range(3):
        student.train()
        for b in DataLoader(train, batch_size=16, shuffle=True):
            image, heat = b["image"], b["heat"]
            with torch.no_grad():
                soft = teacher(image)
            flip = (torch.rand(len(image)) < 0.5)[:, None, None, None]
            view = torch.where(flip, image.flip(-1), image) + 0.05 * torch.randn_like(image)
            heat = torch.where(flip, mirror_maps(heat), heat)
            soft = torch.where(flip, mirror_maps(soft), soft)
            out = student(view)
            kd, gt = F.mse_loss(out, soft), F.mse_loss(out, heat)
            loss = 0.7 * kd + 0.3 * gt
            opt.zero_grad()
            loss.backward()
            opt.step()
            step += 1
            if step % 30 == 0:
                print(f"step {step} kd {kd.item():.5f} gt {gt.item():.5f}")
    print(f"student PCK {pck(student, test):.3f}")


if __name__ == "__main__":
    main()
