"""The input pipeline as it is usually written for torch, with torchvision's v2."""

from collections.abc import Iterator, Sequence

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from fcn_jax.data.images import read_size
from fcn_jax.data.pairs import Pair


class Pairs(Dataset):
    """Decode, resize, crop, flip and recolour the pairs of images and masks."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        scale: tuple[float, float],
        crop: tuple[int, int],
        jitter: tuple[float, ...],
        mean: tuple[int, ...],
        void: int,
    ):
        self.pairs = pairs
        short = min(read_size(pairs[0].images[0]))
        low, high = (round(factor * short) for factor in scale)
        transforms = [
            v2.RandomResize(low, high + 1),
            v2.RandomCrop(
                crop,
                pad_if_needed=True,
                fill={tv_tensors.Image: list(mean), tv_tensors.Mask: void},
            ),
            v2.RandomHorizontalFlip(),
        ]
        if jitter:
            transforms.append(v2.ColorJitter(*jitter))
        self.transform = v2.Compose(transforms)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        _, (image_path,), label_path = self.pairs[i]
        image = tv_tensors.Image(decode_image(str(image_path), ImageReadMode.RGB))
        with Image.open(label_path) as mask:  # torchvision would apply its palette.
            label = tv_tensors.Mask(v2.functional.pil_to_tensor(mask))
        image, label = self.transform(image, label)
        return {"image": image, "label": label[0].long()}  # [3, H, W] and [H, W]


def batches(dataset: Pairs, *, batch_size: int, workers: int) -> Iterator[dict]:
    """Read shuffled batches without end, in this process or in others."""
    torch.set_num_threads(1)  # As in its workers.
    return iter(
        DataLoader(
            dataset,
            batch_size=batch_size,
            sampler=RandomSampler(dataset, replacement=True, num_samples=2**40),
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
    )
