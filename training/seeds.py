"""Independent seeds for random streams."""

from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """Hash the parts to a seed, stable across machines and versions."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
