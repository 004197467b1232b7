"""A chain of transforms writes into memory that it has made itself, and into no other."""

import torch

from ssl_med.ops.random import sample_keys
from ssl_med.transforms import Brightness, Compose, Contrast


def test_what_a_chain_was_given_stays_and_one_memory_under_two_names_too():
    whole = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    before, image = whole.clone(), whole[:8]  # a part of a larger tensor, as the views of one size are
    batch = {"image": image, "mask": image, "key": sample_keys(0, torch.arange(8))}
    chain = Compose([Brightness((0.1, 0.2), 0.5), Contrast((1.5, 2.0), 0.5), Brightness((0.1, 0.2), 0.5)])
    after = chain(batch)
    assert torch.equal(whole, before)
    assert torch.equal(after["mask"], before[:8])
    alone = [chain({"image": before[row : row + 1], "key": batch["key"][row : row + 1]})["image"] for row in range(8)]
    assert torch.equal(after["image"], torch.cat(alone))
    assert not torch.equal(after["image"], before[:8])
