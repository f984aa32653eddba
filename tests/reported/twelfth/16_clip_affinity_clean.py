"""Affinity distillation of a two-tower image-text model.

The small towers copy the teacher's in-batch image-to-text and text-to-image affinities.
The student has its own learnable logit scale, started at the teacher's value.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

IMG, TXT, CONCEPTS = 24, 18, 40


class TwoTower(nn.Module):
    def __init__(self, hidden, dim):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(IMG, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.text = nn.Sequential(nn.Linear(TXT, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode(self, image, text):
        return F.normalize(self.image(image), dim=-1), F.normalize(self.text(text), dim=-1)

    def forward(self, image, text):
        i, t = self.encode(image, text)
        return self.logit_scale.exp() * i @ t.T


class Pairs:
    """Images and captions of shared concepts, each seen through its own noisy view."""

    def __init__(self, seed=0):
        self.g = torch.Generator().manual_seed(seed)
        latent = torch.randn(CONCEPTS, 8, generator=self.g)
        self.to_img = torch.randn(8, IMG, generator=self.g)
        self.to_txt = torch.randn(8, TXT, generator=self.g)
        self.latent = latent

    def batch(self, n):
        z = self.latent[torch.randint(0, CONCEPTS, (n,), generator=self.g)]
        z = z + 0.5 * torch.randn(n, 8, generator=self.g)
        image = torch.tanh(z @ self.to_img / 2) + 0.2 * torch.randn(n, IMG, generator=self.g)
        text = torch.tanh(z @ self.to_txt / 2) + 0.2 * torch.randn(n, TXT, generator=self.g)
        return image, text


def contrastive(logits):
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class AffinityMimicking(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False)

    def teacher_logits(self, image, text):
        with torch.no_grad():
            i, t = self.teacher.encode(image, text)
        scale = self.teacher.logit_scale.exp()
        return scale * i @ t.T

    def forward(self, image, text):
        s, t = self.student(image, text), self.teacher_logits(image, text)
        image_to_text = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
        text_to_image = F.kl_div(s.T.log_softmax(1), t.T.softmax(1), reduction="batchmean")
        return (image_to_text + text_to_image) / 2


@torch.no_grad()
def recall_at_1(model, image, text):
    logits = model(image, text)
    return (logits.argmax(1) == torch.arange(len(logits))).float().mean().item()


def pretrain(model, pairs, steps=160):
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = contrastive(model(*pairs.batch(64)))
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


def split_decay(model):
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]


def main():
    torch.manual_seed(0)
    pairs = Pairs()
    held_out = pairs.batch(128)
    teacher = pretrain(TwoTower(96, 24), pairs)
    print(f"teacher R@1 {recall_at_1(teacher, *held_out):.3f}, scale {teacher.logit_scale.exp().item():.2f}")

    student = TwoTower(16, 5)
    student.logit_scale.data.copy_(teacher.logit_scale.data)
    objective = AffinityMimicking(student, teacher)
    opt = torch.optim.AdamW(split_decay(student), lr=1e-2)
    for step in range(1, 161):
        loss = objective(*pairs.batch(64))
        opt.zero_grad()
        loss.backward()
        opt.step()
        with torch.no_grad():
            student.logit_scale.clamp_(0, math.log(100))
        if step % 40 == 0:
            print(f"step {step:3d} affinity loss {loss.item():.3f} R@1 {recall_at_1(student, *held_out):.3f} "
                  f"scale {student.logit_scale.exp().item():.2f}")


if __name__ == "__main__":
    main()
