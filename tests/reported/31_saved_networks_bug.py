"""Online distillation of an image-to-image generator; networks are stored when the run ends."""
import os
import tempfile
import torch
import torch.nn as nn
import torch.nn.functional as F


class Generator(nn.Module):
    def __init__(self, ngf):
        super().__init__()
        self.enc = nn.Sequential(nn.Conv2d(1, ngf, 3, 2, 1), nn.ReLU(), nn.Conv2d(ngf, ngf, 3, 1, 1), nn.ReLU())
        self.dec = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(ngf, 1, 3, 1, 1))

    def forward(self, x):
        f = self.enc(x)
        return self.dec(f), f


class OnlineDistiller:
    def __init__(self, ngf, save_dir):
        self.netG_teacher, self.netG_student = Generator(ngf), Generator(ngf)
        self.opt_T = torch.optim.Adam(self.netG_teacher.parameters(), lr=4e-3)
        self.opt_S = torch.optim.Adam(self.netG_student.parameters(), lr=4e-3)
        self.save_dir = save_dir

    def optimize_parameters(self, a, b):
        fake_t, feat_t = self.netG_teacher(a)
        loss_t = F.l1_loss(fake_t, b)
        self.opt_T.zero_grad()
        loss_t.backward()
        self.opt_T.step()
        fake_s, feat_s = self.netG_student(a)
        loss_s = F.l1_loss(fake_s, fake_t.detach()) + 0.1 * F.mse_loss(feat_s, feat_t.detach())
        self.opt_S.zero_grad()
        loss_s.backward()
        self.opt_S.step()
        return loss_t.item(), loss_s.item()

    def _save(self, net, name):
        torch.save(net.state_dict(), os.path.join(self.save_dir, name))

    def save_networks(self, epoch):
        self._save(self.netG_teacher, f"{epoch}_net_G.pth")

    def save_student_networks(self, epoch):
        self._save(self.netG_student, f"{epoch}_net_G.pth")


def batch(n=16):
    grid = torch.linspace(-1, 1, 16)
    cx, cy = torch.rand(2, n, 1, 1) - 0.5
    blob = torch.exp(-8 * ((grid[None, :, None] - cx) ** 2 + (grid[None, None] - cy) ** 2)).unsqueeze(1)
    return blob + 0.2 * torch.randn_like(blob), (blob > 0.5).float() - 0.5


torch.manual_seed(31)
folder = tempfile.mkdtemp()
model = OnlineDistiller(12, folder)
for epoch in range(4):
    for _ in range(25):
        lt, ls = model.optimize_parameters(*batch())
    print(f"epoch {epoch} teacher {lt:.4f} student {ls:.4f}")
model.save_networks("latest")

compressed = Generator(12)
compressed.load_state_dict(torch.load(os.path.join(folder, "latest_net_G.pth")))
with torch.no_grad():
    a, b = batch(100)
    print(f"compressed generator L1 {F.l1_loss(compressed(a)[0], b).item():.5f}")
