"""NVIDIA GPUs by name, however written, with the memory that CUDA can allocate; for plans about other machines."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

from tgis_server.words.close_words import find_close
from tgis_server.words.sizes import GIB

# name -> GB on the box; a card that is sold in several sizes has several
NOMINAL_GB: dict[str, tuple[int, ...]] = {
    # Data centres
    "P4": (8,),
    "P40": (24,),
    "P100": (12, 16),
    "V100": (16, 32),
    "T4": (16,),
    "A2": (16,),
    "A10": (24,),
    "A10G": (24,),
    "A16": (16,),
    "A30": (24,),
    "A40": (48,),
    "A100": (40, 80),
    "A800": (40, 80),
    "L4": (24,),
    "L20": (48,),
    "L40": (48,),
    "L40S": (48,),
    "H20": (96, 141),
    "H100": (80,),
    "H100 NVL": (94,),
    "H800": (80,),
    "H200": (141,),
    "GH200": (96, 144),
    "B100": (192,),
    "B200": (180,),
    "B300": (288,),
    "GB200": (192,),
    "GB300": (288,),
    "GB10": (128,),
    # Workstations
    "Quadro RTX 6000": (24,),
    "Quadro RTX 8000": (48,),
    "RTX A2000": (6, 12),
    "RTX A4000": (16,),
    "RTX A4500": (20,),
    "RTX A5000": (24,),
    "RTX A5500": (24,),
    "RTX A6000": (48,),
    "RTX 2000 Ada": (16,),
    "RTX 4000 Ada": (20,),
    "RTX 4500 Ada": (24,),
    "RTX 5000 Ada": (32,),
    "RTX 6000 Ada": (48,),
    "RTX PRO 2000": (16,),
    "RTX PRO 4000": (24,),
    "RTX PRO 4500": (32,),
    "RTX PRO 5000": (48, 72),
    "RTX PRO 6000": (96,),
    # Home computers
    "GTX 1080": (8,),
    "GTX 1080 Ti": (11,),
    "Titan V": (12,),
    "Titan RTX": (24,),
    "RTX 2060": (6, 12),
    "RTX 2070": (8,),
    "RTX 2080": (8,),
    "RTX 2080 Ti": (11,),
    "RTX 3050": (6, 8),
    "RTX 3060": (8, 12),
    "RTX 3060 Ti": (8,),
    "RTX 3070": (8,),
    "RTX 3070 Ti": (8,),
    "RTX 3080": (10, 12),
    "RTX 3080 Ti": (12,),
    "RTX 3090": (24,),
    "RTX 3090 Ti": (24,),
    "RTX 4060": (8,),
    "RTX 4060 Ti": (8, 16),
    "RTX 4070": (12,),
    "RTX 4070 Super": (12,),
    "RTX 4070 Ti": (12,),
    "RTX 4070 Ti Super": (16,),
    "RTX 4080": (16,),
    "RTX 4080 Super": (16,),
    "RTX 4090": (24,),
    "RTX 5050": (8,),
    "RTX 5060": (8,),
    "RTX 5060 Ti": (8, 16),
    "RTX 5070": (12,),
    "RTX 5070 Ti": (16,),
    "RTX 5080": (16,),
    "RTX 5090": (32,),
}

# GiB that CUDA can allocate, where the rule below is off by more than a few per cent: ECC and firmware use some
MEASURED_GIB = {
    ("P4", 8): 7.4,
    ("P40", 24): 22.4,
    ("T4", 16): 14.6,
    ("A2", 16): 14.6,
    ("A16", 16): 14.6,
    ("A10", 24): 22.0,
    ("A10G", 24): 22.0,
    ("L4", 24): 22.0,
    ("L20", 48): 44.4,
    ("A40", 48): 44.4,
    ("L40", 48): 44.4,
    ("L40S", 48): 44.4,
    ("A100", 40): 39.4,
    ("A100", 80): 79.1,
    ("H100", 80): 79.1,
    ("H200", 141): 139.7,
    ("B200", 180): 178.3,
    ("B300", 288): 267.7,
    ("GB200", 192): 184.0,
    ("GB300", 288): 276.0,
    ("GB10", 128): 119.6,
}
OLDER = {
    "P4": "6.1",
    "P40": "6.1",
    "P100": "6.0",
    "GTX 1080": "6.1",
    "GTX 1080 Ti": "6.1",
    "V100": "7.0",
    "Titan V": "7.0",
}

# What people write around the name: the maker, the line of products, the connector, the kind of memory
NOISE = re.compile(
    r"nvidia|geforce|tesla|blackwell|generation|gpu|pcie|sxm\d?|hbm\d?e?|gddr\d\w?|(server|workstation)edition"
)
LINES = re.compile(r"^(quadro|rtx|gtx|quadrortx)")  # may be left out
FOREIGN = re.compile(
    r"(amd|instinct|radeon|mi\d{2,3}[a-z]?$|rx\d|intel|gaudi|hpu|arc|max1|tpu|v\d[ep]|trn|inf\d|apple|m\d)"
)
LAPTOP = re.compile(r"laptop|mobile|max-?q", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU of one size."""

    name: str
    nominal_gb: int

    @property
    def title(self) -> str:
        """``RTX 4090``, or ``A100-40`` if there are several sizes."""
        return f"{self.name}-{self.nominal_gb}" if len(NOMINAL_GB[self.name]) > 1 else self.name

    @property
    def usable_bytes(self) -> int:
        return (
            int(MEASURED_GIB[self.name, self.nominal_gb] * GIB) if self.is_measured else usable_bytes(self.nominal_gb)
        )

    @property
    def is_measured(self) -> bool:
        return (self.name, self.nominal_gb) in MEASURED_GIB

    @property
    def warning(self) -> str:
        """Why PyTorch may not run on the GPU; empty for newer ones."""
        if self.name not in OLDER:
            return ""
        return (
            f"{self.name} has compute capability {OLDER[self.name]}, but PyTorch for CUDA 13 needs 7.5: install a "
            "build for CUDA 12.6."
        )


CARDS = tuple(Card(name, size) for name, sizes in NOMINAL_GB.items() for size in sizes)


def usable_bytes(nominal_gb: float) -> int:
    """What CUDA can allocate on a GPU that is sold with this many GB: nearly as many GiB."""
    return int(nominal_gb * 0.98 * GIB)


def find_cards(name: str) -> list[Card]:
    """The cards of a name, however it is written; several if its size is missing, none if it is unknown."""
    if LAPTOP.search(name):
        return []
    keys = squeeze_name(name), squeeze_name(re.sub(r"(?<=\d)\s*gi?b?\b", "", name, flags=re.IGNORECASE))
    spellings = (squeeze_name, lambda text: LINES.sub("", squeeze_name(text)))
    for key, spell, is_sized in itertools.product(keys, spellings, (True, False)):
        found = [card for card in CARDS if spell(f"{card.name} {card.nominal_gb if is_sized else ''}") == key]
        if found:
            return found
    return []


def find_close_cards(name: str) -> list[str]:
    """The names of known cards that resemble an unknown name."""
    titles = {squeeze_name(card.title): card.title for card in CARDS}
    key = squeeze_name(name)
    return [titles[each] for each in find_close(key, titles) or find_close(f"rtx{key}", titles)]


def is_foreign(name: str) -> bool:
    """Whether this is an accelerator of another maker."""
    return FOREIGN.match(squeeze_name(name)) is not None


def squeeze_name(name: str) -> str:
    """``NVIDIA A100-SXM4-80GB`` as ``a10080gb``."""
    return NOISE.sub("", re.sub(r"[^a-z0-9]", "", name.lower()))
