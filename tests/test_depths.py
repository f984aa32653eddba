"""Hidden states of stacks of blocks, one layer off; seen as a foreign script."""

import pytest
import torch
import torch.nn.functional as F
from conftest import SEED
from torch import nn

from kdbench.harness.zoo.clean.material import PAD, WORDS, Block, texts
from kdbench.harness.zoo.clean.run import observe


class Stack(nn.Module):
    """A language model that hands out its hidden states: the embeddings, and what each block answers."""

    def __init__(self, width, blocks):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, width), nn.Linear(width, WORDS)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))

    def forward(self, ids):
        hidden = [self.words(ids)]
        for block in self.blocks:
            hidden.append(block(hidden[-1]))
        return self.head(hidden[-1]), hidden


def loop(pairs, distance=F.mse_loss):
    """A training in which the student's hidden states are drawn to the teacher's, by pairs of numbers."""

    def training(watch):
        student, teacher = Stack(16, 2), Stack(24, 4).eval()
        projectors = nn.ModuleList(nn.Linear(16, 24) for _ in pairs)
        optimizer = torch.optim.Adam([*student.parameters(), *projectors.parameters()], lr=1e-2)
        with watch(student=student, teacher=teacher, projectors=projectors, optimizer=optimizer):
            for _ in range(4):
                ids, labels = texts()
                on = ids != PAD
                with torch.no_grad():
                    _, told = teacher(ids)
                logits, mine = student(ids)
                loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
                for (a, b), projector in zip(pairs, projectors, strict=True):
                    loss = loss + distance(projector(mine[a])[on], told[b][on])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return student

    return training


def cosine(a, b):
    return (1 - F.cosine_similarity(a, b, dim=-1)).mean()


def found(training):
    seen = observe(training, SEED, "foreign")
    assert seen.trace.broken is None
    return next(f for f in seen.report.findings if f.id == "KD106"), seen.trace.losses.sights[0].depths


@pytest.mark.parametrize("distance", [F.mse_loss, cosine])
def test_a_block_that_is_held_against_the_embeddings_is_named(distance):
    finding, _ = found(loop([(1, 0), (2, 3)], distance))
    assert finding.status == "fail" and "behind its block 1 of 2" in finding.message


def test_a_map_that_is_one_block_early_throughout_is_named():
    finding, _ = found(loop([(1, 1), (2, 3)]))
    assert finding.status == "fail" and finding.severity == "warn"
    assert "1 against 1, 2 against 3" in finding.message


@pytest.mark.parametrize("pairs", [[(1, 1), (2, 4)], [(1, 2), (2, 4)], [(0, 0), (2, 4)], [(2, 1)]])
def test_blocks_for_blocks_and_embeddings_for_embeddings_are_right(pairs):
    finding, depths = found(loop(pairs))
    assert finding.status == "pass"
    assert list(depths) == [((a, 2), (b, 4)) for a, b in reversed(pairs)]
