"""A privileged controller is distilled into a recurrent one that only sees positions."""
import torch
from torch import nn

torch.manual_seed(318)
N_ENV, HORIZON, DT = 64, 24, 0.15


class PointMass:
    def reset(self, n):
        self.pos, self.vel = 2 * torch.randn(n, 2), 1.5 * torch.randn(n, 2)
        return self

    def step(self, force):
        self.vel = self.vel + DT * force
        self.pos = self.pos + DT * self.vel

    @property
    def privileged(self):
        return torch.cat([self.pos, self.vel], -1)

    def cost(self):
        return (self.pos ** 2).sum(-1) + 0.2 * (self.vel ** 2).sum(-1)


class PrivilegedActor(nn.Module):
    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))

    def act(self, obs):
        return self.mlp(obs)


class RecurrentActor(nn.Module):
    def __init__(self, hidden=32):
        super().__init__()
        self.memory = nn.GRUCell(2, hidden)
        self.actor = nn.Sequential(nn.Linear(hidden, 32), nn.Tanh(), nn.Linear(32, 2))

    def start(self, n):
        return torch.zeros(n, self.memory.hidden_size)

    def act(self, obs, h):
        h = self.memory(obs, h)
        return self.actor(h), h


def train_privileged(iters=90):
    net, env = PrivilegedActor(), PointMass()
    opt = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(iters):
        env.reset(N_ENV)
        total = 0.0
        for _ in range(HORIZON):
            a = net.act(env.privileged)
            env.step(a)
            total = total + env.cost().mean() + 0.02 * (a ** 2).sum(-1).mean()
        opt.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        opt.step()
    return net.eval().requires_grad_(False)


class Distillation:
    def __init__(self, student, teacher, lr=5e-3):
        self.student, self.teacher = student, teacher
        self.optimizer = torch.optim.Adam(student.actor.parameters(), lr=lr)

    def update(self, env):
        env.reset(N_ENV)
        h, behaviour = self.student.start(N_ENV), 0.0
        for _ in range(HORIZON):
            target = self.teacher.act(env.privileged)
            action, h = self.student.act(env.pos, h)
            behaviour = behaviour + nn.functional.mse_loss(action, target)
            env.step(action.detach())
        behaviour = behaviour / HORIZON
        self.optimizer.zero_grad()
        behaviour.backward()
        self.optimizer.step()
        return behaviour.item()


@torch.no_grad()
def score(kind, policy):
    env = PointMass().reset(400)
    h, c = (policy.start(400) if kind == "rnn" else None), 0.0
    for _ in range(HORIZON):
        if kind == "rnn":
            a, h = policy.act(env.pos, h)
        else:
            a = policy.act(env.privileged)
        env.step(a)
        c += env.cost().mean().item() / HORIZON
    return c


teacher = train_privileged()
student = RecurrentActor()
print("cost teacher", score("mlp", teacher), "student", score("rnn", student))
algo, env = Distillation(student, teacher), PointMass()
for it in range(160):
    loss = algo.update(env)
    if it % 40 == 0:
        print(it, "behaviour", round(loss, 4))
print("cost student", score("rnn", student))
