"""Which addresses are public."""

import ipaddress

import pytest

from gateway.media.addresses import NOT_PUBLIC_V4, NOT_PUBLIC_V6, is_public


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.15.255.255", "172.32.0.0", "100.63.255.255", "100.128.0.0",
                "198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700::1111", "2001:4860:4860::8888",
                "2a00:1450:4001::200e", "2003::1", "2001:200::1"]
)  # fmt: skip
def test_an_address_is_public_when_anybody_could_reach_it(address: str) -> None:
    """Among them the neighbours of those that are not."""
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
     "192.168.0.1", "169.254.169.254", "169.254.0.1", "100.64.0.1", "100.127.255.255", "100.100.100.200", "192.0.0.192",
     "192.0.2.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250",
     "240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1",
     "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::7f00:1",
     "64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:10::1", "2001:20::1", "2001:db8::1",
     "2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0",
     "2606:4700::1111%eth0", "fec0::1", "ff02::1", "ff0e::1", "4000::1"],
)  # fmt: skip
def test_an_address_is_not_public_when_it_is_special(address: str) -> None:
    """Local, private, reserved, multicast, or one that holds another address within."""
    assert not is_public(address)


@pytest.mark.parametrize(
    "text",
    ["", "localhost", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "127.0.0.01", "1.1.1.1.", "１.1.1.1", " 1.1.1.1",
     "1.1.1.1\n", "8.8.8.8/32", "[::1]"],
)  # fmt: skip
def test_text_is_not_public_when_it_is_no_canonical_address(text: str) -> None:
    """What a C library might still read as an address is not one here."""
    assert not is_public(text)


@pytest.mark.parametrize("network", [*NOT_PUBLIC_V4, *NOT_PUBLIC_V6], ids=str)
def test_a_special_network_is_refused_from_end_to_end(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    """Its first and its last address."""
    assert not is_public(str(network[0]))
    assert not is_public(str(network[-1]))
