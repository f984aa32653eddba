"""A2C-style agent on a contextual task, with a small policy distilled from the agent as it learns."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(34)
STATE, ACTIONS, ENVS = 8, 4, 32
REWARD = torch.randn(STATE, ACTIONS)


class ActorCritic(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(STATE, hidden), nn.ReLU())
        self.actor, self.critic = nn.Linear(hidden, ACTIONS), nn.Linear(hidden, 1)

    def forward(self, x):
        h = self.features(x)
        return self.actor(h), self.critic(h)


class SmallPolicy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(STATE, 12), nn.ReLU(), nn.Linear(12, ACTIONS))

    def forward(self, x):
        return self.layers(x)


actor_critic, distil_policy = ActorCritic(64), SmallPolicy()
optimizer = torch.optim.RMSprop(actor_critic.parameters(), lr=2e-3, eps=1e-5)
distil_optimizer = torch.optim.Adam(distil_policy.parameters(), lr=5e-3)

for update in range(150):
    state = torch.randn(ENVS, STATE)
    logit, value = actor_critic(state)
    probs = F.softmax(logit, 1)
    action = probs.multinomial(1)
    reward = (state @ REWARD).gather(1, action)
    advantage = reward - value
    log_prob = F.log_softmax(logit, 1)
    action_loss = -(advantage.detach() * log_prob.gather(1, action)).mean()
    entropy = -(probs * log_prob).sum(1).mean()
    loss = 0.5 * advantage.pow(2).mean() + action_loss - 0.01 * entropy
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(actor_critic.parameters(), 0.5)
    optimizer.step()

    distil_logit = distil_policy(state)
    distil_loss = 0.5 * (probs.detach() * (log_prob.detach() - F.log_softmax(distil_logit, 1))).sum(1).mean()
    distil_optimizer.zero_grad()
    distil_loss.backward()
    optimizer.step()
    if update % 30 == 0:
        print(f"update {update} reward {reward.mean().item():.3f} distil {distil_loss.item():.4f}")

with torch.no_grad():
    s = torch.randn(2000, STATE)
    same = (distil_policy(s).argmax(1) == actor_critic(s)[0].argmax(1)).float().mean()
print(f"distilled policy agrees {same.item():.4f}")
