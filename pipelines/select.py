"""Rules choose clips: the selection step as the pipelines offer it, with the presets that come along."""

from pathlib import Path

from curation.rules import Rules, load_preset, load_rules
from curation.select import Selection
from curation.select import select as select_clips
from curation.tables import Dataset

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "svd-paper"


def select(
    dataset: str, rules: str | Rules = DEFAULT_PRESET, *, name: str | None = None, allow_missing: bool = False
) -> Selection:
    """Choose clips of a dataset by rules: a preset's name, a .yaml file, or `Rules`. Written under `name`.

    Raises UserError for an unknown preset, column, key or a threshold out of range. An empty selection is written
    and returned: look at its `empty`.
    """
    if isinstance(rules, str):
        rules = load_rules(rules) if rules.endswith((".yaml", ".yml")) else load_preset(rules, PRESETS)
    return select_clips(Dataset(dataset).open(), rules, name=name, allow_missing=allow_missing)
