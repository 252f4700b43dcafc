"""Fetches original files through torchvision, which knows their addresses and checksums."""

from __future__ import annotations

from pathlib import Path

from data_prep.source import SourceError

# name → where torchvision leaves the files, below its root
FOLDERS = {
    "celeba": "celeba",
    "svhn": ".",
    "mnist": "MNIST/raw",
    "fashion_mnist": "FashionMNIST/raw",
    "cifar10": ".",
    "flowers102": "flowers-102",
}


def download(name: str, root: Path) -> Path:
    """Downloads a data set below `root` unless it is there. Returns the folder with its original files."""
    from torchvision import datasets

    if name not in FOLDERS:
        raise SourceError(f"torchvision has no download for {name}: fetch the files yourself and pass --source")
    root.mkdir(parents=True, exist_ok=True)
    try:
        if name == "svhn":
            for split in ("train", "extra", "test"):
                datasets.SVHN(str(root), split=split, download=True)
        else:
            kinds = {
                "celeba": datasets.CelebA,
                "mnist": datasets.MNIST,
                "fashion_mnist": datasets.FashionMNIST,
                "cifar10": datasets.CIFAR10,
                "flowers102": datasets.Flowers102,
            }
            kinds[name](str(root), download=True)
    except (OSError, RuntimeError) as e:
        raise SourceError(f"downloading {name} failed ({e}): fetch the files yourself and pass --source") from e
    return root / FOLDERS[name]
