"""Distil a denoiser of packed latent sequences; conditioning and padding tokens are excluded by loss_mask."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(44)
SEQ, CH = 24, 8


class Denoiser(nn.Module):
    def __init__(self, dim, blocks):
        super().__init__()
        self.inp = nn.Linear(CH + 1, dim)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, batch_first=True, norm_first=True)
                                    for _ in range(blocks))
        self.out = nn.Linear(dim, CH)

    def forward(self, latents, sigma):
        h = self.inp(torch.cat([latents, sigma[:, None, None].expand(-1, SEQ, 1)], -1))
        for b in self.blocks:
            h = b(h)
        return self.out(h)


class DistillationTrainer:
    def __init__(self, student, teacher, loss_type="cosine", alpha=0.5):
        self.student, self.teacher = student, teacher.eval().requires_grad_(False)
        self.loss_type, self.alpha = loss_type, alpha
        self.opt = torch.optim.AdamW(student.parameters(), lr=2e-3)

    def _masked_mean(self, loss, loss_mask):
        return (loss * loss_mask).sum() / loss_mask.sum()

    def _distillation_loss(self, student_pred, teacher_pred, loss_mask):
        if self.loss_type == "mse":
            loss = F.mse_loss(student_pred, teacher_pred, reduction="none").mean(-1)
        elif self.loss_type == "cosine":
            cos_sim = F.cosine_similarity(student_pred, teacher_pred, dim=-1)
            loss = 1.0 - cos_sim
        else:
            raise ValueError(self.loss_type)
        return self._masked_mean(loss, loss_mask)

    def training_step(self, latents, noise, sigma, loss_mask):
        noisy = (1 - sigma[:, None, None]) * latents + sigma[:, None, None] * noise
        noisy = torch.where(loss_mask[..., None] > 0, noisy, latents)
        pred = self.student(noisy, sigma)
        with torch.no_grad():
            teacher_pred = self.teacher(noisy, sigma)
        task = self._masked_mean((pred - (noise - latents)).pow(2).mean(-1), loss_mask)
        distill = self._distillation_loss(pred, teacher_pred, loss_mask)
        loss = (1 - self.alpha) * task + self.alpha * distill
        self.opt.zero_grad(set_to_none=True)
        loss.backward()
        self.opt.step()
        return task.item(), distill.item()


def clips(n=16):
    t = torch.linspace(0, 3, SEQ)
    freq = torch.rand(n, 1, CH) * 2 + 0.5
    latents = torch.sin(t[None, :, None] * freq + 6.28 * torch.rand(n, 1, CH))
    first, last = torch.randint(2, 8, (n, 1)), torch.randint(14, SEQ + 1, (n, 1))
    pos = torch.arange(SEQ)[None]
    mask = ((pos >= first) & (pos < last)).float()
    latents = latents * (pos < last)[..., None]
    return latents, torch.randn_like(latents), torch.rand(n), mask


teacher = Denoiser(32, 2)
opt = torch.optim.AdamW(teacher.parameters(), lr=2e-3)
for _ in range(60):
    x, e, s, m = clips()
    noisy = (1 - s[:, None, None]) * x + s[:, None, None] * e
    loss = (((teacher(noisy, s) - (e - x)).pow(2).mean(-1)) * m).sum() / m.sum()
    opt.zero_grad(); loss.backward(); opt.step()
trainer = DistillationTrainer(Denoiser(16, 1), teacher)
for i in range(80):
    task, distill = trainer.training_step(*clips())
    if i % 20 == 0:
        print(f"step {i} task {task:.4f} distill {distill:.4f}")
print(f"task {task:.4f} distill {distill:.4f}")
