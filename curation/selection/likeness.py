"""`like` rules: the cosine of every clip to a query becomes a column of the joined view, which rules treat as any."""

import duckdb
import numpy as np
import pyarrow as pa

from clipmill.columns import column
from clipmill.errors import UserError
from curation.dataset.embeddings import ClipEmbeddings, open_embeddings
from curation.dataset.joined import joined_columns
from curation.dataset.nearest import cosines
from curation.dataset.tables import Dataset
from curation.scores.columns import SCORES
from curation.selection.rules import Like, Rules

_VIEW = f"{SCORES}_likeness"


def with_queries(dataset: Dataset, rules: Rules) -> Rules:
    """The same rules with the embedding of each `like` on a clip. Raises UserError if the clip has none."""
    if not any(like.clip is not None and like.embedding is None for like in rules.like):
        return rules
    with open_embeddings(dataset) as embeddings:
        likes = tuple(_of_clip(dataset, embeddings, like) for like in rules.like)
    return rules.model_copy(update={"like": likes})


def add_likes(
    dataset: Dataset, connection: duckdb.DuckDBPyConnection, rules: Rules, *, allow_missing: bool = False
) -> Rules:
    """Add the scores of `like` to the joined view of a connection; returns the rules with one on each of them.

    `allow_missing`: likeness to a clip that was removed since has no score. Raises UserError if the dataset has no
    embeddings, or a column called `likeness` of its own, or for a query that was not embedded.
    """
    likes = rules.likes()
    if not likes:
        return rules
    known = joined_columns(connection)
    taken = [name for name in likes if name in known or name in rules.rules]
    if taken:
        raise UserError(f"{taken[0]!r} is the score of `like`, but a column or a rule has that name: rename the column")
    removed = [name for name, like in likes.items() if like.clip is not None and like.embedding is None]
    if scored := {name: like for name, like in likes.items() if not (allow_missing and name in removed)}:
        connection.register(_VIEW, _scores(dataset, connection, scored))
    return rules.model_copy(update={"rules": {**rules.rules, **likes}})


def _scores(dataset: Dataset, connection: duckdb.DuckDBPyConnection, likes: dict[str, Like]) -> pa.Table:
    """clip_id and a column per query, of the clips that have an embedding."""
    fields = [column("clip_id", pa.string(), "clip")]
    with open_embeddings(dataset, connection) as embeddings:
        ids = embeddings.clip_ids.cast(pa.string()).combine_chunks()
        scores = []
        for name, like in likes.items():
            if like.embedding is None:
                raise UserError(
                    f"{name}: {like.query} is not embedded yet: pass the rules to `clipmill select`, or give its "
                    "`embedding`"
                )
            fields.append(column(name, pa.float32(), f"likeness to {like.query}", unit="cosine, -1 to 1"))
            scores.append(pa.array(cosines(embeddings, np.array(like.embedding))))
    return pa.table([ids, *scores], schema=pa.schema(fields))


def _of_clip(dataset: Dataset, embeddings: ClipEmbeddings, like: Like) -> Like:
    if like.clip is None or like.embedding is not None:
        return like
    embedding_D = embeddings.embedding(like.clip)
    if embedding_D is None:
        raise UserError(f"like: {dataset.url} has no clip {like.clip!r} with an embedding")
    return like.model_copy(update={"embedding": tuple(map(float, embedding_D))})
