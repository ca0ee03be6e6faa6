"""The proxy that the environment names for an address: http_proxy, https_proxy, all_proxy, no_proxy."""

import ipaddress
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass


def proxy_for(url: str) -> str | None:
    """Address of the proxy for `url`, with a scheme; None to connect directly.

    Loopback addresses never use a proxy, which could not reach them: in containers http_proxy is often set without
    no_proxy.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    proxies = getproxies()
    address = proxies.get(parts.scheme) or proxies.get("all")
    if not address or _is_loopback(host) or proxy_bypass(host):
        return None
    return address if "://" in address else f"http://{address}"


def proxy_options(url: str) -> dict[str, Any]:
    """fsspec's options for a web address: it ignores the environment's proxy."""
    proxy = proxy_for(url)
    return {"proxy": proxy} if proxy and proxy.startswith(("http://", "https://")) else {}


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
