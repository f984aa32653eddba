"""DAgger-style distillation: privileged MLP teacher -> GRU student that only sees positions."""
import torch
import torch.nn as nn
torch.manual_seed(7)
torch.set_num_threads(1)
HORIZON, DT = 14, 0.2

class PointEnv:  # 2-D point mass in an unknown constant wind
    def __init__(self, n, gen):
        self.pos, self.vel = torch.randn(n, 2, generator=gen), torch.zeros(n, 2)
        self.wind = 1.5 * torch.randn(n, 2, generator=gen)

    def privileged(self):
        return torch.cat([self.pos, self.vel, self.wind], 1)

    def step(self, act):
        self.vel = self.vel + DT * (act.clamp(-4, 4) + self.wind - 0.3 * self.vel)
        self.pos = self.pos + DT * self.vel
        return (self.pos ** 2).sum(1) + 0.02 * (act ** 2).sum(1)


def mlp(i, o, h=64):
    return nn.Sequential(nn.Linear(i, h), nn.ELU(), nn.Linear(h, h), nn.ELU(), nn.Linear(h, o))


class StudentTeacherRecurrent(nn.Module):
    def __init__(self, teacher, hidden=48):
        super().__init__()
        self.teacher = teacher.eval().requires_grad_(False)
        self.memory_s = nn.GRU(2, hidden)
        self.student = mlp(hidden, 2)

    def act(self, obs, h):
        z, h = self.memory_s(obs[None], h)
        return self.student(z[0]), h

    @torch.no_grad()
    def evaluate(self, privileged):
        return self.teacher(privileged)


def train_teacher(gen, iters=150):
    net = mlp(6, 2)
    opt = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(iters):
        env, cost = PointEnv(64, gen), 0.0
        for _ in range(HORIZON):
            cost = cost + env.step(net(env.privileged())).mean()
        opt.zero_grad()
        cost.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        opt.step()
    print(f"teacher cost {cost.item() / HORIZON:.3f}")
    return net


class Distillation:
    def __init__(self, policy, lr=2e-3):
        self.policy = policy
        params = [*policy.student.parameters(), *policy.memory_s.parameters()]
        self.optimizer = torch.optim.Adam(params, lr=lr)

    def update(self, gen):
        env, h, loss = PointEnv(64, gen), None, 0.0
        for _ in range(HORIZON):
            a, h = self.policy.act(env.pos, h)
            loss = loss + (a - self.policy.evaluate(env.privileged())).pow(2).mean() / HORIZON
            env.step(a.detach())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        return loss.item()


@torch.no_grad()
def rollout_cost(policy, seed=99):
    env, h, cost = PointEnv(256, torch.Generator().manual_seed(seed)), None, 0.0
    for _ in range(HORIZON):
        a, h = policy.act(env.pos, h)
        cost += env.step(a).mean().item() / HORIZON
    return cost


gen = torch.Generator().manual_seed(1)
runner = Distillation(StudentTeacherRecurrent(train_teacher(gen)))
for it in range(1, 201):
    loss = runner.update(gen)
    if it % 50 == 0:
        print(f"iter {it} behaviour loss {loss:.4f} student cost {rollout_cost(runner.policy):.3f}")
