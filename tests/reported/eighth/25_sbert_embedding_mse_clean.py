import random
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

GROUPS, PER_GROUP, WIDTH = 6, 8, 48
WORDS = [f"g{g}_{i}" for g in range(GROUPS) for i in range(PER_GROUP)]


def tokenizer():
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"] + WORDS
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", model_max_length=24)


def sentence(rng, group):
    pool = WORDS[group * PER_GROUP:(group + 1) * PER_GROUP]
    return " ".join(rng.choice(pool if rng.random() < 0.8 else WORDS) for _ in range(rng.randrange(4, 11)))


def encoder(tok, layers, folder):
    config = BertConfig(vocab_size=len(tok), hidden_size=WIDTH, num_hidden_layers=layers, num_attention_heads=4,
                        intermediate_size=2 * WIDTH, max_position_embeddings=32)
    BertModel(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(folder), Pooling(WIDTH, pooling_mode="mean")], device="cpu")


def contrastive_warmup(model, tok, rng, steps=60):
    """Gives the teacher meaningful embeddings: sentences of one group attract each other."""
    optim = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(steps):
        groups = list(range(GROUPS)) * 2
        feats = dict(tok([sentence(rng, g) for g in groups], padding=True, return_tensors="pt"))
        emb = torch.nn.functional.normalize(model(feats)["sentence_embedding"], dim=-1)
        scores = emb[:GROUPS] @ emb[GROUPS:].t() / 0.1
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(GROUPS))
        optim.zero_grad()
        loss.backward()
        optim.step()
    print(f"teacher contrastive loss {loss.item():.3f}")
    model.eval()


def group_accuracy(model, rng):
    protos = model.encode([sentence(rng, g) for g in range(GROUPS)], convert_to_tensor=True, show_progress_bar=False)
    queries = model.encode([sentence(rng, g) for g in range(GROUPS)] * 4, convert_to_tensor=True, show_progress_bar=False)
    best = model.similarity(queries, protos).argmax(-1)
    return (best == torch.arange(GROUPS).repeat(4)).float().mean().item()


def main():
    torch.manual_seed(25)
    rng = random.Random(25)
    tok = tokenizer()
    with tempfile.TemporaryDirectory() as tmp:
        teacher = encoder(tok, 2, f"{tmp}/teacher")
        contrastive_warmup(teacher, tok, rng)
        sentences = [sentence(rng, i % GROUPS) for i in range(480)]
        data = Dataset.from_dict({"sentence": sentences}).shuffle(seed=25)
        labels = teacher.encode(list(data["sentence"]), show_progress_bar=False)
        data = data.add_column("label", labels.tolist())
        student = encoder(tok, 1, f"{tmp}/student")
        args = SentenceTransformerTrainingArguments(
            output_dir=f"{tmp}/run", max_steps=45, per_device_train_batch_size=16, learning_rate=2e-3, warmup_steps=4,
            logging_steps=15, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False)
        trainer = SentenceTransformerTrainer(model=student, args=args, train_dataset=data, loss=MSELoss(student))
        result = trainer.train()
        student.save(f"{tmp}/distilled")
        print(f"group accuracy teacher {group_accuracy(teacher, rng):.3f} student {group_accuracy(student, rng):.3f}")
        print(f"final loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()
