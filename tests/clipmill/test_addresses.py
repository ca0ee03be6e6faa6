"""Addresses as they are kept: the object is named, what opens it is gone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.addresses import redacted, without_credentials

SIGNED = {
    "https://b.s3.amazonaws.com/a.mp4?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAX&X-Amz-Date=2024"
    "&X-Amz-Expires=60&X-Amz-SignedHeaders=host&X-Amz-Security-Token=S&X-Amz-Signature=S": "https://b.s3.amazonaws.com/a.mp4",
    "https://b.s3.amazonaws.com/a.mp4?versionId=3&AWSAccessKeyId=A&Signature=S&Expires=1": "https://b.s3.amazonaws.com/a.mp4?versionId=3",
    "https://storage.googleapis.com/b/a.mp4?X-Goog-Algorithm=G&X-Goog-Signature=S": "https://storage.googleapis.com/b/a.mp4",
    "https://x.blob.core.windows.net/c/a.mp4?sv=2022&sp=r&st=1&se=2&sr=b&sig=S%3D": "https://x.blob.core.windows.net/c/a.mp4",
    "https://d.cloudfront.net/a.mp4?Expires=1&Signature=S&Key-Pair-Id=K&Policy=P": "https://d.cloudfront.net/a.mp4",
    "https://d.cloudfront.net/a.mp4?v=2&Policy=P&Signature=S&Key-Pair-Id=K": "https://d.cloudfront.net/a.mp4?v=2",
    "https://oss.aliyuncs.com/a.mp4?OSSAccessKeyId=K&Expires=1&Signature=S": "https://oss.aliyuncs.com/a.mp4",
    "https://h.org/a.mp4?q-sign-algorithm=sha1&q-ak=K&q-signature=S": "https://h.org/a.mp4",
    "https://h.org/a.mp4?id=7&access_token=S&t=1": "https://h.org/a.mp4?id=7&t=1",
    "https://h.org/a.mp4?%58-Amz-Signature=S&x%2Dgoog-credential=S": "https://h.org/a.mp4",
    "https://h.org/a.mp4?key=AIza" + "x" * 35: "https://h.org/a.mp4",
    "https://user:S@h.org:8080/a.mp4?": "https://h.org:8080/a.mp4?",
    "https://S@h.org/a@b.mp4": "https://h.org/a@b.mp4",
    "https://h.org/a.mp4?id=7#access_token=S": "https://h.org/a.mp4?id=7",
    "sftp://user:S@h.org/a.mp4": "sftp://user@h.org/a.mp4",
    "zip://x.mp4::https://user:S@h.org/a::b.zip?token=S": "zip://x.mp4::https://h.org/a::b.zip",
    "simplecache::https://user:S@h.org/a.mp4?token=S": "simplecache::https://h.org/a.mp4",
}
PLAIN = [
    "/data/a b?token=1.mp4",
    "https://h.org/a.mp4?id=7&author=me&key=videos/a.mp4&expires=never",
    "abfs://container@account.dfs.core.windows.net/a.mp4",
    "s3://bucket/what?token=1.mp4",
    "https://h.org/a.mp4?sv=1",
    "file:///data/caf%E9.mp4",
]


@pytest.mark.parametrize(("signed", "kept"), SIGNED.items())
def test_signatures_and_passwords_are_not_kept(signed: str, kept: str):
    assert without_credentials(signed) == kept
    assert redacted(f"cannot read '{signed}': 403") == f"cannot read '{kept}': 403"


@pytest.mark.parametrize("address", PLAIN)
def test_other_addresses_are_kept_as_they_are(address: str):
    assert without_credentials(address) == address


@pytest.mark.slow
@given(st.text() | st.from_regex(r"https?://[a-z:@/?&=#%.-]{0,40}", fullmatch=True))
def test_any_text_is_stripped_once_and_for_all(text: str):
    assert without_credentials(without_credentials(text)) == without_credentials(text)
    assert redacted(redacted(text)) == redacted(text)


@given(
    name=st.sampled_from(["X-Amz-Signature", "x-goog-signature", "sig", "Signature", "token", "id_token", "api-key"]),
    before=st.lists(st.from_regex(r"[a-d]=[0-9]", fullmatch=True), max_size=3),
    secret=st.from_regex(r"SECRET[A-Za-z0-9%+/=_-]{0,20}", fullmatch=True),
)
def test_one_object_has_one_address_under_every_signature(name: str, before: list[str], secret: str):
    plain = "https://h.org/a.mp4" + ("?" + "&".join(before) if before else "")
    for place in range(len(before) + 1):
        query = "&".join([*before[:place], f"{name}={secret}", *before[place:]])
        assert without_credentials(f"https://h.org/a.mp4?{query}") == plain
