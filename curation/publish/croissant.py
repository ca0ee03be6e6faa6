"""croissant.json: the published folder in MLCommons' Croissant format (http://mlcommons.org/croissant/1.0).

It describes the table of clips, field by field, and the files with the videos.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from curation.dataset.schemas import CLIPS, SOURCES
from curation.publish.layouts import DATA, Target
from curation.shards.places import PLACE

if TYPE_CHECKING:
    from curation.publish.facts import Facts

CROISSANT = "croissant.json"

_CONTEXT: Mapping[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_MEANINGS = {
    field.name: (field.metadata or {}).get(b"meaning", b"").decode() for field in (*SOURCES, *CLIPS, *PLACE)
} | {
    "root": "deepest folder that holds all sources of a store",
    "path": "address of the source below root",
    "file": "path of the video in this folder",
}


def croissant(
    facts: "Facts",
    *,
    to: Target,
    table: pa.Schema,
    table_path: str,
    table_sha256: str,
    tars: Sequence[tuple[str, int, str]],
) -> dict[str, Any]:
    """The content of croissant.json. `table` lies at `table_path`; `tars`: name, bytes and sha256 of each shard."""
    objects = [
        _file("clips-table", table_path, "application/x-parquet", table_sha256),
        *(
            _file(tar, f"{DATA}/{tar}", "application/x-tar", sha256) | {"contentSize": f"{size} B"}
            for tar, size, sha256 in tars
        ),
    ]
    videos: dict[str, Any] = {
        "@type": "cr:FileSet",
        "@id": "videos",
        "name": "videos",
        "description": "One MP4 per clip.",
        "encodingFormat": "video/mp4",
        "includes": "*.mp4" if to == "hf" else f"{DATA}/**/*.mp4",
    }
    if tars:
        videos["containedIn"] = [{"@id": tar} for tar, _, _ in tars]
    fields = [_field(field) for field in table if _data_type(field.type)]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": facts.selection.name,
        "description": f"{facts.clips:,} video clips of one shot each, {facts.seconds:,.0f} s, from {facts.sources:,} "
        "sources, selected by the rules in README.md.",
        "license": [tally.name for tally in facts.licenses],
        "version": "1.0.0",
        "distribution": [*objects, *([videos] if tars else [])],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "clips",
                "name": "clips",
                "description": "A row per clip.",
                "key": {"@id": "clips/clip_id"},
                "field": fields,
            }
        ],
    }


def _file(name: str, path: str, kind: str, sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": name,
        "name": name,
        "contentUrl": path,
        "encodingFormat": kind,
        "sha256": sha256,
    }


def _field(field: pa.Field) -> dict[str, Any]:
    described = {"description": _MEANINGS[field.name]} if field.name in _MEANINGS else {}
    return {
        "@type": "cr:Field",
        "@id": f"clips/{field.name}",
        "name": field.name,
        **described,
        "dataType": _data_type(field.type),
        "source": {"fileObject": {"@id": "clips-table"}, "extract": {"column": field.name}},
    }


def _data_type(kind: pa.DataType) -> str | None:
    """Of a column with one value per row; None for lists, maps and structs."""
    if pa.types.is_string(kind):
        return "sc:Text"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else None
