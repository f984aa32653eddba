"""Token classification: distil a tagger downloaded "from someone else" into our own label scheme."""
import tempfile

import torch
import torch.nn.functional as F
from transformers import AutoModelForTokenClassification, BertConfig, BertForTokenClassification

OUR_LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
THEIR_LABELS = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
VOCAB, LENGTH = 100, 14


def tagger(labels, width, depth):
    return BertForTokenClassification(BertConfig(
        vocab_size=VOCAB, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=width * 2,
        max_position_embeddings=32, pad_token_id=0, id2label=dict(enumerate(labels)),
        label2id={name: i for i, name in enumerate(labels)}))


def sentences(n, gen, scheme):
    """Tokens 10-29 start a person, 30-49 a place; the token after a start continues it. 5-9 are word pieces (-100)."""
    ids = torch.randint(50, VOCAB, (n, LENGTH), generator=gen)
    tags = torch.full((n, LENGTH), scheme.index("O"))
    for i in range(n):
        for kind, low in (("PER", 10), ("LOC", 30)):
            at = int(torch.randint(1, LENGTH - 3, (1,), generator=gen))
            ids[i, at] = int(torch.randint(low, low + 20, (1,), generator=gen))
            tags[i, at], tags[i, at + 1] = scheme.index("B-" + kind), scheme.index("I-" + kind)
            ids[i, at + 1] = int(torch.randint(50, VOCAB, (1,), generator=gen))
            ids[i, at + 2] = int(torch.randint(5, 10, (1,), generator=gen))
            tags[i, at + 2] = -100
    size = torch.randint(9, LENGTH + 1, (n, 1), generator=gen)
    attn = torch.arange(LENGTH) < size
    return ids * attn, attn.long(), tags.masked_fill(~attn, -100)


def publish_teacher(folder, gen):
    model = tagger(THEIR_LABELS, 64, 2)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for _ in range(80):
        ids, attn, tags = sentences(24, gen, THEIR_LABELS)
        loss = model(input_ids=ids, attention_mask=attn, labels=tags).loss
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"teacher loss {loss.item():.3f}")
    model.save_pretrained(folder)


def class_order(teacher, student):
    """Index of every student class on the teacher's class axis."""
    return torch.tensor([teacher.config.label2id[student.config.id2label[i]] for i in range(student.num_labels)])


@torch.no_grad()
def f1_like(model, gen):
    model.eval()
    ids, attn, tags = sentences(64, gen, OUR_LABELS)
    pred = model(input_ids=ids, attention_mask=attn).logits.argmax(-1)
    entity = tags > 0
    return (pred[entity] == tags[entity]).float().mean().item()


def main():
    torch.manual_seed(77)
    gen = torch.Generator().manual_seed(77)
    with tempfile.TemporaryDirectory() as tmp:
        publish_teacher(tmp + "/teacher", gen)
        teacher = AutoModelForTokenClassification.from_pretrained(tmp + "/teacher").eval().requires_grad_(False)
        student = tagger(OUR_LABELS, 32, 1)
        order = class_order(teacher, student)
        print("teacher classes:", teacher.config.id2label, "->", order.tolist())
        opt = torch.optim.AdamW(student.parameters(), lr=4e-3)
        tau, alpha = 2.0, 0.6
        student.train()
        for step in range(70):
            ids, attn, tags = sentences(16, gen, OUR_LABELS)
            with torch.no_grad():
                t_logits = teacher(input_ids=ids, attention_mask=attn).logits
            s_logits = student(input_ids=ids, attention_mask=attn).logits
            labelled = tags != -100
            s, t = s_logits[labelled], t_logits[labelled]
            soft = F.kl_div((s / tau).log_softmax(-1), (t / tau).softmax(-1), reduction="batchmean") * tau ** 2
            loss = alpha * soft + (1 - alpha) * F.cross_entropy(s, tags[labelled])
            opt.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            opt.step()
            if step % 14 == 0:
                print(f"step {step} loss {loss.item():.4f} soft {soft.item():.4f}")
        print(f"entity token accuracy {f1_like(student, gen):.3f}")
        student.save_pretrained(tmp + "/student")
    print(f"final loss {loss.item():.4f}")


main()
