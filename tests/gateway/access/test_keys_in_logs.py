"""The search for keys in logs finds them: what every test of the suite is held to is no empty promise."""

import logging

import pytest
from stress.key_traces import CLIENT_KEY, KeyLogHandler, note_minted_keys, sent, shown, traces

from gateway.access import gate
from gateway.access.keys.keyring import Keyring
from gateway.access.keys.text import mint
from tests.support.guarded_app import MASTER, Client, bearer, issue


def test_trace_is_found_however_a_key_was_shown() -> None:
    """As a header, in a query, by a client library, made here; whole, or its secret alone. Short words are no keys."""
    sent("/v1/models?api_key=from-a-query-string", {"authorization": "bearer from-a-header", "X-API-Key": "x"})
    _, own = note_minted_keys(mint)()
    _, foreign = mint()
    log = "\n".join(["fine: x", "GET from-a-query-string", "<from-a-header>", own[13:], foreign, f"a {CLIENT_KEY}"])
    assert traces(log) == log.splitlines()[1:]
    assert traces(f"fine: x\n{foreign[13:]}") == []
    assert shown(own) in own


async def test_key_is_heard_when_the_gateway_logs_it(
    client: Client, monkeypatch: pytest.MonkeyPatch, _listener: KeyLogHandler
) -> None:
    """A line at the lowest level with the master key in it is found; that of another key is masked as it is written."""
    plain = Keyring.identify_caller

    def careless(self: Keyring, text: str, now: float) -> object:
        logging.getLogger(gate.__name__).debug("looking for %s", text)
        return plain(self, text, now)

    own = await issue(client, "models")
    monkeypatch.setattr(Keyring, "identify_caller", careless)
    assert (await client.get("/v1/models", headers=bearer(own))).status == 200
    assert _listener.found == []
    assert (await client.get("/v1/models", headers=bearer(MASTER))).status == 200
    assert len(_listener.found) == 2
    _listener.found.clear()
