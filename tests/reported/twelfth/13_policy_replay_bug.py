"""Policy distillation in a grid world.

A tabular value-iteration expert acts as teacher; its action preferences are stored along
the student's own trajectories (DAgger) and a small policy network is fitted to them.
"""
from collections import deque

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

SIDE, ACTIONS = 7, 4
MOVES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])


class GridWorld:
    """Walk to the goal around walls. The observation is one reused float buffer."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.wall = np.zeros((SIDE, SIDE), bool)
        self.wall[2, 1:5] = self.wall[4, 3:7] = True
        self.goal = np.array([SIDE - 1, SIDE - 1])
        self.obs = np.zeros(2 * SIDE, dtype=np.float32)

    def _observe(self):
        self.obs[:] = 0
        self.obs[self.pos[0]] = 1
        self.obs[SIDE + self.pos[1]] = 1
        return self.obs

    def peek(self, pos, action):
        new = np.clip(pos + MOVES[action], 0, SIDE - 1)
        return pos if self.wall[tuple(new)] else new

    def reset(self):
        while True:
            self.pos = self.rng.integers(0, SIDE, 2)
            if not self.wall[tuple(self.pos)] and (self.pos != self.goal).any():
                return self._observe()

    def step(self, action):
        self.pos = self.peek(self.pos, action)
        done = bool((self.pos == self.goal).all())
        return self._observe(), (0.0 if done else -1.0), done


class ValueIterationExpert:
    def __init__(self, env, sweeps=40, gamma=0.95):
        value = np.zeros((SIDE, SIDE))
        self.q = np.zeros((SIDE, SIDE, ACTIONS), dtype=np.float32)
        for _ in range(sweeps):
            for r in range(SIDE):
                for c in range(SIDE):
                    for a in range(ACTIONS):
                        nxt = env.peek(np.array([r, c]), a)
                        done = (nxt == env.goal).all()
                        self.q[r, c, a] = 0.0 if done else -1.0 + gamma * value[tuple(nxt)]
            value = self.q.max(-1)

    def preferences(self, pos, tau=0.25):
        return torch.from_numpy(self.q[tuple(pos)] / tau).softmax(-1)


class Replay:
    def __init__(self, capacity):
        self.items = deque(maxlen=capacity)

    def add(self, obs, target):
        self.items.append((torch.from_numpy(obs), target))

    def sample(self, n, rng):
        pick = rng.integers(0, len(self.items), n)
        obs, target = zip(*(self.items[i] for i in pick))
        return torch.stack(obs), torch.stack(target)


@torch.no_grad()
def act(policy, obs, greedy=False):
    logits = policy(torch.from_numpy(obs))
    return int(logits.argmax()) if greedy else int(torch.multinomial(logits.softmax(-1), 1))


def play(env, policy, expert, replay, horizon=25):
    obs = env.reset()
    for _ in range(horizon):
        replay.add(obs, expert.preferences(env.pos))
        obs, _, done = env.step(act(policy, obs))
        if done:
            break


def evaluate(env, policy, episodes=40, horizon=25):
    total = solved = 0
    for _ in range(episodes):
        obs = env.reset()
        for _ in range(horizon):
            obs, reward, done = env.step(act(policy, obs, greedy=True))
            total += reward
            if done:
                solved += 1
                break
    return total / episodes, solved / episodes


def main():
    torch.manual_seed(0)
    rng = np.random.default_rng(1)
    env, eval_env = GridWorld(2), GridWorld(3)
    expert = ValueIterationExpert(env)
    policy = nn.Sequential(nn.Linear(2 * SIDE, 32), nn.Tanh(), nn.Linear(32, ACTIONS))
    opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
    replay = Replay(capacity=2000)
    for iteration in range(6):
        for _ in range(12):
            play(env, policy, expert, replay)
        losses = []
        for _ in range(30):
            obs, target = replay.sample(64, rng)
            loss = F.kl_div(policy(obs).log_softmax(-1), target, reduction="batchmean")
            opt.zero_grad()
            loss.backward()
            opt.step()
            losses.append(loss.item())
        ret, solved = evaluate(eval_env, policy)
        print(f"iteration {iteration}: replay {len(replay.items)} kl {np.mean(losses):.4f} "
              f"return {ret:.2f} solved {solved:.2f}")


if __name__ == "__main__":
    main()
