"""Distillation trainer in the manner of the big libraries: output objects, compute_loss, an arguments dataclass."""

import os
import tempfile
from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.data import DataLoader, StackDataset


@dataclass
class ModelOutput:
    logits: torch.Tensor
    loss: Optional[torch.Tensor] = None


@dataclass
class DistillationArguments:
    learning_rate: float = 4e-3
    per_device_train_batch_size: int = 64
    max_steps: int = 50
    max_grad_norm: float = 1.0
    temperature: float = 2.0
    alpha: float = 0.5


class PatchClassifier(nn.Module):
    def __init__(self, hidden_size, num_hidden_layers, num_labels=8, dropout=0.1):
        super().__init__()
        self.patch_embeddings = nn.Conv2d(3, hidden_size, kernel_size=4, stride=4)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, hidden_size), nn.GELU())
            for _ in range(num_hidden_layers)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)

    def forward(self, pixel_values, labels=None):
        hidden = self.patch_embeddings(pixel_values).flatten(2).transpose(1, 2)
        for layer in self.layers:
            hidden = hidden + layer(hidden)
        logits = self.classifier(self.dropout(hidden.mean(1)))
        return ModelOutput(logits, None if labels is None else F.cross_entropy(logits, labels))

    def save_pretrained(self, folder):
        torch.save(self.state_dict(), os.path.join(folder, "pytorch_model.bin"))

    @classmethod
    def from_pretrained(cls, folder, **config):
        model = cls(**config)
        model.load_state_dict(torch.load(os.path.join(folder, "pytorch_model.bin")))
        return model.eval()


def toy_images(n, base):
    labels = torch.randint(len(base), (n,))
    return StackDataset(pixel_values=base[labels] + 1.2 * torch.randn(n, 3, 16, 16), labels=labels)


class Trainer:
    def __init__(self, model, args, train_dataset):
        self.model, self.args, self.train_dataset = model, args, train_dataset

    def compute_loss(self, model, inputs):
        return model(**inputs).loss

    def train(self):
        args, step = self.args, 0
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=args.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: max(0.0, 1 - s / args.max_steps))
        loader = DataLoader(self.train_dataset, args.per_device_train_batch_size, shuffle=True, drop_last=True)
        self.model.train()
        while step < args.max_steps:
            for inputs in loader:
                loss = self.compute_loss(self.model, inputs)
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                step += 1
            print({"loss": round(loss.item(), 4), "step": step})

    @torch.no_grad()
    def evaluate(self, dataset):
        logits = self.model.eval()(dataset.datasets["pixel_values"]).logits
        return (logits.argmax(-1) == dataset.datasets["labels"]).float().mean().item()


class DistillationTrainer(Trainer):
    def __init__(self, *args, teacher_model, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher_model

    def compute_loss(self, model, inputs):
        outputs_student = model(**inputs)
        with torch.no_grad():
            outputs_teacher = self.teacher(**inputs)
        loss_fct, temperature = nn.KLDivLoss(reduction="batchmean"), self.args.temperature
        loss_kd = temperature**2 * loss_fct(
            F.log_softmax(outputs_student.logits / temperature, dim=-1),
            F.softmax(outputs_teacher.logits / temperature, dim=-1),
        )
        return self.args.alpha * outputs_student.loss + (1.0 - self.args.alpha) * loss_kd


if __name__ == "__main__":
    args = DistillationArguments()
    torch.manual_seed(4)
    base = torch.randn(8, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    train_set, eval_set = toy_images(640, base), toy_images(250, base)
    with tempfile.TemporaryDirectory() as output_dir:
        pretraining = Trainer(PatchClassifier(48, 3), args, train_set)
        pretraining.train()
        pretraining.model.save_pretrained(output_dir)
        teacher = PatchClassifier.from_pretrained(output_dir, hidden_size=48, num_hidden_layers=3)
    trainer = DistillationTrainer(PatchClassifier(24, 1), args, train_set, teacher_model=teacher)
    trainer.train()
    print("teacher accuracy", pretraining.evaluate(eval_set), "student accuracy", trainer.evaluate(eval_set))
