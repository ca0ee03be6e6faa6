"""Seeded mutations of bytes and of trees (JSON, YAML): `mutated` chooses by file name.

All randomness comes from the given `random.Random`: the same generator state gives the same bytes.
"""

import json
import random
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

import yaml

Rng = random.Random
Mutator = Callable[[Rng, bytes], bytes]

_EDGES = (0, 1, 2, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF)
_NAMES = (
    "", ".", "..", "../../x", "/etc/passwd", "/dev/zero", "/proc/self/environ", "a\0b", "a\nb", "\x1b[31mred\x1b[0m",
    'a"b', "a'b", "a;DROP TABLE clips;--", "count(*)) FROM clips --", "x" * 300, "x" * 70_000, "\u202egpj.exe",
    "\ud800", "\N{GRINNING FACE}", "%s%n%d", "{0.__class__}", "${HOME}", "$(id)", "NaN", "null", "-1", "1e400",
    "ftp://127.0.0.1:1/x", "http://127.0.0.1:1/x.mp4", "s3://nowhere-at-all/x", "zip://a::b.zip", "reference://x",
    "file:///etc/passwd", "memory://x", "data:,x", "ünïcode", "[bold]x[/bold]", "__proto__", "1" * 5000,
)  # fmt: skip
_SCALARS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 2**31, 2**53,
    2**63, 2**64, -(2**63), 10**30, 10**4200, [], {}, [[]], [None], {"": None}, [1, "a", None], {"a": {"b": {}}},
)  # fmt: skip


_MANY_NODES = 200
"""Trees of more nodes do not grow much further: a list repeated within itself would fill the memory."""


def mutated(rng: Rng, name: str, content: bytes) -> bytes:
    """Damaged content of a file called `name`: usually specific to its format, otherwise as plain bytes."""
    from benchmarks.hostile import archives, containers, tables

    mutators: dict[str, Mutator] = {
        ".json": mutate_json,
        ".yaml": mutate_yaml,
        ".jsonl": mutate_text,
        ".txt": mutate_text,
        ".csv": tables.mutate_csv,
        ".tsv": tables.mutate_csv,
        ".zip": archives.mutate_zip,
        ".parquet": tables.mutate_parquet,
        ".mp4": containers.mutate_boxes,
        ".mov": containers.mutate_boxes,
        ".mkv": containers.mutate_elements,
        ".webm": containers.mutate_elements,
        ".tar": archives.mutate_tar,
        ".safetensors": archives.mutate_safetensors,
        ".pt": archives.mutate_zip,
        ".distcp": archives.mutate_zip,
    }
    structured = mutators.get(PurePath(name).suffix)
    if structured is None or rng.random() < 0.2:
        return mutate_bytes(rng, content)
    return structured(rng, content)


def mutate_bytes(rng: Rng, content: bytes) -> bytes:
    """One to four of: flip bits, overwrite, cut, insert, repeat, swap ranges, set a length field."""
    steps = (_flip, _flip, _overwrite, _cut, _truncate, _insert, _repeat, _splice, _set_length, _set_length)
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(steps)(rng, content)
    return content


def edge(rng: Rng) -> int:
    """A number at or near the limit of a field."""
    return max(0, rng.choice(_EDGES) + rng.choice((0, 0, -1, 1)))


def odd_name(rng: Rng) -> str:
    """A text that breaks code that uses it as a name, a path, an address or SQL."""
    return rng.choice(_NAMES)


def odd_value(rng: Rng) -> Any:
    """Any JSON value that is unlikely to be valid."""
    if rng.random() < 0.4:
        return odd_name(rng)
    if rng.random() < 0.05:
        deep: Any = 1
        for _ in range(rng.choice((50, 400))):
            deep = [deep] if rng.random() < 0.5 else {"a": deep}
        return deep
    return rng.choice(_SCALARS)


def mutate_tree(rng: Rng, tree: Any) -> Any:
    """Replace, remove, rename, add or swap nodes of nested dictionaries and lists, in place."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        nodes = list(_nodes(tree))
        if not nodes or rng.random() < 0.02:
            return odd_value(rng)
        owner, key = rng.choice(nodes)
        action = rng.random()
        if action < 0.55:
            owner[key] = odd_value(rng)
        elif action < 0.7:
            del owner[key]
        elif action < 0.8:
            other_owner, other_key = rng.choice(nodes)
            owner[key] = other_owner[other_key] if not isinstance(other_owner[other_key], dict | list) else None
        elif isinstance(owner, dict):
            owner[odd_name(rng)] = owner[key] if action < 0.9 else owner.pop(key)
        else:
            times = rng.choice((1, 2, 500))
            owner.extend([owner[key]] * (times if len(nodes) < _MANY_NODES else min(times, 2)))
    return tree


def mutate_json(rng: Rng, content: bytes) -> bytes:
    """A damaged tree, written as JSON that a strict reader may reject, or damaged text."""
    if rng.random() < 0.25:
        return mutate_text(rng, content)
    try:
        text = json.dumps(mutate_tree(rng, json.loads(content)))
    except (ValueError, RecursionError):
        return mutate_text(rng, content)
    if rng.random() < 0.15 and text.startswith("{") and len(text) > 2:  # the same keys twice
        text = text[:-1] + "," + text[1:]
    if rng.random() < 0.05:
        depth = rng.choice((500, 5_000, 100_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1) if "null" in text else "[" * depth
    return _encoded(rng, text)


def mutate_yaml(rng: Rng, content: bytes) -> bytes:
    """A damaged tree as YAML, or YAML with tags, anchors and nesting that no configuration needs."""
    choice = rng.random()
    if choice < 0.2:
        return mutate_text(rng, content)
    if choice < 0.4:
        return _encoded(rng, content.decode() + "\n" + rng.choice(_YAML)(rng))
    try:
        return _encoded(rng, yaml.safe_dump(mutate_tree(rng, yaml.safe_load(content)), allow_unicode=True))
    except (ValueError, yaml.YAMLError, RecursionError):
        return mutate_text(rng, content)


def mutate_text(rng: Rng, content: bytes) -> bytes:
    """Duplicate, drop, shuffle or replace lines; or another encoding; or plain damage."""
    if rng.random() < 0.3:
        return mutate_bytes(rng, content)
    lines = content.decode("utf-8", "replace").split("\n")
    for _ in range(rng.choice((1, 2, 5))):
        place = rng.randrange(len(lines) + 1)
        action = rng.random()
        if action < 0.4:
            lines.insert(place, odd_name(rng))
        elif action < 0.6:
            lines[place:place] = lines[:place]
        elif action < 0.8:
            del lines[place : place + rng.choice((1, 3))]
        else:
            rng.shuffle(lines)
    return _encoded(rng, "\n".join(lines))


def _encoded(rng: Rng, text: str) -> bytes:
    encoding = rng.choices(("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"), (20, 1, 1, 1, 1))[0]
    return text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")


def _nodes(tree: Any) -> Any:
    """(owner, key) of every node below `tree`; iterative, since trees may exceed Python's recursion limit."""
    waiting = [tree]
    while waiting:
        owner = waiting.pop()
        if isinstance(owner, dict | list):
            for key in list(owner) if isinstance(owner, dict) else range(len(owner)):
                yield owner, key
                waiting.append(owner[key])


def _bomb(rng: Rng) -> str:
    levels = rng.choice((4, 9))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(lines)


_YAML: tuple[Callable[[Rng], str], ...] = (
    _bomb,
    lambda rng: f"deep: {'[' * rng.choice((100, 3_000))}",
    lambda rng: "deep: " + "[" * (n := rng.choice((100, 3_000))) + "]" * n,
    lambda rng: f"number: {'9' * 5_000}",
    lambda rng: f"{odd_name(rng)[:200]!r}: {odd_name(rng)[:200]!r}",
    lambda _: "x: !!python/object/apply:os.system [id]",
    lambda _: "x: &x [*x]",
    lambda _: "<<: {a: 1}",
    lambda _: "? [a, b]\n: 1",
    lambda _: "? {a: 1}\n: 1",
    lambda _: "---\nsecond: document",
    lambda _: "x: 2024-13-45",
    lambda _: "x: 2024-01-01T99:99:99Z",
    lambda _: "x: 190:20:30",
    lambda _: "x: !!binary '%%%'",
    lambda _: "x: !!int abc",
    lambda _: "x: !!float abc",
    lambda _: "x: !!timestamp abc",
    lambda _: "x: 0x",
    lambda _: "x: 0b_",
    lambda _: "%YAML 9.9",
    lambda _: "\tx: 1",
)


def _stretch(rng: Rng, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content) + 1)
    return start, min(len(content), start + rng.choice((1, 4, 16, 64, 1024, 65_536)))


def _flip(rng: Rng, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 4, 32)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwrite(rng: Rng, content: bytes) -> bytes:
    start, end = _stretch(rng, content)
    filler = rng.choice((b"\0", b"\xff", b"A", rng.randbytes(1)))
    return content[:start] + filler * (end - start) + content[end:]


def _cut(rng: Rng, content: bytes) -> bytes:
    start, end = _stretch(rng, content)
    return content[:start] + content[end:]


def _truncate(rng: Rng, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _insert(rng: Rng, content: bytes) -> bytes:
    start = rng.randrange(len(content) + 1)
    return content[:start] + rng.randbytes(rng.choice((1, 4, 64, 4096))) + content[start:]


def _repeat(rng: Rng, content: bytes) -> bytes:
    start, end = _stretch(rng, content)
    return content[:end] + content[start:end] * rng.choice((1, 3, 20)) + content[end:]


def _splice(rng: Rng, content: bytes) -> bytes:
    start, end = _stretch(rng, content)
    place = rng.randrange(len(content) + 1)
    return content[:place] + content[start:end] + content[place + end - start :]


def _set_length(rng: Rng, content: bytes) -> bytes:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    if len(content) < width:
        return content
    start = rng.randrange(min(len(content), rng.choice((64, 4096, len(content)))) - width + 1)
    value = edge(rng) % (1 << 8 * width)
    return content[:start] + value.to_bytes(width, order) + content[start + width :]
