"""What an address names, whatever signs it: the key under which a fetched image is kept."""

from __future__ import annotations

import hashlib
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

# Query fields that sign an address for a while and say nothing about what it names: S3, Google, Azure, CloudFront.
_SIGNATURES = {
    "x-amz-algorithm", "x-amz-credential", "x-amz-date", "x-amz-expires", "x-amz-signedheaders", "x-amz-signature",
    "x-amz-security-token", "awsaccesskeyid", "signature", "expires",
    "x-goog-algorithm", "x-goog-credential", "x-goog-date", "x-goog-expires", "x-goog-signedheaders",
    "x-goog-signature", "googleaccessid",
    "sv", "st", "se", "sr", "sp", "spr", "sig", "skoid", "sktid", "skt", "ske", "sks", "skv",
    "policy", "key-pair-id",
}  # fmt: skip
_PROOFS = {"x-amz-signature", "x-goog-signature", "signature", "sig"}


def cache_key(url: str) -> str:
    """What an address names, as a file name.

    A signed address is told apart from its bare form, but not from the same address signed at another time.
    """
    parts = urlsplit(url)
    fields = parse_qsl(parts.query, keep_blank_values=True)
    signed = any(name.lower() in _PROOFS for name, _ in fields)
    if signed:
        fields = [(name, value) for name, value in fields if name.lower() not in _SIGNATURES]
    query = urlencode(fields) if signed else parts.query
    named = urlunsplit((parts.scheme.lower(), parts.netloc.lower(), parts.path, query, ""))
    return hashlib.sha256(f"{'signed ' if signed else ''}{named}".encode("utf-8", "surrogatepass")).hexdigest()
