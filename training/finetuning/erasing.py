"""Random erasing (Zhong et al., AAAI 2020) of the clips of a batch, by timm: the same in all of a clip's frames.

timm draws the rectangles from the module `random` and the noise from PyTorch's generator of the device; checkpoints
keep the states of both.
"""

from timm.data.random_erasing import RandomErasing
from torch import Tensor


class ClipErasing:
    """With chance `prob`, one rectangle of a clip, the same in all of its frames, becomes noise drawn from N(0, 1) for
    each value: a 50th to a third of the frame's area, height over width within 0.3 to 10 / 3 (timm's, and VideoMAE's).
    """

    def __init__(self, prob: float) -> None:
        self._prob = prob

    def __call__(self, video: Tensor) -> Tensor:
        """A normalised video, float (B, 3, T, H, W), which is changed in place."""
        if self._prob:
            erase = RandomErasing(self._prob, mode="pixel", device=video.device)  # type: ignore[no-untyped-call]
            erase(video.view(len(video), -1, *video.shape[3:]))  # frames are channels
        return video
