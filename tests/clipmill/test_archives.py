"""Files in archives: read where they are, within limits, whatever the archive says of itself."""

import io
import os
import random
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as for_any
from hypothesis import strategies as st

from clipmill import archives
from clipmill.addresses import without_credentials
from clipmill.archives import split_link
from clipmill.errors import UserError
from clipmill.storage import address, filesystem, read_limited

VIDEO = random.Random(0).randbytes(300_000)
FILES = {"a.mp4": VIDEO, "a.txt": b"a cat", "deep/er/b.mp4": VIDEO[:1000], "empty.mp4": b""}


def zipped(path: Path, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def tarred(path: Path, files: dict[str, bytes] = FILES, kind: str = "w", **options: Any) -> str:
    with tarfile.open(path, kind, **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


@pytest.fixture(params=["stored", "deflated", "tar", "pax", "zip in tar"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Everything before the member in its address, and everything after it."""
    if request.param == "stored":
        return f"zip://{{}}::{zipped(tmp_path / 'x.zip', method=zipfile.ZIP_STORED)}"
    if request.param == "deflated":
        return f"zip://{{}}::{zipped(tmp_path / 'x.zip')}"
    if request.param == "zip in tar":
        inner = Path(zipped(tmp_path / "x.zip")).read_bytes()
        return f"zip://{{}}::tar://in/x.zip::{tarred(tmp_path / 'x.tar', {'in/x.zip': inner})}"
    options = {"format": tarfile.PAX_FORMAT, "pax_headers": {"comment": "é"}} if request.param == "pax" else {}
    return f"tar://{{}}::{tarred(tmp_path / 'x.tar', **options)}"


def test_a_member_is_a_file_with_random_access(archive: str):
    fs, path = filesystem(archive.format("a.mp4"))
    assert address(fs, path) == archive.format("a.mp4")
    assert fs.info(path)["size"] == len(VIDEO)
    with fs.open(path, "rb") as file:
        for start, size in ((0, 10), (250_000, 1000), (5, 200_000), (299_990, 100), (400_000, 1)):
            assert file.seek(start) == start
            assert file.read(size) == VIDEO[start : start + size]
        assert file.seek(-3, os.SEEK_END) == len(VIDEO) - 3
        assert file.read() == VIDEO[-3:]


def test_folders_and_what_is_missing(archive: str):
    fs, path = filesystem(archive.format(""))
    assert (path, fs.isdir(path), fs.isdir("deep"), fs.isdir("a.mp4")) == ("", True, True, False)
    assert fs.find("") == sorted(FILES)
    assert fs.find("deep", withdirs=True) == ["deep/er", "deep/er/b.mp4"]
    assert sorted(fs.glob("**/*.mp4")) == ["a.mp4", "deep/er/b.mp4", "empty.mp4"]
    assert read_limited(fs, "a.txt", max_bytes=10) == b"a cat"
    with pytest.raises(UserError, match="larger than the limit of 4 bytes"):
        read_limited(fs, "a.txt", max_bytes=4)
    with pytest.raises(FileNotFoundError):
        read_limited(fs, "b.txt", max_bytes=10)
    with fs.open("empty.mp4", "rb") as file:
        assert file.read() == b""


def test_names_with_slashes_and_dots_are_names_alone(tmp_path: Path):
    files = {"./a.mp4": b"1", "/abs/b.mp4": b"2", "../../c.mp4": b"3", "d//e.mp4": b"4"}
    fs, _ = filesystem(f"tar://::{tarred(tmp_path / 'x.tar', files)}")
    assert fs.find("") == ["../../c.mp4", "a.mp4", "abs/b.mp4", "d/e.mp4"]
    assert fs.cat_file("../../c.mp4") == b"3"
    assert not (tmp_path.parent.parent / "c.mp4").exists()


def test_links_and_devices_in_a_tar_are_not_files(tmp_path: Path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.mp4")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    assert filesystem(f"tar://::{tmp_path / 'x.tar'}")[0].find("") == []


def test_an_archive_in_its_place_is_another_one(tmp_path: Path):
    fs, _ = filesystem(f"zip://::{zipped(tmp_path / 'x.zip', {'a.mp4': b'1'})}")
    assert fs.find("") == ["a.mp4"]
    before = fs.info("a.mp4")["etag"]
    zipped(tmp_path / "x.zip", {"b.mp4": b"2", "a.mp4": b"1"})
    os.utime(tmp_path / "x.zip", (1, 1))
    assert fs.find("") == ["a.mp4", "b.mp4"]
    assert fs.info("a.mp4")["etag"] == before, "a zip has checksums of its members"
    with fs.open("a.mp4") as file:
        assert file.read() == b"1"


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("zip://a.mp4::b.zip", ("zip://a.mp4", "b.zip")),
        ("zip://a::b.mp4::/x/b.zip", ("zip://a::b.mp4", "/x/b.zip")),
        ("tar://a.mp4::https://h/x.tar?sig=1", ("tar://a.mp4", "https://h/x.tar?sig=1")),
        ("zip://a.mp4::tar://b.zip::c.tar", ("zip://a.mp4", "tar://b.zip::c.tar")),
        ("simplecache::s3://b/a.mp4", ("simplecache::s3://b/a.mp4", "")),
        ("/x/a::b.mp4", ("/x/a::b.mp4", "")),
        ("zip://a.mp4", ("zip://a.mp4", "")),
    ],
)
def test_the_archive_of_an_address(given: str, parts: tuple[str, str]):
    assert split_link(given) == parts


def test_credentials_of_an_archive_are_stripped_and_names_are_kept():
    signed = "zip://a?b#c@d.mp4::https://user:SECRET@host/x.zip?X-Amz-Signature=SECRET&id=1"
    assert without_credentials(signed) == "zip://a?b#c@d.mp4::https://host/x.zip?id=1"
    assert without_credentials("tar://a?token=1.mp4::/x.tar") == "tar://a?token=1.mp4::/x.tar"


# Limits and damage


def refused(url: str, match: str) -> None:
    fs, path = filesystem(url)
    with pytest.raises(UserError, match=match):
        fs.open(path, "rb")


def test_a_member_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path: Path):
    bomb = zipped(tmp_path / "x.zip", {"a.mp4": bytes(50 << 20)})
    refused(f"zip://a.mp4::{bomb}", "compressed more than 100 times")
    video = zipped(tmp_path / "y.zip")
    with pytest.raises(UserError, match=r"a copy would exceed the limit of 1,000 bytes \(limits.spool_bytes\)"):
        filesystem(f"zip://a.mp4::{video}")[0].open("a.mp4", "rb", max_copy_bytes=1000)


def test_a_member_that_lies_about_its_size(tmp_path: Path):
    content = bytearray(Path(zipped(tmp_path / "x.zip", {"a.mp4": VIDEO})).read_bytes())
    entry = content.rindex(b"PK\1\2")
    for size in (len(VIDEO) - 1000, len(VIDEO) + 1000):
        struct.pack_into("<I", content, entry + 24, size)
        (tmp_path / "lies.zip").write_bytes(content)
        fs, path = filesystem(f"zip://a.mp4::{tmp_path / 'lies.zip'}")
        if size > len(VIDEO):
            with pytest.raises(UserError, match="is damaged"):
                fs.open(path, "rb")
        else:
            with fs.open(path, "rb") as file:
                assert file.read() == VIDEO[:size]
        os.utime(tmp_path / "lies.zip", (2, 2))


def test_what_cannot_be_read_is_one_sentence(tmp_path: Path):
    (tmp_path / "no.zip").write_bytes(b"not an archive")
    refused(f"zip://a.mp4::{tmp_path / 'no.zip'}", "no.zip is damaged: File is not a zip file")
    refused(f"tar://a.mp4::{tmp_path / 'no.zip'}", "no.zip is damaged")
    for kind, name in (("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")):
        refused(f"tar://a.mp4::{tarred(tmp_path / 'x.tar', kind=kind)}", rf"is compressed \({name}\).*plain .tar")
    (tmp_path / "folder.zip").mkdir()
    refused(f"zip://a.mp4::{tmp_path / 'folder.zip'}", "is not a file; expected a zip archive")
    refused(f"zip://a.mp4::{zipped(tmp_path / 'l.zip', method=zipfile.ZIP_LZMA)}", "compressed with method 14")
    secret = bytearray(Path(zipped(tmp_path / "e.zip")).read_bytes())
    secret[secret.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "e.zip").write_bytes(secret)
    refused(f"zip://a.mp4::{tmp_path / 'e.zip'}", "is encrypted")
    with pytest.raises(UserError, match="fewer than 4 others"):
        filesystem("zip://a::zip://b::zip://c::zip://d::zip://e::/x.zip")


def test_members_and_headers_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archives, "MOST_MEMBERS", 3)
    for kind, path in (("zip", zipped(tmp_path / "x.zip")), ("tar", tarred(tmp_path / "x.tar"))):
        refused(f"{kind}://a.mp4::{path}", "more than 3 files")
    monkeypatch.setattr(archives, "MOST_MEMBERS", 100)
    monkeypatch.setattr(archives, "_MOST_DIRECTORY_BYTES", 100)
    monkeypatch.setattr(archives, "_MOST_HEADER_BYTES", 2048)
    os.utime(tmp_path / "x.zip", (1, 1))
    refused(f"zip://a.mp4::{tmp_path / 'x.zip'}", "a header or directory of more than")
    long = tarred(tmp_path / "long.tar", {"x" * 5000 + ".mp4": b""}, format=tarfile.PAX_FORMAT)
    refused(f"tar://a.mp4::{long}", "a header or directory of more than")


@pytest.mark.parametrize("make", [zipped, tarred])
def test_a_damaged_archive_is_a_user_error(tmp_path: Path, make: Callable[[Path], str]):
    whole = Path(make(tmp_path / "whole")).read_bytes()
    kind = "zip" if make is zipped else "tar"

    @for_any(place=st.integers(0, len(whole) - 1), cut=st.booleans(), byte=st.integers(0, 255))
    def damaged(place: int, cut: bool, byte: int) -> None:
        path = tmp_path / "damaged"
        path.write_bytes(whole[:place] if cut else whole[:place] + bytes([byte]) + whole[place + 1 :])
        archives._indexes.clear()
        fs, _ = filesystem(f"{kind}://::{path}")
        try:
            for name in fs.find(""):
                with fs.open(name, "rb") as file:
                    assert len(file.read()) <= fs.info(name)["size"]
        except (UserError, OSError):
            pass

    damaged()
