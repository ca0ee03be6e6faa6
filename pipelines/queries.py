"""Embed the texts and pictures of a search or of `like` rules with the CLIP model of a dataset."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import UserError
from curation.dataset.tables import Dataset
from curation.selection.rules import Like, Rules
from pipelines.config import CurateConfig
from pipelines.embed import embed_images, embed_texts


def text_query(dataset: Dataset, text: str, config: CurateConfig | None = None) -> NDArray[np.float32]:
    """(D,) embedding of a text. Raises UserError if the model is missing or is not that of the dataset."""
    if not text.strip():
        raise UserError("the text to search for is empty")
    clip = config.clip_embedder if config else None
    return _explained(config, lambda: embed_texts([text], dataset=dataset.url, config=clip))[0]


def picture_query(dataset: Dataset, picture: str, config: CurateConfig | None = None) -> NDArray[np.float32]:
    """(D,) embedding of a picture file. Raises UserError as `text_query`, and for a file that is not an image."""
    clip = config.clip_embedder if config else None
    try:
        return _explained(config, lambda: embed_images([picture], dataset=dataset.url, config=clip))[0]
    except UserError as error:
        reason = str(error).removeprefix("image 0: ")
        raise UserError(f"cannot search for the picture {picture}: {reason}") from error


def with_embeddings(dataset: Dataset, rules: Rules, config: CurateConfig | None = None) -> Rules:
    """The same rules with the embedding of each text and picture in `like`. Raises UserError as `text_query`."""
    likes = [_embedded(dataset, like, config) for like in rules.like]
    return rules.model_copy(update={"like": tuple(likes)})


def _embedded(dataset: Dataset, like: Like, config: CurateConfig | None) -> Like:
    if like.embedding is not None or (like.text is None and like.picture is None):
        return like
    if like.text is not None:
        query_D = text_query(dataset, like.text, config)
    else:
        query_D = picture_query(dataset, str(like.picture), config)
    return like.model_copy(update={"embedding": tuple(map(float, query_D))})


def _explained(config: CurateConfig | None, embed: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Run `embed`; without a configuration, an error says how to give one."""
    try:
        return embed()
    except UserError as error:
        if config is not None or str(error).startswith("image 0: "):
            raise
        raise UserError(
            f"the CLIP model of the dataset cannot be loaded: {error} Pass a file with its settings "
            "(clip_embedder), as for `clipmill curate`."
        ) from error
