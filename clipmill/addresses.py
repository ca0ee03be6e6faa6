"""Strip credentials from addresses: passwords and signatures never reach a table, a log or an error.

A signed address (S3, Google, Azure, CloudFront, Alibaba, Tencent, or a site's token) names the same object under every
signature, so ids are derived from the stripped address.
"""

import re
from urllib.parse import unquote

_GRANTS = re.compile(
    r"x-(amz|goog|oss|cos|obs|ms)-.*|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|bearer|jwt|hmac|verify"
    r"|q-(sign|ak|key|header|url|signature)-?.*|hdn(ts|ea|tl)|__token__|__gda__|sig|sign|pass|pwd|auth|authorization"
    r"|(.*[-_.])?(token|secret|password|passwd|credentials?|signature)|access[-_]?(token|key)([-_]?id)?"
    r"|(auth|api|secret|client)[-_]?(key|token|secret)|session([-_]?id)?",
    re.IGNORECASE,
)
"""Query parameters that grant access and never identify an object."""
_BESIDE_SIGNATURE = re.compile(
    r"expires?|exp|e|policy|hash-algorithm|algorithm|sv|sr|sp|st|se|spr|sip|srt|ss|skoid|sktid|skt|ske|sks|skv|sdd"
    r"|saoid|suoid|scid|ses|si|rsc[cdelt]|starttime|endtime",
    re.IGNORECASE,
)
"""Parameters that belong to a signature if there is one, and may mean anything otherwise."""
_SECRET_VALUE = re.compile(
    r"(AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]+.*|(AKIA|ASIA)[A-Z0-9]{12,}|gh[opsur]_\w{20,}|hf_\w{20,}|sk-[\w-]{16,}|ya29\..+)"
)
"""Keys and tokens recognized by their format, regardless of the parameter name."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}://[^\s'\"<>`]+")
_LINK_OF_CHAIN = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.-]*://)")
"""Separates the parts of an address such as simplecache::https://..."""
_WITHOUT_QUERY = {
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "adl",
    "oss",
    "hf",
    "file",
    "memory",
    "sftp",
    "ssh",
    "smb",
}
"""Protocols in which a question mark is part of a name."""
_OF_ARCHIVES = ("zip://", "tar://")


def without_credentials(address: str) -> str:
    """`address` without password, signature and token; unchanged if it has none."""
    chained = _LINK_OF_CHAIN.split(address)
    if len(chained) > 1:
        return "::".join(map(without_credentials, chained))
    if address.lower().startswith(_OF_ARCHIVES):  # a member and the path of a local archive
        return address
    scheme, separator, rest = address.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return address
    host, path = re.fullmatch(r"(?s)([^/?#]*)(.*)", rest).groups()  # type: ignore[union-attr]
    user, at, host = host.rpartition("@")
    web = scheme.lower() not in _WITHOUT_QUERY
    if at and not web:  # in abfs://container@account the part before @ is not a user
        host = f"{user.partition(':')[0]}@{host}"
    if not web:
        return f"{scheme}://{host}{path}"
    path, mark, query = path.partition("#")[0].partition("?")
    public_query = _without_signature(query)
    return f"{scheme}://{host}{path}" + (mark + public_query if public_query or not query else "")


def redacted(text: str) -> str:
    """A message with the credentials stripped from every address in it."""
    return _URL.sub(lambda match: without_credentials(match.group()), text)


def _without_signature(query: str) -> str:
    parameters = [(unquote(parameter.partition("=")[0]), parameter) for parameter in query.split("&")]
    if not any(_grants_access(name, parameter) for name, parameter in parameters):
        return query
    return "&".join(
        parameter
        for name, parameter in parameters
        if not _grants_access(name, parameter) and not _BESIDE_SIGNATURE.fullmatch(name)
    )


def _grants_access(name: str, parameter: str) -> bool:
    return bool(_GRANTS.fullmatch(name) or _SECRET_VALUE.fullmatch(parameter.partition("=")[2]))
