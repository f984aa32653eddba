"""The student is sharded (FSDP2) over two processes; the teacher is whole on each."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)
x, y = torch.load("train.pt")
x, y = x[rank::world], y[rank::world]


def mlp(width):
    return nn.Sequential(nn.Linear(16, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 4))


teacher = mlp(64)
teacher.load_state_dict(torch.load("teacher.pt"))
teacher.eval().requires_grad_(False)

student = nn.Sequential(nn.Linear(16, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 4))
mesh = init_device_mesh("cpu", (world,))
for layer in (student[0], student[3]):
    fully_shard(layer, mesh=mesh)
fully_shard(student, mesh=mesh)
optimizer = torch.optim.AdamW(student.parameters(), lr=5e-3)

for step in range(60):
    batch = torch.randperm(len(x))[:32]
    with torch.no_grad():
        t = teacher(x[batch])
    s = student(x[batch])
    soft = F.kl_div(F.log_softmax(s / 4, 1), F.softmax(t / 4, 1), reduction="batchmean") * 16
    loss = 0.3 * F.cross_entropy(s, y[batch]) + 0.7 * soft
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
dist.destroy_process_group()
