"""On-policy distillation: the student samples, the teacher scores each sampled token."""
import torch
import torch.nn as nn
import torch.nn.functional as F

torch.manual_seed(9)
VOCAB, PROMPT, RESP = 16, 3, 8


class Policy(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, h)
        self.cell = nn.GRU(h, h, batch_first=True)
        self.head = nn.Linear(h, VOCAB)

    def forward(self, ids):
        return self.head(self.cell(self.embed(ids))[0])

    @torch.no_grad()
    def generate(self, prompt):
        ids = prompt
        for _ in range(RESP):
            p = F.softmax(self(ids)[:, -1], -1)
            ids = torch.cat([ids, torch.multinomial(p, 1)], 1)
        return ids


def token_logprobs(model, ids):
    lp = F.log_softmax(model(ids)[:, :-1], -1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return lp[:, PROMPT - 1:]


def policy_loss(student_lp, old_lp, advantages, clip=0.2):
    ratio = (student_lp - old_lp).exp()
    a = -advantages * ratio
    b = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(a, b).mean()


def prompts(n=32):
    a = torch.randint(0, VOCAB, (n, 1))
    return (a + 2 * torch.arange(PROMPT)) % VOCAB


teacher = Policy(40)
opt_t = torch.optim.Adam(teacher.parameters(), lr=1e-2)
for _ in range(100):
    a = torch.randint(0, VOCAB, (32, 1))
    ids = (a + 2 * torch.arange(PROMPT + RESP)) % VOCAB
    loss = F.cross_entropy(teacher(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=0.1)
    opt_t.zero_grad(); loss.backward(); opt_t.step()
teacher.eval().requires_grad_(False)

student = Policy(24)
optimizer = torch.optim.Adam(student.parameters(), lr=5e-3)
for it in range(90):
    rollout = student.generate(prompts())
    with torch.no_grad():
        teacher_log_probs = token_logprobs(teacher, rollout)
        old_log_probs = token_logprobs(student, rollout)
    student_log_probs = token_logprobs(student, rollout)
    advantages = teacher_log_probs - student_log_probs
    loss = policy_loss(student_log_probs, old_log_probs, advantages)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    optimizer.step()
    if it % 30 == 0:
        print(f"iter {it} mean reverse-KL estimate {-advantages.mean().item():.4f}")
with torch.no_grad():
    r = student.generate(prompts(256))
    kl = (token_logprobs(student, r) - token_logprobs(teacher, r)).mean()
print(f"final reverse-KL estimate {kl.item():.4f}")
