"""Images to embed, as forms and as JSON, over real HTTP: bounds, errors by field, cache. The engine is the fake one."""

import math
import socket
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import seeing
from stress.running_pool import HttpAnswer, RunningPool, wait_until

from tests.support.embedding_runs import table, unpacked
from tests.support.picture_files import data_url, padded, picture

MB = 1 << 20
PNG = picture()
TOO_LARGE = 20 * MB + 1
Part = tuple[str, str | bytes | int]
"""A field or, as bytes, a file; as a number, one of such a size."""


def form(*parts: Part, boundary: str = "b0undary") -> tuple[bytes, dict[str, str]]:
    """A multipart body and its header; bytes are files."""
    body = bytearray()
    for name, given in parts:
        value = padded(given) if isinstance(given, int) else given
        file = isinstance(value, bytes)
        head = f'Content-Disposition: form-data; name="{name}"' + ('; filename="a.png"' if file else "")
        kind = "\r\nContent-Type: image/png" if file else ""
        body += f"--{boundary}\r\n{head}{kind}\r\n\r\n".encode()
        body += (value if isinstance(value, bytes) else value.encode()) + b"\r\n"
    return bytes(body) + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}


def send(pool: RunningPool, path: str, parts: Iterable[Part], **headers: str) -> HttpAnswer:
    body, kind = form(*parts)
    return pool.request("POST", path, body, headers=kind | headers)


def vectors(answer: HttpAnswer) -> Any:
    assert answer.status == 200, answer.body
    return answer.json()["embeddings"]


def fresh() -> bytes:
    """An image that no cache knows."""
    return picture(colour=f"#{uuid.uuid4().hex[:6]}")


def test_image_is_embedded_as_form_and_as_json(encoder: RunningPool) -> None:
    """The same file, the same vector: several in one form, data: URLs in JSON; the second time from the cache."""
    one, two = fresh(), fresh()
    first = send(encoder, "/embed/image", [("file", one), ("file", two), ("file", one)])
    a, b, again = vectors(first)
    assert a == again != b
    assert math.isclose(math.hypot(*a), 1, abs_tol=1e-6)
    answer = first.json()
    assert (answer["shape"], answer["model"], answer["cached"]) == ([3, 8], "fake", False)
    known = encoder.post("/embed/image", {"images": [data_url(two), data_url(one)]})
    assert vectors(known) == [b, a]
    assert known.json()["cached"] is True
    other_option = send(encoder, "/embed/image", [("file", one), ("normalize", "false")])
    assert other_option.json()["cached"] is False


def test_options_come_in_the_form_by_header_or_by_query(encoder: RunningPool) -> None:
    """Numbers and booleans as text; the body wins."""
    body, kind = form(("dimensions", "5"), ("file", fresh()), ("model", "fake"))
    answer = encoder.request("POST", "/embed/image?normalize=false", body, headers=kind)
    [vector] = vectors(answer)
    assert len(vector) == 5
    assert not math.isclose(math.hypot(*vector), 1, abs_tol=1e-3)
    parts: list[Part] = [("file", PNG), ("normalize", "true")]
    [unit] = vectors(send(encoder, "/embed/image", parts, **{"X-MLX-Normalize": "false"}))
    assert math.isclose(math.hypot(*unit), 1, abs_tol=1e-6)


def test_text_and_image_become_one_vector(encoder: RunningPool) -> None:
    """By form or JSON, one pair or several; neither the text's nor the image's own."""
    red, blue = picture(colour="red"), picture(colour="blue")
    [pair] = vectors(send(encoder, "/embed/multimodal", [("text", "a colour"), ("image", red)]))
    parts = [("text", "a colour"), ("image", red), ("text", "a colour"), ("image", blue)]
    assert vectors(send(encoder, "/embed/multimodal", parts))[0] == pair
    by_json = encoder.post("/embed/multimodal", {"text": "a colour", "image": data_url(red)})
    assert vectors(by_json) == [pair]
    assert by_json.json()["cached"] is True
    lists = {"text": ["a colour", "another"], "image": [data_url(red), data_url(red)]}
    first, second = vectors(encoder.post("/embed/multimodal", lists))
    assert first == pair != second
    assert vectors(send(encoder, "/embed/image", [("file", red)])) != [pair]
    assert vectors(encoder.post("/embed/text", {"texts": ["a colour"]})) != [pair]


@pytest.mark.parametrize(
    ("path", "parts", "status", "param"),
    [
        ("/embed/image", [], 400, "file"),
        ("/embed/image", [("normalize", "true")], 400, "file"),
        ("/embed/image", [("file", "text")], 400, "file"),
        ("/embed/image", [("file", b"GIF89a")], 400, "file"),
        ("/embed/image", [("file", PNG), ("file", PNG[:20])], 400, "file[1]"),
        ("/embed/image", [("file", PNG)] * 17, 400, "file"),
        ("/embed/image", [("file", PNG), ("normalize", "perhaps")], 400, "normalize"),
        ("/embed/image", [("file", PNG), ("dimensions", "0")], 400, "dimensions"),
        ("/embed/image", [("file", PNG), ("dimensions", "9")], 400, "dimensions"),
        ("/embed/image", [("file", PNG), ("dimensions", "5"), ("dimensions", "6")], 400, "dimensions"),
        ("/embed/image", [("file", PNG), ("batch_size", "129")], 400, "batch_size"),
        ("/embed/image", [("file", PNG), ("backend_preference", "torch")], 400, "backend_preference"),
        ("/embed/image", [("file", PNG), ("device_preference", "tpu")], 400, "device_preference"),
        ("/embed/image", [("file", PNG), ("max_tokens_per_text", "5")], 400, "max_tokens_per_text"),
        ("/embed/image", [("file", PNG), ("image", PNG)], 400, "image"),
        ("/embed/image", [("file", PNG), ("text", "x" * (MB + 1))], 413, "text"),
        ("/embed/image", [("file", TOO_LARGE)], 413, "file"),
        ("/embed/image", [("file", PNG), ("file", TOO_LARGE)], 413, "file[1]"),
        ("/embed/multimodal", [("image", PNG)], 400, "text"),
        ("/embed/multimodal", [("text", "a")], 400, "image"),
        ("/embed/multimodal", [("text", ""), ("image", PNG)], 400, "text"),
        ("/embed/multimodal", [("text", "a"), ("text", "b"), ("image", PNG)], 400, "image"),
        ("/embed/multimodal", [("text", "a"), ("image", b"no image")], 400, "image"),
        ("/embed/multimodal", [("text", "a"), ("image", PNG), ("dimensions", "0")], 400, "dimensions"),
    ],
)  # fmt: skip
def test_bad_form_is_named(encoder: RunningPool, path: str, parts: list[Part], status: int, param: str) -> None:
    """The field at fault, as it is called in the form."""
    answer = send(encoder, path, parts)
    assert (answer.status, answer.error["param"]) == (status, param), answer.body
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/embed/image", {}, "images"),
        ("/embed/image", {"images": []}, "images"),
        ("/embed/image", {"images": data_url(PNG)}, "images"),
        ("/embed/image", {"images": [data_url(PNG)] * 17}, "images"),
        ("/embed/image", {"images": [data_url(PNG), data_url(b"text")]}, "images[1]"),
        ("/embed/image", {"images": ["data:image/png;base64,!!!!"]}, "images[0]"),
        ("/embed/image", {"images": ["file:///etc/passwd"]}, "images[0]"),
        ("/embed/image", {"images": ["http://127.0.0.1/a.png"]}, "images[0]"),
        ("/embed/image", {"file": data_url(PNG)}, "file"),
        ("/embed/multimodal", {"text": "a"}, "image"),
        ("/embed/multimodal", {"image": data_url(PNG)}, "text"),
        ("/embed/multimodal", {"text": ["a", "b"], "image": data_url(PNG)}, "image"),
        ("/embed/multimodal", {"text": "a", "image": data_url(b"text")}, "image"),
    ],
)
def test_bad_json_is_named(encoder: RunningPool, path: str, body: Any, param: str) -> None:
    """400, before any job is made; nothing local is opened, nothing private fetched."""
    answer = encoder.post(path, body)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


def test_bounds_of_forms_are_inclusive(encoder: RunningPool) -> None:
    """Sixteen files; one of 20 MB; a text of many words."""
    assert len(vectors(send(encoder, "/embed/image", [("file", PNG)] * 16))) == 16
    assert len(vectors(send(encoder, "/embed/image", [("file", padded(20 * MB))]))) == 1
    assert len(vectors(send(encoder, "/embed/multimodal", [("text", "a " * 10_000), ("image", PNG)]))) == 1


HEAD = b'--b0undary\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
KIND = {"Content-Type": "multipart/form-data; boundary=b0undary"}


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", KIND),
        (b"no boundary anywhere", KIND),
        (b"\r\n" * 100_000 + form(("file", PNG))[0], KIND),
        (HEAD + b"\r\n" + PNG, KIND),
        (HEAD + b"\r\n" + PNG + b"\r\n--other--\r\n", KIND),
        (HEAD + b"x" * 9000 + b": y\r\n\r\n" + PNG + b"\r\n--b0undary--\r\n", KIND),
        (HEAD + b"A: b\r\n" * 100 + b"\r\n" + PNG + b"\r\n--b0undary--\r\n", KIND),
        (b"--b0undary\r\nContent-Type: image/png\r\n\r\n" + PNG + b"\r\n--b0undary--\r\n", KIND),
        (HEAD + b"Content-Transfer-Encoding: base64\r\n\r\nAAAA\r\n--b0undary--\r\n", KIND),
        (HEAD + b"Content-Encoding: gzip\r\n\r\nAAAA\r\n--b0undary--\r\n", KIND),
        (HEAD + b"Content-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b0undary--\r\n", KIND),
        (b'--b0undary\r\nContent-Disposition: form-data; name="text"\r\n\r\n\xff\xfe\r\n--b0undary--\r\n', KIND),
        (form(*[(f"f{at}", "x") for at in range(200)])[0], KIND),
        (form(("file", PNG))[0], {"Content-Type": "multipart/form-data"}),
        (form(("file", PNG))[0], {"Content-Type": f"multipart/form-data; boundary={'b' * 100}"}),
    ],
    ids=lambda value: str(len(value)),
)
def test_malformed_form_is_a_400(encoder: RunningPool, body: bytes, kind: dict[str, str]) -> None:
    """In the one shape of errors, whatever is wrong with it; the pool goes on."""
    answer = encoder.request("POST", "/embed/image", body, headers=kind)
    assert (answer.status, answer.error["code"]) == (400, "invalid_request"), answer.body
    assert len(vectors(send(encoder, "/embed/image", [("file", PNG)]))) == 1


@pytest.mark.parametrize("kind", ["text/plain", "image/png", "multipart/mixed; boundary=b0undary"])
def test_other_types_of_body_are_refused(encoder: RunningPool, kind: str) -> None:
    """415, naming both that are taken."""
    answer = encoder.request("POST", "/embed/image", PNG, headers={"Content-Type": kind})
    assert answer.status == 415
    assert "multipart/form-data" in answer.error["message"]


@pytest.mark.parametrize("declared", [True, False])
def test_form_of_more_than_a_hundred_megabytes_is_refused(encoder: RunningPool, declared: bool) -> None:
    """By its declared length, unread; without one, as soon as it is over."""
    head = f"POST /embed/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {KIND['Content-Type']}\r\n"
    length = f"Content-Length: {100 * MB + 1}" if declared else "Transfer-Encoding: chunked"
    with socket.create_connection(("127.0.0.1", encoder.port), timeout=30) as connection:
        connection.sendall(f"{head}{length}\r\n\r\n".encode())
        if not declared:
            part = HEAD + b"\r\n" + padded(19 * MB) + b"\r\n"
            for _ in range(5):
                connection.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            connection.sendall(f"{6 * MB:x}\r\n".encode() + HEAD + b"\r\n" + bytes(6 * MB - len(HEAD) - 2))
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_model_without_images_names_the_field(minilm: RunningPool) -> None:
    """A model of texts says that it takes none, by the name of this endpoint's field."""
    for path, parts, param in (
        ("/embed/image", [("file", PNG)], "file"),
        ("/embed/multimodal", [("text", "a"), ("image", PNG)], "image"),
    ):
        answer = send(minilm, path, parts)
        assert (answer.status, answer.error["param"]) == (400, param)
        assert "texts only" in answer.error["message"]
    answer = minilm.post("/embed/image", {"images": [data_url(PNG)]})
    assert (answer.status, answer.error["param"]) == (400, "images")


def test_images_are_let_go_with_their_request(encoder: RunningPool) -> None:
    """Also those of clients that leave halfway: a thousand megabytes of broken uploads take no room from the next."""
    data = form(("file", padded(18 * MB)))[0]
    head = f"POST /embed/image HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {KIND['Content-Type']}\r\n"
    for _ in range(60):
        with socket.create_connection(("127.0.0.1", encoder.port), timeout=30) as connection:
            connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data[: 17 * MB])
    wait_until(encoder.idle, what="nothing runs")
    assert len(vectors(send(encoder, "/embed/image", [("file", padded(20 * MB))]))) == 1


def test_document_shows_forms(encoder: RunningPool) -> None:
    """Both kinds of body, the files among the fields."""
    document = encoder.get("/openapi.json").json()
    content = document["paths"]["/embed/image"]["post"]["requestBody"]["content"]
    assert content.keys() == {"application/json", "multipart/form-data"}
    fields = document["components"]["schemas"]["EmbedImageForm"]
    assert fields["properties"]["file"]["items"] == {"type": "string", "format": "binary"}
    assert "file" in fields["required"]
    assert "images" not in fields["properties"]


@pytest.mark.mlx
def test_real_model_embeds_what_clients_upload(start_pool: Callable[..., RunningPool], tmp_path: Path) -> None:
    """A tiny SigLIP of random weights: vectors of the reference; a file with broken pixels fails by its name, alone."""
    folder = seeing.write("siglip", tmp_path / "siglip")
    pool = start_pool(("--model-type", "embedding", "--model-path", str(folder), "--served-name", "see"))
    wanted = unpacked(table("tiny")["siglip"], 12)
    files = seeing.pictures()
    found = vectors(send(pool, "/embed/image", [("file", file) for file in files]))
    assert (np.array(found) * wanted[4:8]).sum(axis=1).min() >= 0.999
    pairs: list[Part] = [("text", text) for text in seeing.TEXTS]
    found = vectors(send(pool, "/embed/multimodal", [*pairs, *[("image", file) for file in files]]))
    assert (np.array(found) * wanted[8:]).sum(axis=1).min() >= 0.999
    broken = picture((64, 64), colour="green")[:-30]
    for parts, param in (([("file", broken)], "file"), ([("file", files[0]), ("file", broken)], "file[1]")):
        answer = send(pool, "/embed/image", parts)
        assert (answer.status, answer.error["param"]) == (400, param), answer.body
    answer = send(pool, "/embed/multimodal", [("text", "a"), ("image", broken)])
    assert (answer.status, answer.error["param"]) == (400, "image")
    answer = send(pool, "/embed/multimodal", [("text", "w1 " * 500), ("image", files[0])])
    assert (answer.status, answer.error["param"], answer.error["code"]) == (400, "text", "context_length_exceeded")
    info = pool.get("/info").json()
    assert "embed_image" in info["capabilities"]
    assert info["throughput"]["inputs"] == 8
