"""Layer-wise distillation of a small BERT classifier, driven by callbacks."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

logging.set_verbosity_error()
torch.manual_seed(28)
VOCAB, SEQ, NLAB = 30, 9, 3
CLS_TOK = 1
A, B = 5, 6


def batch(n):
    """label: mark A only, mark B only, both"""
    ids = torch.randint(7, VOCAB, (n, SEQ))
    ids[:, 0] = CLS_TOK
    y = torch.randint(0, NLAB, (n,))
    place = torch.rand(n, SEQ - 1).argsort(1)[:, :2] + 1
    rows = torch.arange(n)
    for mark, k, col in ((A, 1, 0), (B, 0, 1)):
        sel = y != k
        ids[rows[sel], place[sel, col]] = mark
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, y


def bert(width, layers, drop):
    return BertForSequenceClassification(BertConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=32, num_labels=NLAB, initializer_range=0.08,
        hidden_dropout_prob=drop, attention_probs_dropout_prob=drop))


class Callback:
    def on_step_end(self, trainer): ...
    def on_train_end(self, trainer): ...


class Printer(Callback):
    def on_step_end(self, tr):
        if tr.step % 20 == 0:
            print(f"step {tr.step} " + " ".join(f"{k} {v:.4f}" for k, v in tr.logs.items()))


class Evaluate(Callback):
    def on_train_end(self, tr):
        print(f"student accuracy {accuracy(tr.student):.3f}")


class LayerTrainer:
    def __init__(self, teacher, student, layer_map, callbacks, lr=3e-3, gamma=1.0, tau=2.0):
        self.teacher, self.student, self.layer_map = teacher, student, layer_map
        ws, wt = student.config.hidden_size, teacher.config.hidden_size
        self.fit_dense = nn.ModuleDict({str(s): nn.Linear(ws, wt) for s in layer_map})
        self.opt = torch.optim.AdamW([*student.parameters(), *self.fit_dense.parameters()], lr=lr)
        self.callbacks, self.gamma, self.tau = callbacks, gamma, tau
        self.step, self.logs = 0, {}

    def losses(self, inputs):
        with torch.no_grad():
            out_t = self.teacher(**inputs, output_hidden_states=True)
        out_s = self.student(**inputs, output_hidden_states=True)
        # block outputs, numbered from 0
        hid_t = out_t.hidden_states[1:]
        hid_s = out_s.hidden_states[1:]
        rep = 0.0
        for s, t in self.layer_map.items():
            rep = rep + F.mse_loss(self.fit_dense[str(s)](hid_s[s]), hid_t[t])
        soft = F.kl_div(F.log_softmax(out_s.logits / self.tau, -1), F.softmax(out_t.logits / self.tau, -1),
                        reduction="batchmean") * self.tau ** 2
        return rep / len(self.layer_map), soft

    def fit(self, steps, bs=32):
        self.teacher.eval()
        self.student.train()
        for _ in range(steps):
            inputs, _ = batch(bs)
            rep, soft = self.losses(inputs)
            loss = self.gamma * rep + soft
            self.opt.zero_grad()
            loss.backward()
            self.opt.step()
            self.step += 1
            self.logs = {"rep": rep.item(), "soft": soft.item()}
            for c in self.callbacks:
                c.on_step_end(self)
        for c in self.callbacks:
            c.on_train_end(self)


@torch.no_grad()
def accuracy(model):
    was = model.training
    model.eval()
    st = torch.get_rng_state()
    torch.manual_seed(2024)
    x, y = batch(400)
    torch.set_rng_state(st)
    r = (model(**x).logits.argmax(-1) == y).float().mean().item()
    model.train(was)
    return r


if __name__ == "__main__":
    teacher = bert(48, 4, 0.0)
    opt = torch.optim.AdamW(teacher.parameters(), lr=1e-3)
    for _ in range(120):
        x, y = batch(48)
        teacher(**x, labels=y).loss.backward()
        opt.step()
        opt.zero_grad()
    teacher.requires_grad_(False)
    print(f"teacher accuracy {accuracy(teacher):.3f}")
    torch.manual_seed(29)
    trainer = LayerTrainer(teacher, bert(32, 2, 0.0), {0: 1, 1: 3}, [Printer(), Evaluate()])
    trainer.fit(80)
