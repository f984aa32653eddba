"""Feature- and Logit-KD in mixed precision, as written for a GPU; tests/test_cuda_script.py audits and breaks it."""

import hashlib
import os

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

device = torch.device(os.environ.get("DEVICE", "cuda"))
torch.manual_seed(0)
torch.backends.cudnn.benchmark = False
torch.use_deterministic_algorithms(True)


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.fc = nn.Linear(width, 4)

    def forward(self, x):
        features = self.body(self.stem(x))
        return self.fc(features.mean((2, 3))), features


labels = torch.randint(0, 4, (512,))
images = torch.randn(4, 3, 16, 16)[labels] + 0.7 * torch.randn(512, 3, 16, 16)
loader = DataLoader(
    TensorDataset(images, labels), batch_size=64, shuffle=True, drop_last=True, pin_memory=device.type == "cuda"
)


def batches():
    for x, y in loader:
        yield x.to(device, non_blocking=True, memory_format=torch.channels_last), y.to(device, non_blocking=True)


teacher = Net(32).to(device, memory_format=torch.channels_last)
fit = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
for _ in range(3):
    for x, y in batches():
        fit.zero_grad(set_to_none=True)
        F.cross_entropy(teacher(x)[0], y).backward()
        fit.step()
teacher.eval().requires_grad_(False)

student = Net(8).to(device, memory_format=torch.channels_last)
projector = nn.Conv2d(8, 32, 1).to(device)
parameters = [*student.parameters(), *projector.parameters()]
optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)
scaler = torch.amp.GradScaler(device.type, init_scale=256.0)
T = 4.0
student.train()
for _ in range(2):
    for x, y in batches():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.float16):
            with torch.no_grad():
                teacher_logits, hint = teacher(x)
            logits, features = student(x)
            matched = F.mse_loss(projector(features).float(), hint.float())
        soft = F.kl_div(
            F.log_softmax(logits.float() / T, 1), F.softmax(teacher_logits.float() / T, 1), reduction="batchmean"
        )
        loss = F.cross_entropy(logits.float(), y) + 0.5 * T * T * soft + 0.5 * matched
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()

digest = hashlib.sha256()
for value in [*student.state_dict().values(), *projector.state_dict().values()]:
    digest.update(value.detach().double().cpu().numpy().tobytes())
if device.type == "cuda":
    digest.update(torch.cuda.get_rng_state().numpy().tobytes())
print(digest.hexdigest())
