"""DAgger-like distillation: a privileged policy (knows the goal) teaches a recurrent one (sees the goal only at the start)."""
import torch
import torch.nn as nn

torch.manual_seed(71)
HORIZON, ENVS = 24, 64


class PointEnv:
    """2-D double integrator, the goal is shown in the first two observations only"""

    def __init__(self, n):
        self.n = n

    def reset(self):
        self.pos = torch.randn(self.n, 2) * 0.3
        self.vel = torch.zeros(self.n, 2)
        self.goal = torch.rand(self.n, 2) * 4 - 2
        self.k = 0
        return self.observe()

    def observe(self):
        shown = self.goal if self.k < 2 else torch.zeros_like(self.goal)
        flag = torch.full((self.n, 1), float(self.k < 2))
        policy = torch.cat([self.pos, self.vel, shown, flag], 1)
        teacher = torch.cat([self.pos, self.vel, self.goal], 1)
        return {"policy": policy, "teacher": teacher}

    def step(self, act):
        self.vel = 0.8 * self.vel + 0.3 * act.clamp(-1.5, 1.5)
        self.pos = self.pos + 0.3 * self.vel
        self.k += 1
        return self.observe(), -(self.pos - self.goal).norm(dim=1)


class Memory(nn.Module):
    def __init__(self, n_in, hid):
        super().__init__()
        self.rnn = nn.GRUCell(n_in, hid)
        self.hidden = None

    def forward(self, x):
        if self.hidden is None:
            self.hidden = x.new_zeros(len(x), self.rnn.hidden_size)
        self.hidden = self.rnn(x, self.hidden)
        return self.hidden

    def reset(self):
        self.hidden = None

    def detach(self):
        self.hidden = self.hidden.detach()


def mlp(i, h, o):
    return nn.Sequential(nn.Linear(i, h), nn.ELU(), nn.Linear(h, h), nn.ELU(), nn.Linear(h, o))


class StudentTeacherRecurrent(nn.Module):
    def __init__(self, n_obs, n_priv, n_act, hid=48):
        super().__init__()
        self.memory_s = Memory(n_obs, hid)
        self.student = mlp(hid + n_obs, 48, n_act)
        self.teacher = mlp(n_priv, 64, n_act)
        self.std = 0.2

    def act_inference(self, obs):
        return self.student(torch.cat([self.memory_s(obs), obs], 1))

    @torch.no_grad()
    def evaluate(self, priv):
        return self.teacher(priv)


def train_teacher(policy, steps=300):
    # imitation of a PD controller on random states
    opt = torch.optim.Adam(policy.teacher.parameters(), lr=3e-3)
    for _ in range(steps):
        s = torch.randn(256, 6) * torch.tensor([1.5, 1.5, 1, 1, 1.3, 1.3])
        u = (1.6 * (s[:, 4:] - s[:, :2]) - 1.2 * s[:, 2:4]).clamp(-1.5, 1.5)
        loss = (policy.teacher(s) - u).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    policy.teacher.requires_grad_(False)


class Distillation:
    def __init__(self, policy, lr=3e-3, gradient_length=8, max_grad_norm=1.0):
        self.policy = policy
        self.params = [*policy.student.parameters()]
        self.optimizer = torch.optim.Adam(self.params, lr=lr)
        self.gradient_length, self.max_grad_norm = gradient_length, max_grad_norm

    def episode(self, env):
        obs, behaviour, n, acc = env.reset(), 0.0, 0, 0.0
        self.policy.memory_s.reset()
        for k in range(HORIZON):
            act = self.policy.act_inference(obs["policy"])
            want = self.policy.evaluate(obs["teacher"])
            acc = acc + (act - want).pow(2).mean()
            noise = self.policy.std * torch.randn_like(act)
            obs, _ = env.step((act + noise).detach())
            if (k + 1) % self.gradient_length == 0:
                loss = acc / self.gradient_length
                self.optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.params, self.max_grad_norm)
                self.optimizer.step()
                self.policy.memory_s.detach()
                behaviour, n, acc = behaviour + loss.item(), n + 1, 0.0
        return behaviour / n


@torch.no_grad()
def final_distance(policy, who):
    torch.manual_seed(300)
    env = PointEnv(200)
    obs = env.reset()
    policy.memory_s.reset()
    for _ in range(HORIZON):
        a = policy.evaluate(obs["teacher"]) if who == "teacher" else policy.act_inference(obs["policy"])
        obs, r = env.step(a)
    policy.memory_s.reset()
    return -r.mean().item()


def main():
    policy = StudentTeacherRecurrent(7, 6, 2)
    train_teacher(policy)
    print(f"teacher final distance {final_distance(policy, 'teacher'):.3f}, "
          f"student before {final_distance(policy, 'student'):.3f}")
    torch.manual_seed(72)
    runner, env = Distillation(policy), PointEnv(ENVS)
    for it in range(35):
        b = runner.episode(env)
        if it % 7 == 6:
            print(f"iteration {it + 1} behaviour loss {b:.4f}")
    print(f"student final distance {final_distance(policy, 'student'):.3f}")


if __name__ == "__main__":
    main()
