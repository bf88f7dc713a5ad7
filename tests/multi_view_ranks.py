"""A small classifier and videos for tests of the multi-view test; run as a script, one rank of several.

`python multi_view_ranks.py OUT.npz`, in torchrun's environment.
"""

import dataclasses
import sys

import numpy as np
import torch
from torch import nn

from training.distributed import open_group
from training.finetuning import features, testing

T, H, W = 2, 6, 10
CLASSES, VIDEOS, VIEWS = 7, 11, 6
UNREAD = (4, 9)


@dataclasses.dataclass(frozen=True)
class Skipped:
    id: str
    reason: str


class Classifier(nn.Module):
    """Logits of a clip's mean colours in each frame; dropout, so that evaluation mode can be seen."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * T, CLASSES)
        self.dropout = nn.Dropout(0.5)
        self.largest = 0
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(3 * torch.randn(parameter.shape, generator=generator))

    def forward(self, video):
        assert video.shape[1:] == (3, T, H, W)
        assert video.dtype == torch.float32
        self.largest = max(self.largest, len(video))
        return self.linear(self.dropout(video.mean(dim=(3, 4)).flatten(1)))


class Encoder(Classifier):
    """Two tokens of a clip, of as many values as there are classes."""

    def forward(self, video):
        one = super().forward(video)
        return torch.stack([one, 2 * one + 1], dim=1)


def video(number, views=VIEWS):
    rng = np.random.default_rng([5, number])
    # a brightness of its own for each view, so that views are not alike
    frames = rng.integers(0, 256, (views, 1, 1, 1, 3)) + rng.integers(-40, 40, (views, T, H, W, 3))
    return {
        "frames": torch.from_numpy(frames.clip(0, 255).astype(np.uint8)),
        "label": int(rng.integers(CLASSES)),
        "id": f"video {number}.mp4",
    }


def items(rank=0, world_size=1):
    for number in range(rank, VIDEOS, world_size):
        if number in UNREAD:
            yield {"skipped": Skipped(f"video {number}.mp4", "no frame could be decoded"), "id": f"video {number}.mp4"}
        else:
            yield video(number)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with open_group("cpu") as group:
        given = group.rank, group.world_size
        result = testing.test(Classifier(), items(*given), group, most_views=4)
        encoded = features.encode(Encoder(), items(*given), group)
    np.savez(sys.argv[1], probabilities=result.probabilities, labels=result.labels, ids=np.array(result.ids),
             skipped=np.array(result.skipped), features=encoded.features)  # fmt: skip
