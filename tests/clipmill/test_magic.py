"""What the first bytes say of a file."""

import pytest

from clipmill.magic import content_of, described


@pytest.mark.parametrize(
    ("head", "content"),
    [
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\0\0\0\x20ftypavifmif1miaf", "still"),
        (b"\0\0\0\x20ftypavifavismsf1", "video"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1", "still"),
        (b"\0\0\1\0moov", "video"),
        (b"\x1aE\xdf\xa3", "video"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0", "animated_webp"),
        (b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x10\0\0\0", "still"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "still"),
        (b"\x89PNG\r\n\x1a\n....IHDR....acTL....IDAT", "video"),
        (b"\x89PNG\r\n\x1a\n....IHDR....IDAT.acTL", "still"),
        (b"\xff\xd8\xff\xe0", "still"),
        (b"\x47" + bytes(187) + b"\x47", "video"),
        (bytes(4) + b"\x47" + bytes(191) + b"\x47", "video"),
        (b"\x47" + bytes(300), None),
        (b"\0\0\0\1\x67\x64", "raw"),
        (b"\0\0\1\x09\xf0", "raw"),
        (b"\0\0\0\1\x40\x01\x0c", "raw"),
        (b"\0\0\0\1\x00\xa1", "raw"),
        (b"\0\0\1\xb3\x0a", "raw"),
        (b"\0\0\1\xba", "video"),
        (b"\x12\x00\x0a\x0a", "raw"),
        (b"\0\0\0\1\xff", None),
        (b"#!/bin/sh", None),
        (b"ID3\x04", None),
        (b"\x7fELF", None),
        (b"", None),
    ],
)
def test_content_of_a_file(head: bytes, content: str | None):
    assert content_of(head) == content
    assert content_of(head + bytes(4096 - len(head))) == content or not head


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"\xef\xbb\xbf\n<!DOCTYPE html><title>A video - YouTube", "address of a video file, not of a page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"/annex/objects/SHA256E-s1--0.mp4", "git annex get"),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied', "error message of a store"),
        (b'{"error": "rate limit"}', "error message of a server"),
        (b"PK\3\4", "a zip archive"),
        (b"\x1f\x8b\x08", "a compressed file"),
        (b"\0\0\0\x20ftypisom", None),
        (b"some text", None),
    ],
)
def test_what_is_taken_for_a_video_is_described(head: bytes, said: str | None):
    sentence = described(head)
    assert (sentence is None) == (said is None)
    assert said is None or said in str(sentence)
