"""What leaves the machine: addresses below a root, texts without paths and keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.public import PublicAddress, public_addresses, public_text


def test_sources_are_named_below_the_deepest_folder_of_their_store():
    addresses = public_addresses(
        [
            "/home/alice/v/a.mp4",
            "/home/alice/v/x/b c.mp4",
            "/home/bob/c.mp4",
            "/data/q.mp4",
            "file:///home/alice/v/caf%E9.mp4",
            "zip://in/a.mp4::/home/alice/v/z.zip",
            "https://u:p@h.org/v//w/a.mp4?id=3&token=abc",
            "https://h.org/v//w/x/b.mp4",
            "https://h.org/v//wide.mp4",
            "s3://bucket/k.mp4",
            "sftp://carol@h.org/x/y.mp4",
            "abfs://container@account.dfs.core.windows.net/d/a.mp4",
        ]
    )
    assert set(addresses.values()) == {
        PublicAddress("local", "q.mp4"),
        PublicAddress("local-2", "a.mp4"),
        PublicAddress("local-2", "x/b c.mp4"),
        PublicAddress("local-2", "caf\ufffd.mp4"),
        PublicAddress("local-2", "zip://in/a.mp4::z.zip"),
        PublicAddress("local-3", "c.mp4"),
        PublicAddress("abfs://container@account.dfs.core.windows.net/d", "a.mp4"),
        PublicAddress("https://h.org/v/", "w/x/b.mp4"),
        PublicAddress("https://h.org/v/", "wide.mp4"),
        PublicAddress("https://h.org/v/", "w/a.mp4?id=3"),
        PublicAddress("s3://bucket", "k.mp4"),
        PublicAddress("sftp://h.org/x", "y.mp4"),
    }


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/?:#\0"), min_size=1, max_size=5).filter(
    lambda name: name not in (".", "..")
)


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple))
def test_a_root_and_a_path_lead_back(paths: list[list[str]]):
    uris = ["https://h.org/" + "/".join(parts) for parts in paths]
    found = public_addresses(uris)
    assert {f"{each.root}/{each.path}" for each in found.values()} == set(uris)
    assert len({each.root for each in found.values()}) == 1


@given(st.lists(st.lists(NAMES, min_size=1, max_size=4), min_size=1, max_size=6, unique_by=tuple))
def test_two_files_never_have_one_name(paths: list[list[str]]):
    found = public_addresses(["/" + "/".join(parts) for parts in paths])
    assert len(set(found.values())) == len(found)
    assert all("/home" not in each.root for each in found.values())


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("cannot open /home/alice/v/a.mp4: no", "cannot open a.mp4: no"),
        ("/home/Alice Smith/a b.mp4", "a b.mp4"),
        ("file:///home/al/x.mp4", "x.mp4"),
        ("C:\\Users\\bob\\v.mp4 x", "v.mp4 x"),
        ("~/videos/a.mp4", "a.mp4"),
        ("(/home/bob/x.mp4)", "(x.mp4)"),
        ("path=/home/bob/x y", "path=x y"),
        ("uri LIKE '/home/alice/%' AND a/b > 3", "uri LIKE '%' AND a/b > 3"),
        ("see https://h.org/a/b.mp4?token=secret", "see https://h.org/a/b.mp4"),
        ("key hf_" + "a" * 30, "key [removed]"),
        ("https://a.b/c /home/bob/x", "https://a.b/c x"),
    ],
)
def test_texts_lose_folders_and_keys(text: str, public: str):
    assert public_text(text) == public


@pytest.mark.parametrize(
    "text",
    ["CC0 and/or MIT 1/2/3", "/r", "http://localhost:8000/v1 refused", "https://h/~bob/x/y", "a / b / c", "24/7", ""],
)
def test_other_texts_stay(text: str):
    assert public_text(text) == text


@given(st.text())
def test_a_public_text_stays_as_it_is(text: str):
    assert public_text(public_text(text)) == public_text(text)
