"""On-policy distillation: the student writes, the teacher grades every token.

There is no reward model: the per-token log ratio between the student and the teacher,
taken on the student's own samples, is all the signal the student gets.
"""
import argparse

import torch
import torch.nn as nn
import torch.nn.functional as F


class TinyLM(nn.Module):
    def __init__(self, vocab, dim):
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.mix = nn.Linear(2 * dim, 2 * dim)
        self.lm_head = nn.Linear(2 * dim, vocab)

    def forward(self, tokens):
        h = self.embed(tokens)
        prev = F.pad(h, (0, 0, 1, 0))[:, :-1]
        return self.lm_head(torch.tanh(self.mix(torch.cat([h, prev], -1))))

    @torch.no_grad()
    def generate(self, prompts, n_new):
        tokens = prompts
        for _ in range(n_new):
            probs = self(tokens[:, -2:])[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(probs, 1)], 1)
        return tokens


def token_logps(model, tokens, start):
    """Log-probabilities of the tokens from position `start` on."""
    logits = model(tokens[:, :-1])[:, start - 1:]
    return logits.log_softmax(-1).gather(-1, tokens[:, start:, None]).squeeze(-1)


def supervised(model, table, steps, lr, vocab, length=16):
    opt = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        seq = torch.randint(0, vocab, (64, 1))
        while seq.size(1) < length:
            seq = torch.cat([seq, torch.multinomial(table[seq[:, -1]], 1)], 1)
        loss = F.cross_entropy(model(seq[:, :-1]).flatten(0, 1), seq[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
    return loss.item()


class OnPolicyDistiller:
    def __init__(self, student, teacher, args):
        self.student, self.teacher, self.args = student, teacher.eval(), args
        self.optimizer = torch.optim.Adam(student.parameters(), lr=args.lr)

    def rollout(self):
        prompts = torch.randint(0, self.args.vocab, (self.args.batch, 2))
        return self.student.generate(prompts, self.args.new_tokens)

    def loss(self, tokens):
        s_logp = token_logps(self.student, tokens, start=2)
        with torch.no_grad():
            t_logp = token_logps(self.teacher, tokens, start=2)
        log_ratio = s_logp - t_logp
        advantage = -(log_ratio.detach() - log_ratio.detach().mean())
        return -(advantage * s_logp).mean(), log_ratio.mean().item()

    def step(self):
        tokens = self.rollout()
        loss, reverse_kl = self.loss(tokens)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return reverse_kl


@torch.no_grad()
def exact_reverse_kl(student, teacher, vocab):
    torch.manual_seed(123)
    tokens = student.generate(torch.randint(0, vocab, (256, 2)), 12)
    s, t = student(tokens).log_softmax(-1), teacher(tokens).log_softmax(-1)
    return (s.exp() * (s - t)).sum(-1)[:, 1:].mean().item()


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument("--vocab", type=int, default=16)
    ap.add_argument("--batch", type=int, default=128)
    ap.add_argument("--new-tokens", type=int, default=12)
    ap.add_argument("--steps", type=int, default=100)
    ap.add_argument("--lr", type=float, default=5e-3)
    args, _ = ap.parse_known_args()

    torch.manual_seed(0)
    target = torch.softmax(1.8 * torch.randn(args.vocab, args.vocab), -1)
    generic = 0.5 * target + 0.5 / args.vocab
    teacher, student = TinyLM(args.vocab, 32), TinyLM(args.vocab, 12)
    print(f"teacher ce {supervised(teacher, target, 90, 1e-2, args.vocab):.3f}")
    print(f"student warm start ce {supervised(student, generic, 60, 1e-2, args.vocab):.3f}")
    print(f"before: reverse KL {exact_reverse_kl(student, teacher, args.vocab):.4f}")

    torch.manual_seed(1)
    distiller = OnPolicyDistiller(student, teacher, args)
    for step in range(1, args.steps + 1):
        reverse_kl = distiller.step()
        if step % 25 == 0:
            print(f"step {step:3d}  sampled reverse KL {reverse_kl:.4f}")
    print(f"after: reverse KL {exact_reverse_kl(student, teacher, args.vocab):.4f}")


if __name__ == "__main__":
    main()
