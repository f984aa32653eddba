"""Self-distillation with a privileged (answer-hinted) EMA teacher, on the student's own samples."""
import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass
class RunConfig:
    vocab: int = 60
    q_len: int = 4
    a_len: int = 4
    warm_steps: int = 110
    steps: int = 50
    batch: int = 12
    lr: float = 1e-3
    teacher_update_rate: float = 0.05
    seed: int = 2


class Task:
    """Answer = question shifted by its own first token. HINT-prefixed prompts carry the solution."""
    HINT, GO = 0, 1

    def __init__(self, cfg):
        self.cfg, self.gen = cfg, torch.Generator().manual_seed(cfg.seed)

    def questions(self, n):
        return torch.randint(2, self.cfg.vocab, (n, self.cfg.q_len), generator=self.gen)

    def solve(self, q):
        return (q + q[:, :1]) % (self.cfg.vocab - 2) + 2

    def plain(self, q):
        return torch.cat([q, torch.full((len(q), 1), self.GO)], 1)

    def hinted(self, q):
        mark = torch.full((len(q), 1), self.HINT)
        return torch.cat([mark, self.solve(q), mark, self.plain(q)], 1)


def answer_logits(model, prompt, answer):
    return model(torch.cat([prompt, answer], 1)).logits[:, prompt.size(1) - 1:-1].float()


def warm_up(model, task, cfg):
    opt = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(cfg.warm_steps):
        q = task.questions(32)
        prompt = task.hinted(q) if step % 4 else task.plain(q)
        y = task.solve(q)
        loss = F.cross_entropy(answer_logits(model, prompt, y).flatten(0, 1), y.flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return model


@torch.no_grad()
def update_teacher(teacher, student, rate):
    for t, s in zip(teacher.parameters(), student.parameters()):
        t.lerp_(s, 1.0 - rate)


@torch.no_grad()
def rollout(student, prompt, cfg):
    student.eval()
    out = student.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=1.0, top_k=0,
                           min_new_tokens=cfg.a_len, max_new_tokens=cfg.a_len)
    student.train()
    return out[:, prompt.size(1):]


@torch.no_grad()
def score(model, task):
    model.eval()
    q = task.questions(64)
    hit = answer_logits(model, task.plain(q), task.solve(q)).argmax(-1) == task.solve(q)
    model.train()
    return hit.float().mean().item()


def main(cfg=RunConfig()):
    torch.manual_seed(cfg.seed)
    task = Task(cfg)
    student = LlamaForCausalLM(LlamaConfig(vocab_size=cfg.vocab, hidden_size=32, intermediate_size=96,
                                           num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                                           max_position_embeddings=32, bos_token_id=None, eos_token_id=None))
    warm_up(student, task, cfg)
    teacher = copy.deepcopy(student).eval().requires_grad_(False)
    opt = torch.optim.AdamW(student.parameters(), lr=cfg.lr)
    print(f"before: {score(student, task):.3f}")
    student.train()
    for step in range(cfg.steps):
        q = task.questions(cfg.batch)
        y = rollout(student, task.plain(q), cfg)
        with torch.no_grad():
            log_t = answer_logits(teacher, task.hinted(q), y).log_softmax(-1)
        log_s = answer_logits(student, task.plain(q), y).log_softmax(-1)
        loss = (log_s.exp() * (log_s - log_t)).sum(-1).mean()
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        opt.step()
        update_teacher(teacher, student, cfg.teacher_update_rate)
        if step % 10 == 0:
            print(f"{step:3d} reverse kl {loss.item():.4f}")
    print(f"after: {score(student, task):.3f}")
    print(f"final loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
