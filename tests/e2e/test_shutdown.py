"""The end of a gateway or a worker: running requests end in good order, and in time for honcho."""

import signal
import time
from collections.abc import Callable

from stress.clients import ParallelClients
from stress.running_pool import FAKE, RunningPool, chat_body, wait_until

EXIT_S = 30.0
"""honcho kills 5 s after its SIGTERM."""
LONG = "fake: slow@0.05 tokens@2000"


def test_every_client_gets_an_end_when_the_gateway_is_told_to_stop(
    start_pool: Callable[..., RunningPool], record: Callable[[str, object], None]
) -> None:
    """SIGTERM: what can end ends whole; long streams get an error frame, long whole answers a 503; exit 0 in time."""
    pool = start_pool((*FAKE, "--max-concurrency", "4"))
    soon = [chat_body("fake: slow@0.02 tokens@50", stream=stream) for stream in (True, False)]
    late = [chat_body(LONG, stream=stream) for stream in (True, False)]
    queued = [chat_body(LONG, stream=stream) for stream in (True, False, True)]
    pool.open_chat("fake: tokens@200000", stream=True, max_tokens=100_000)  # never read: must not hold anybody up
    crowd = ParallelClients(pool, [*soon, *late, *queued])
    wait_until(lambda: pool.active() == 5 and pool.waiting() == 3)
    began = time.monotonic()
    pool.gateway.signal(signal.SIGTERM)
    clients = crowd.join()
    assert pool.gateway.wait(EXIT_S) == 0
    record("exit_s", round(time.monotonic() - began, 2))
    assert all(client.well_formed for client in clients), clients
    assert [len(client.text().split()) for client in clients[:2]] == [50, 50]
    assert [client.code for client in clients[2:]] == ["shutting_down"] * 5
    assert {client.status for client in clients if not client.body["stream"]} == {200, 503}


def test_idle_gateway_stops_at_once_when_told_to(
    start_pool: Callable[..., RunningPool], record: Callable[[str, object], None]
) -> None:
    """Without requests there is nothing to wait for, also where clients keep connections open."""
    pool = start_pool(FAKE, gateway=("--drain", "100"))
    connection = pool.open("/v1/tokenize", {"prompt": "a"})
    assert b"200 OK" in connection.recv(65536)
    began = time.monotonic()
    pool.gateway.signal(signal.SIGTERM)
    assert pool.gateway.wait(EXIT_S) == 0
    record("exit_s", round(time.monotonic() - began, 2))


def test_gateway_ends_in_good_order_when_it_is_told_twice(start_pool: Callable[..., RunningPool]) -> None:
    """Ctrl-C under honcho is SIGINT from the terminal and SIGTERM from honcho: one end, nothing in the log."""
    pool = start_pool(FAKE)
    crowd = ParallelClients(pool, [chat_body("fake: slow@0.02 tokens@50", stream=True)])
    crowd.wait_for_output(crowd.clients)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
        pool.gateway.signal(number)
    [client] = crowd.join()
    assert client.streamed.whole
    assert pool.gateway.wait(EXIT_S) == 0


def test_streams_end_in_good_order_when_a_worker_is_told_to_stop(start_pool: Callable[..., RunningPool]) -> None:
    """SIGTERM of a supervisor: short streams end whole, long ones with an error frame; then the model is not ready."""
    pool = start_pool(FAKE)
    crowd = ParallelClients(pool, [chat_body("fake: slow@0.02 tokens@50", stream=True), chat_body(LONG, stream=True)])
    crowd.wait_for_output(crowd.clients)
    pool.supervisors[0].signal(signal.SIGTERM)
    short, long = crowd.join()
    assert pool.supervisors[0].wait(EXIT_S) == 0
    assert short.well_formed
    assert short.streamed.whole
    assert long.well_formed
    assert long.code == "worker_lost"
    wait_until(lambda: pool.get("/health").status == 503)
    refused = pool.chat("anyone?")
    assert refused.status == 503
    assert refused.error["code"] == "model_not_ready"
    assert int(refused.headers["retry-after"]) <= 120


def test_job_goes_to_the_other_worker_when_one_drains(start_pool: Callable[..., RunningPool]) -> None:
    """With two workers, nobody notices that one is told to stop."""
    pool = start_pool(FAKE, FAKE)
    wait_until(lambda: pool.get("/health").json()["models"][0]["replicas"] == 2)
    crowd = ParallelClients(
        pool, [chat_body(f"fake: slow@0.02 tokens@{30 + at}", stream=at % 2 == 0) for at in range(8)]
    )
    pool.supervisors[0].signal(signal.SIGTERM)
    more = ParallelClients(pool, [chat_body(f"fake: tokens@{30 + at}", stream=at % 2 == 0) for at in range(24)])
    for at, client in enumerate([*crowd.join(), *more.join()]):
        assert client.code is None, client
        assert client.well_formed
        assert len(client.text().split()) == 30 + (at if at < 8 else at - 8)
