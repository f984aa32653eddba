"""What the tests of the laws share."""

import json

import torch
from torch.utils.data import Dataset

from kdbench.audits.finding import Finding, Report


def holds(finding, status, *words):
    """Assert status and words of a finding, and that a report can print it and write it as JSON."""
    assert isinstance(finding, Finding)
    assert finding.status == status, finding.message
    for word in words:
        assert word in finding.message, finding.message
    assert finding.mend and finding.phase == "static"
    json.loads(Report((finding,)).to_json())
    assert finding.id in str(Report((finding,)))


class Drawn(Dataset):
    """Eight samples, each whatever `draw` returns; picklable where `draw` is."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.draw()


def seeded(number):
    return torch.Generator().manual_seed(number)
