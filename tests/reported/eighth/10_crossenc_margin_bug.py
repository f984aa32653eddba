import random
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder, SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MarginMSELoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

TOPICS, WORDS = 4, 6
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_tokenizer():
    words = SPECIAL + [f"t{t}w{w}" for t in range(TOPICS) for w in range(WORDS)]
    tk = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tk.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tk.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=tk, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", mask_token="[MASK]", model_max_length=32)


def text(rng, topic, n, purity):
    pick = lambda: topic if rng.random() < purity else rng.randrange(TOPICS)
    return " ".join(f"t{pick()}w{rng.randrange(WORDS)}" for _ in range(n))


def triplets(rng, n):
    rows = {"query": [], "positive": [], "negative": []}
    for _ in range(n):
        topic = rng.randrange(TOPICS)
        other = (topic + rng.randrange(1, TOPICS)) % TOPICS
        rows["query"].append(text(rng, topic, 3, 1.0))
        rows["positive"].append(text(rng, topic, rng.randrange(5, 9), 0.9))
        rows["negative"].append(text(rng, other, rng.randrange(5, 9), 0.6))
    return rows


def bert_config(width):
    return dict(vocab_size=len(SPECIAL) + TOPICS * WORDS, hidden_size=width, num_hidden_layers=2,
                num_attention_heads=4, intermediate_size=2 * width, max_position_embeddings=48)


def train_reranker(rng, tokenizer, folder):
    model = BertForSequenceClassification(BertConfig(num_labels=1, **bert_config(48)))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(120):
        rows = triplets(rng, 12)
        feats = tokenizer(rows["query"] * 2, rows["positive"] + rows["negative"], padding=True, return_tensors="pt")
        target = torch.tensor([1.0] * 12 + [0.0] * 12)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**feats).logits.squeeze(-1), target)
        opt.zero_grad(); loss.backward(); opt.step()
    print(f"reranker bce {loss.item():.3f}")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main():
    torch.manual_seed(4)
    rng = random.Random(4)
    tokenizer = make_tokenizer()
    with tempfile.TemporaryDirectory() as tmp:
        train_reranker(rng, tokenizer, f"{tmp}/reranker")
        teacher = CrossEncoder(f"{tmp}/reranker", max_length=32, device="cpu")
        rows = triplets(rng, 480)

        def score(passages):
            pairs = list(zip(rows["query"], passages))
            return teacher.predict(pairs, show_progress_bar=False)

        rows["label"] = (score(rows["positive"]) - score(rows["negative"])).tolist()
        print(f"teacher margins: mean {sum(rows['label']) / len(rows['label']):.3f}")

        BertModel(BertConfig(**bert_config(32))).save_pretrained(f"{tmp}/encoder")
        tokenizer.save_pretrained(f"{tmp}/encoder")
        word = Transformer(f"{tmp}/encoder")
        student = SentenceTransformer(modules=[word, Pooling(32, pooling_mode="mean")], device="cpu")
        args = SentenceTransformerTrainingArguments(
            output_dir=f"{tmp}/run", max_steps=45, per_device_train_batch_size=16, learning_rate=1e-3,
            warmup_steps=4, logging_steps=15, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False)
        trainer = SentenceTransformerTrainer(model=student, args=args, train_dataset=Dataset.from_dict(rows),
                                             loss=MarginMSELoss(student))
        result = trainer.train()
        student.save(f"{tmp}/biencoder")
        print(f"final loss {result.training_loss:.4f}")


if __name__ == "__main__":
    main()
