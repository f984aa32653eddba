"""Behaviour distillation: a privileged teacher policy labels actions for a recurrent student policy."""
import argparse
import torch
import torch.nn as nn


class Memory(nn.Module):
    def __init__(self, obs, hidden):
        super().__init__()
        self.rnn = nn.GRU(obs, hidden)

    def forward(self, x, h=None):
        return self.rnn(x, h)


class StudentTeacherRecurrent(nn.Module):
    def __init__(self, n_obs, n_priv, n_act, hidden=24):
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(n_priv, 64), nn.ELU(), nn.Linear(64, n_act))
        self.memory_s = Memory(n_obs, hidden)
        self.student = nn.Sequential(nn.Linear(hidden, 32), nn.ELU(), nn.Linear(32, n_act))

    def act_student(self, obs):
        feat, _ = self.memory_s(obs)
        return self.student(feat)

    @torch.no_grad()
    def act_teacher(self, priv):
        return self.teacher(priv)


class Distillation:
    def __init__(self, policy, lr, max_grad_norm):
        self.policy = policy
        self.optimizer = torch.optim.Adam(policy.student.parameters(), lr=lr)
        self.max_grad_norm = max_grad_norm

    def update(self, obs, priv, chunk=15):
        total, loss = 0.0, 0.0
        actions = self.policy.act_student(obs)
        target = self.policy.act_teacher(priv)
        loss = nn.functional.mse_loss(actions, target)
        self.policy.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.max_grad_norm)
        self.optimizer.step()
        return loss.item()


def episode(gen, steps=15, envs=16):
    vel = torch.randn(1, envs, 2, generator=gen).expand(steps, envs, 2)
    pos = vel.cumsum(0) * 0.2 + 0.05 * torch.randn(steps, envs, 2, generator=gen)
    return pos, torch.cat([pos, vel], -1)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--iters", type=int, default=150)
    ap.add_argument("--lr", type=float, default=3e-3)
    args = ap.parse_args([])
    torch.manual_seed(7)
    gen = torch.Generator().manual_seed(7)
    policy = StudentTeacherRecurrent(2, 4, 3)
    expert = torch.optim.Adam(policy.teacher.parameters(), lr=1e-2)
    w = torch.randn(4, 3, generator=gen)
    for _ in range(80):
        _, priv = episode(gen)
        loss = ((policy.teacher(priv) - torch.tanh(priv @ w)) ** 2).mean()
        expert.zero_grad(); loss.backward(); expert.step()
    algo = Distillation(policy, args.lr, 1.0)
    for it in range(args.iters):
        loss = algo.update(*episode(gen))
        if it % 50 == 0:
            print(f"iteration {it} behaviour loss {loss:.5f}")
    print(f"behaviour loss {loss:.5f}")


if __name__ == "__main__":
    main()
