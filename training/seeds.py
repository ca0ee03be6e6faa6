"""Seeds of streams that have nothing to do with each other."""

from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """A seed from several parts, the same everywhere; other parts give an unrelated one."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
