"""Files that are no checkpoint whatever their name says: what happened to them, and what to do."""

_STARTS = (  # of the file, in lower case
    (b"version https://git-lfs", "it is a pointer of Git LFS, not the file: run `git lfs pull` where it was cloned"),
    (b"<!doctype", "it is a web page (HTML), not the file: download from the link behind the page's download button"),
    (b"<html", "it is a web page (HTML), not the file: download from the link behind the page's download button"),
    (b"<?xml", "it is an XML document, an error message of the server perhaps: download the file once more"),
    (b"\x1f\x8b", "it is compressed by gzip: unpack it first"),
    (b"bzh", "it is compressed by bzip2: unpack it first"),
    (b"\xfd7zxz", "it is compressed by xz: unpack it first"),
    (b"7z\xbc\xaf", "it is an archive of 7-Zip: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "it is compressed by zstd: unpack it first"),
)


def mistaken(start: bytes) -> str:
    """Return what a file that begins so is instead of a checkpoint, and what to do, or ""."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((remedy for mark, remedy in _STARTS if begin.startswith(mark)), "")
