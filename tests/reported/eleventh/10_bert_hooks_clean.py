"""Hidden-state distillation of a tiny BERT through forward hooks and projectors.

Teacher: 4 layers of width 64; student: 2 layers of width 32.  Student layer i is
matched with teacher layer 2i+1.
"""
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.utils import logging

logging.set_verbosity_error()
VOCAB, LEN, CLASSES, CLS = 60, 16, 4, 1


def build(width, layers):
    return BertForSequenceClassification(BertConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * width, max_position_embeddings=LEN, num_labels=CLASSES,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0))


def texts(n, gen):
    """The topic with most of its words in the text is the label."""
    y = torch.randint(0, CLASSES, (n,), generator=gen)
    words = torch.randint(4, VOCAB, (n, LEN), generator=gen)
    topic = 4 + 14 * y[:, None] + torch.randint(0, 14, (n, LEN), generator=gen)
    ids = torch.where(torch.rand(n, LEN, generator=gen) < 0.3, topic, words)
    ids[:, 0] = CLS
    return ids, y


class Tap:
    """Keeps what the hooked layers gave, in call order."""

    def __init__(self, layers):
        self.records = []
        self.handles = [layer.register_forward_hook(self._keep) for layer in layers]

    def _keep(self, module, inputs, output):
        self.records.append(output[0] if isinstance(output, tuple) else output)

    def clear(self):
        self.records.clear()

    def close(self):
        for h in self.handles:
            h.remove()


class FeatureDistiller(nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.student = student
        self.projectors = nn.ModuleList(nn.Linear(32, 64) for _ in range(2))
        self.__dict__["teacher"] = teacher
        self.student_tap = Tap(student.bert.encoder.layer)
        self.teacher_tap = Tap([teacher.bert.encoder.layer[i] for i in (1, 3)])

    def forward(self, ids, labels):
        self.student_tap.clear()
        self.teacher_tap.clear()
        with torch.no_grad():
            soft = self.teacher(input_ids=ids).logits.softmax(-1)
        logits = self.student(input_ids=ids).logits
        pairs = zip(self.projectors, self.student_tap.records, self.teacher_tap.records)
        feature = sum(F.mse_loss(proj(s), F.layer_norm(t, t.shape[-1:])) for proj, s, t in pairs) / 2
        kd = F.kl_div(logits.log_softmax(-1), soft, reduction="batchmean")
        return {"ce": F.cross_entropy(logits, labels), "kd": kd, "feature": feature}


@torch.no_grad()
def accuracy(model, ids, y):
    model.eval()
    return (model(input_ids=ids).logits.argmax(-1) == y).float().mean().item()


def main():
    torch.manual_seed(0)
    gen = torch.Generator().manual_seed(0)
    test = texts(600, torch.Generator().manual_seed(42))
    teacher = build(64, 4)
    opt = torch.optim.AdamW(teacher.parameters(), lr=1e-3)
    for _ in range(120):
        ids, y = texts(48, gen)
        loss = teacher(input_ids=ids, labels=y).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher accuracy {accuracy(teacher, *test):.3f}")
    teacher.eval().requires_grad_(False)

    model = FeatureDistiller(build(32, 2), teacher)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    model.train()
    for step in range(80):
        ids, y = texts(32, gen)
        parts = model(ids, y)
        loss = 0.2 * parts["ce"] + 0.8 * parts["kd"] + 0.5 * parts["feature"]
        opt.zero_grad()
        loss.backward()
        opt.step()
        if step % 20 == 19:
            print(f"step {step + 1} " + " ".join(f"{k} {v.item():.4f}" for k, v in parts.items()))
    model.student_tap.close()
    model.teacher_tap.close()
    print(f"student accuracy {accuracy(model.student, *test):.3f}")


if __name__ == "__main__":
    main()
