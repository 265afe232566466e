"""Which IP addresses are on the public internet. Pure; in doubt an address is not.

The table is our own, not `ipaddress.is_global`: that one differs between Python versions, and calls multicast global.
Sources: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890 and what has been added since).
"""

import ipaddress

NOT_PUBLIC_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # carrier-grade NAT; a cloud's metadata at 100.100.100.200
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # Azure's host, by a public address
            "169.254.0.0/16",  # link-local; metadata at 169.254.169.254
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # AMT
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved; broadcast
        ),
    )
)
GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
"""All that was ever given out. Outside of it: loopback, IPv4-mapped addresses, NAT64, local ones, multicast."""
NOT_PUBLIC_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocol assignments; Teredo, which holds an IPv4 address
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which holds an IPv4 address
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)


def is_public(address: str) -> bool:
    """Return whether anybody on the internet could reach a numeric address. Any other text is not one."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv4Address):
        return not any(found in network for network in NOT_PUBLIC_V4)
    if found.scope_id is not None or found not in GLOBAL_V6:
        return False
    return not any(found in network for network in NOT_PUBLIC_V6)
