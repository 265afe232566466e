"""What vision adds to the chat engine: pictures in caches, in chunks, in crowds; and what it refuses."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt, Failed, GenerateJob, Grammar, TextPrompt, TokenizeJob
from tests.support.engine_runs import job, prepared, run
from tests.support.peft_adapters import PREFIX, merged, write_peft
from tests.support.vision_runs import look, noise, shown
from worker.config import WorkerConfig
from worker.decoding.decoders import Decoders
from worker.engines.base import EngineLoadError
from worker.engines.vision.engine import VisionEngine
from worker.engines.vision.loading import load_vision
from worker.engines.vision.model import VisualModel

pytestmark = pytest.mark.mlx

FILES = [noise(seed, 60 + 10 * (seed % 5), 150 - 9 * (seed % 7)) for seed in range(16)]
LONG = "It is far away and far below. " * 8


def make(folder: Path, **settings: Any) -> VisionEngine:
    engine = VisionEngine(WorkerConfig(model_path=str(folder), served_name="m", **settings))
    engine.load()
    return engine


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("qwen2-vl")


@pytest.fixture(scope="module")
def engine(folder: Path) -> VisionEngine:
    """With both caches: a test takes a tenant of its own."""
    return make(folder)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> VisionEngine:
    """What an engine without caches says is what is right."""
    return make(folder, prefix_cache_bytes=0, feature_cache_bytes=0)


@pytest.fixture
def looks(engine: VisionEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every picture that goes through the vision tower."""
    seen: list[Any] = []
    own = VisualModel.encode_image
    monkeypatch.setattr(VisualModel, "encode_image", lambda self, picture: seen.append(picture) or own(self, picture))
    yield seen
    assert not engine.busy


def tokens(engine: VisionEngine, *jobs: GenerateJob) -> list[list[int]]:
    outcomes = run(engine, jobs, files=FILES)
    return [outcomes[job.job].tokens[0] for job in jobs]


def crowd() -> list[GenerateJob]:
    """Sixteen requests, every other one with images, each with its own sampling."""
    samplings: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3, "top_k": 20},
        {"temperature": 1.0, "repetition_penalty": 1.2},
    ]
    turns: list[tuple[Any, ...]] = [
        (("What is ", 0, "?"),),
        ("Tell me of the sea.",),
        ((1, 2, "Which is larger?"), "The first.", ("And ", 3)),
        (LONG, "Yes.", "Go on."),
    ]
    jobs = []
    for number in range(16):
        own = [
            turn
            if isinstance(turn, str)
            else [(part + number) % 16 if isinstance(part, int) else part for part in turn]
            for turn in turns[number % 4]
        ]
        sampling = {**samplings[number // 4], "seed": 100 + number}
        jobs.append(look(number, FILES, *own, sampling=sampling, max_tokens=12 + number, tenant=f"crowd{number}"))
    return jobs


def test_sixteen_mixed_requests_say_what_each_says_alone(engine: VisionEngine, fresh: VisionEngine) -> None:
    """Text and images, four ways of sampling, sixteen seeds: nobody gets a neighbour's answer."""
    jobs = crowd()
    together = tokens(engine, *jobs)
    assert together == [tokens(fresh, job)[0] for job in jobs]
    assert len({tuple(row) for row in together}) == 16


def test_rows_that_join_later_say_what_they_say_alone(engine: VisionEngine, fresh: VisionEngine) -> None:
    """A picture is looked at, and its prompt computed, while others decode."""
    jobs = [look(n, FILES, (f"What {n} ", n, LONG), max_tokens=24, tenant="join") for n in range(4)]
    found: dict[int, list[int]] = {job.job: [] for job in jobs}
    pending, step = list(jobs), 0
    while pending or engine.busy:
        if pending and step % 5 == 0:
            job = pending.pop(0)
            engine.admit(prepared(engine, job, FILES))
        for message in engine.step():
            found[message.job].extend(getattr(message, "tokens", []))
        step += 1
    assert [found[job.job] for job in jobs] == [tokens(fresh, job)[0] for job in jobs]


@pytest.mark.parametrize("name", ["qwen2-vl", "qwen3-vl", "gemma3-vl"])
def test_prompt_in_small_chunks_says_the_same(name: str, model_folder: Callable[[str], Path]) -> None:
    """Chunks of 16 tokens cut pictures in two, beside a row that decodes."""
    jobs = [look(0, FILES, "Hello", max_tokens=40), look(1, FILES, ("See ", 1, LONG, 2), max_tokens=16)]
    whole = make(model_folder(name), prefix_cache_bytes=0)
    chunked = make(model_folder(name), prefix_cache_bytes=0, prefill_chunk=16)
    assert tokens(chunked, *jobs) == tokens(whole, *jobs)


def test_second_turn_looks_at_nothing(engine: VisionEngine, fresh: VisionEngine, looks: list[Any]) -> None:
    """What a conversation has shown is in its prefix: neither looked at nor asked for again, and counted as cached."""
    first = look(1, FILES, ("What is ", 0, LONG), max_tokens=12, tenant="turns")
    said = run(engine, [first], files=FILES)[1]
    before = engine.gauges()
    assert len(looks) == 1
    second = look(2, FILES, ("What is ", 0, LONG), said.text[0], "Why?", max_tokens=12, tenant="turns")
    outcome = run(engine, [second], files=FILES)[2]
    after = engine.gauges()
    assert len(looks) == 1
    assert after.feature_lookups == before.feature_lookups
    assert after.prefix_hits > before.prefix_hits
    assert first.images and outcome.usage and said.usage
    assert outcome.usage.cached_tokens >= said.usage.prompt_tokens - 1
    assert outcome.tokens[0] == tokens(fresh, second)[0]


@pytest.mark.parametrize("name", ["qwen2-vl", "gemma3-vl"])
def test_next_engine_knows_what_was_shown_to_the_last_one(
    name: str, model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation on disk goes on behind its picture, which is not looked at again; another tenant's is."""
    asked = look(1, FILES, ("What is ", 0, LONG * 5), max_tokens=12, tenant="disk")
    first = make(model_folder(name), prefix_disk_folder=tmp_path / "prefixes")
    said = run(first, [asked], files=FILES)[1]
    first.close(20)
    turn = look(2, FILES, ("What is ", 0, LONG * 5), said.text[0], "Why?", max_tokens=12, tenant="disk")
    expected = tokens(make(model_folder(name), prefix_cache_bytes=0), turn)
    second = make(model_folder(name), prefix_disk_folder=tmp_path / "prefixes")
    with monkeypatch.context() as patch:
        patch.setattr(VisualModel, "encode_image", lambda *_: pytest.fail("it was looked at again"))
        found = run(second, [turn], files=FILES)[2]
    assert found.usage and found.usage.cached_tokens >= 256
    assert [found.tokens[0]] == expected
    stranger = run(second, [look(3, FILES, ("What is ", 0, LONG * 5), tenant="other", max_tokens=2)], files=FILES)[3]
    assert stranger.usage and stranger.usage.cached_tokens == 0


def test_known_picture_costs_no_look_and_no_decoding(
    engine: VisionEngine, fresh: VisionEngine, looks: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked otherwise, by the same tenant: features by content. Another tenant starts from nothing."""
    tokens(engine, look(1, FILES, (3, "What is it?"), max_tokens=4, tenant="known"))
    before = engine.gauges()
    again = look(2, FILES, ("Now, once more: ", 3, "Which?"), max_tokens=8, tenant="known")
    with monkeypatch.context() as patch:
        patch.setattr(Decoders, "submit_image", lambda *_, **__: pytest.fail("it was decoded again"))
        found = tokens(engine, again)
    after = engine.gauges()
    assert (len(looks), after.feature_hits - before.feature_hits) == (1, 1)
    assert after.feature_bytes == before.feature_bytes > 0
    assert found == tokens(fresh, again)
    looks.clear()
    tokens(engine, look(3, FILES, (3, "What is it?"), max_tokens=4, tenant="stranger"))
    assert len(looks) == 1


def test_pictures_of_one_size_are_not_mixed_up_by_the_prefix_cache(engine: VisionEngine, fresh: VisionEngine) -> None:
    """Their tokens are the same ids; what they show is not."""
    files = [noise(50), noise(51)]
    jobs = [look(n, files, (LONG, n, "What is it?"), max_tokens=12, tenant="twins") for n in (0, 1)]
    found = [run(engine, [job], files=files)[job.job] for job in jobs]
    assert found[1].tokens != found[0].tokens
    assert found[1].tokens == run(fresh, [jobs[1]], files=files)[1].tokens
    assert found[1].usage and 16 < found[1].usage.cached_tokens < found[1].usage.prompt_tokens - 10


def test_text_behind_a_prefix_that_once_went_on_with_a_picture(engine: VisionEngine, fresh: VisionEngine) -> None:
    """The picture moved the positions of the row that left the prefix; a text that shares it is not moved."""
    tokens(engine, look(1, FILES, (LONG, 5, "What is it?"), max_tokens=8, tenant="prefix"))
    text = look(2, FILES, LONG + "Go on.", max_tokens=16, tenant="prefix")
    outcome = run(engine, [text], files=FILES)[2]
    assert outcome.usage and outcome.usage.cached_tokens > 16
    assert outcome.tokens[0] == tokens(fresh, text)[0]


def test_answer_about_a_picture_follows_a_grammar(engine: VisionEngine) -> None:
    """A row that sees is ruled like any other, beside rows that are not."""
    ruled = look(1, FILES, ("What is ", 7), grammar=Grammar("regex", "(blue|red) [0-9]{2}", "p"), tenant="grammar")
    free = look(2, FILES, ("What is ", 8), max_tokens=12, tenant="grammar")
    outcomes = run(engine, [ruled, free], files=FILES)
    assert re.fullmatch("(blue|red) [0-9]{2}", outcomes[1].text[0])
    assert outcomes[2].tokens[0] == tokens(engine, free)[0]


def test_choices_share_one_look(engine: VisionEngine, looks: list[Any]) -> None:
    """Three answers, one picture seen once, log-probabilities with each token."""
    asked = look(1, FILES, ("What is ", 7), n=3, logprobs=2, max_tokens=6, sampling={"temperature": 1.0}, tenant="n")
    outcome = run(engine, [asked], files=FILES)[1]
    assert len(looks) == 1
    assert [len(outcome.tokens[choice]) for choice in range(3)] == [6, 6, 6]
    assert all(len(delta.logprobs) == len(delta.tokens) for delta in outcome.deltas)


def test_resumed_request_goes_on_where_it_was(engine: VisionEngine, fresh: VisionEngine) -> None:
    """Tokens that were delivered follow the picture; the rest is as if nothing had happened."""
    asked: dict[str, Any] = {"max_tokens": 20, "sampling": {"temperature": 0.8, "seed": 5}}
    whole = tokens(fresh, look(1, FILES, ("What is ", 8), **asked))[0]
    for done in (1, 7, 19):
        resumed = look(2, FILES, ("What is ", 8), **asked, delivered=[whole[:done]], tenant=f"resumed{done}")
        assert tokens(engine, resumed)[0] == whole[done:]


def test_cancelled_before_its_pictures_were_looked_at(engine: VisionEngine, looks: list[Any]) -> None:
    """Nothing more is looked at, and nothing stays aboard."""
    asked = look(1, FILES, (9, 10, 11, "What are these?"), max_tokens=4, tenant="gone")
    engine.admit(prepared(engine, asked, FILES))
    engine.step()
    assert len(looks) == 1
    assert engine.cancel(1)
    assert not engine.busy
    assert engine.gauges().running == engine.gauges().waiting == 0


def test_picture_that_can_not_be_looked_at_fails_its_own_request(
    engine: VisionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others complete."""
    own, bad = VisualModel.encode_image, noise(60, 77, 77)

    def picky(self: VisualModel, picture: Any) -> Any:
        if picture.key[0] == "bad":
            raise ValueError("no")
        return own(self, picture)

    monkeypatch.setattr(VisualModel, "encode_image", picky)
    files = [bad, noise(61)]
    jobs = [look(0, files, (0, "What?"), tenant="bad", max_tokens=4), look(1, files, (1, "What?"), max_tokens=4)]
    outcomes = run(engine, jobs, files=files)
    assert isinstance(outcomes[0].failed, Failed)
    assert outcomes[0].failed.code == Code.ENGINE_ERROR
    assert len(outcomes[1].tokens[0]) == 4


def test_engine_ends_when_the_device_fails_at_a_picture(engine: VisionEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that it computes from then on could be trusted."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("[METAL] Command buffer execution failed: Innocent Victim")

    monkeypatch.setattr(VisualModel, "encode_image", fail)
    files = [noise(62)]
    with pytest.raises(RuntimeError, match="METAL"):
        run(engine, [look(7, files, (0, "What?"), max_tokens=4)], files=files)
    engine.cancel(7)


def test_pixels_beyond_their_bound_are_made_when_needed(
    engine: VisionEngine, fresh: VisionEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits in memory but the files, and the answer is the same."""
    asked = look(1, FILES, (12, 13, "What are these?"), max_tokens=8, tenant="bound")
    expected = tokens(fresh, asked)
    monkeypatch.setattr("worker.engines.vision.image_processor.PIXELS_BYTES", 0)
    assert all(picture.pixels is None for picture in prepared(engine, asked, FILES).images.placeholders)
    assert tokens(engine, asked) == expected


def test_detail_low_takes_fewer_tokens(engine: VisionEngine, folder: Path) -> None:
    """As far as the model has a choice: at most 512 x 512 pixels are left before its own processor cuts them up."""
    file = noise(70, 1400, 700)
    engine.preprocessor.loaded_vision.processor.image_processor.max_pixels, own = 28 * 28 * 4096, 28 * 28 * 64  # type: ignore[attr-defined]
    try:
        sizes = []
        for detail in ("high", "low"):
            asked = look(1, [file], (0, "What?"), detail=detail, max_tokens=1, tenant=f"detail {detail}")
            sizes.append(len(prepared(engine, asked, [file]).prompt))
    finally:
        engine.preprocessor.loaded_vision.processor.image_processor.max_pixels = own  # type: ignore[attr-defined]
    assert sizes[0] > 1000 > 400 > sizes[1] > 300


def test_tokens_of_images_count(engine: VisionEngine, folder: Path) -> None:
    """In the prompt, in what /v1/tokenize says, and against the context."""
    asked = look(1, FILES, ("What is ", 0, " and ", 1), max_tokens=1, tenant="count")
    outcome = run(engine, [asked], files=FILES)[1]
    listed = prepared(engine, TokenizeJob(2, 0, asked.prompt, asked.images), FILES).tokens
    assert outcome.usage and outcome.usage.prompt_tokens == len(listed)
    pad = engine.loaded.config["image_token_id"]
    assert listed.count(pad) == 4 * 2 + 4 * 3
    small = make(folder, context_length=len(listed))
    with pytest.raises(JobError) as refused:
        prepared(small, asked, FILES)
    assert refused.value.code == Code.CONTEXT_LENGTH


def test_text_can_not_forge_an_image(engine: VisionEngine) -> None:
    """A user who writes the model's mark for images gets letters, not a place for one."""
    forged = look(1, FILES, ("<|image_pad|> <|vision_start|> and ", 0), max_tokens=1, tenant="forged")
    ready = prepared(engine, forged, FILES)
    pad = engine.loaded.config["image_token_id"]
    assert ready.prompt.count(pad) == len(ready.images.placeholders[0].places)


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        (lambda j: {"images": [shown(FILES[0], 99)]}, "images[0]", "did not come"),
        (lambda j: {"images": [*j.images, shown(FILES[1], 1)]}, "messages", "shows 1 of the request's 2 images"),
        (lambda j: {"prompt": TextPrompt("<|image_pad|>")}, "images[0]", "messages of a chat"),
    ],
)
def test_images_that_do_not_fit_their_prompt(
    engine: VisionEngine, change: Callable[[GenerateJob], dict[str, Any]], param: str, says: str
) -> None:
    """A clear refusal, whoever made the mistake."""
    asked = look(1, FILES, ("What is ", 0), max_tokens=1)
    with pytest.raises(JobError, match=says) as refused:
        prepared(engine, msgspec.structs.replace(asked, **change(asked)), FILES)
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, param)


def test_broken_file_fails_its_own_request(engine: VisionEngine) -> None:
    """It is found in preparation, named by its number; requests beside it are not concerned."""
    files = [FILES[0], FILES[1][:100]]
    with pytest.raises(JobError) as refused:
        prepared(engine, look(1, files, (0, 1), max_tokens=4), files)
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "images[1]")
    assert len(tokens(engine, look(2, FILES, (0, "What?"), max_tokens=4))[0]) == 4


def test_wide_image_that_the_family_refuses(engine: VisionEngine) -> None:
    """Qwen's processor takes nothing 200 times as wide as high: the caller's error."""
    file = noise(80, 3000, 8)
    with pytest.raises(JobError) as refused:
        prepared(engine, look(1, [file], (0, "What?"), max_tokens=1), [file])
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "images[0]")


def test_text_model_refuses_images(model_folder: Callable[[str], Path]) -> None:
    """By name, before anything is computed."""
    from worker.engines.chat.engine import ChatEngine

    engine = ChatEngine(WorkerConfig(model_path=str(model_folder("qwen3")), served_name="m"))
    engine.load()
    with pytest.raises(JobError) as refused:
        prepared(engine, look(1, FILES, (0, "What?"), max_tokens=1), FILES)
    assert (refused.value.code, refused.value.param) == (Code.INVALID_REQUEST, "images[0]")


def test_family_that_comes_out_otherwise_is_not_served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is proved when it is loaded, with a picture, against mlx-vlm itself."""
    own = VisualModel.encode_image

    def mirrored(self: VisualModel, picture: Any) -> Any:
        features = own(self, picture)
        return type(features)(features.rows[::-1], features.deep)

    monkeypatch.setattr(VisualModel, "encode_image", mirrored)
    with pytest.raises(EngineLoadError, match="'qwen2_vl' are not supported"):
        make(folder)


@pytest.mark.parametrize(
    ("config", "says"),
    [({"adapters": {"sql": "x"}}, "--adapter: .*--adapter-path"), ({"draft_model": "x"}, "--draft-model")],
)
def test_what_only_chat_models_have_is_refused(folder: Path, config: dict[str, Any], says: str) -> None:
    """Adapters beside the model, and drafts."""
    engine = VisionEngine(WorkerConfig(model_path=str(folder), served_name="x", **config))
    with pytest.raises(EngineLoadError, match=says):
        engine.load()


def test_folder_with_code_is_refused(folder: Path, tmp_path: Path) -> None:
    """`model_file` would have mlx-vlm run it."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(config.replace("{", '{"model_file": "evil.py",', 1))
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(EngineLoadError, match="never run"):
        make(tmp_path)


def test_description_says_that_it_sees(engine: VisionEngine) -> None:
    """What the gateway goes by."""
    ready = engine.describe()
    assert {"chat", "vision", "tools", "reasoning", "tokenize"} <= set(ready.capabilities)
    assert "vision" in ready.tags
    assert ready.family == "qwen"


def test_plain_prompts_and_tools_work_as_on_chat_models(engine: VisionEngine, fresh: VisionEngine) -> None:
    """Completions, stops and a tool's template are the chat engine's own."""
    plain = job(1, "Once upon a time", max_tokens=16, tenant="plain")
    assert len(tokens(engine, plain)[0]) == 16
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    offered = look(2, FILES, ("What is ", 0), max_tokens=4, tenant="tools")
    assert isinstance(offered.prompt, ChatPrompt)
    prompt = ChatPrompt(offered.prompt.messages, msgspec.json.encode([tool]), {})
    offered = msgspec.structs.replace(offered, prompt=prompt)
    assert tokens(engine, offered) == tokens(fresh, offered)


def test_peft_adapter_answers_as_the_model_that_it_is_merged_into(folder: Path, tmp_path: Path) -> None:
    """Layers are called as transformers calls them; those of the tower are not adapted but refused."""
    layers = ["language_model.model.layers.0.self_attn.q_proj", "language_model.model.layers.1.mlp.down_proj"]
    bare = load_vision(WorkerConfig(model_path=str(folder), served_name="m")).text.model
    adapter = write_peft(tmp_path / "adapter", bare, layers, seed=7)
    ids = mx.array([[*range(100, 120)]])
    wanted = np.array(merged(bare, adapter).language_model(ids).logits)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)

    def named(place: str) -> Any:
        own = f"{PREFIX}language_model.model."
        save_file({key.replace(own, f"{PREFIX}{place}."): array for key, array in tensors.items()}, file)
        config = WorkerConfig(model_path=str(folder), served_name="m", adapter_path=str(adapter))
        return load_vision(config).text.model.language_model

    assert abs(np.array(named("model.language_model")(ids).logits) - wanted).max() < 1e-3
    assert abs(np.array(bare.language_model(ids).logits) - wanted).max() > 0.1
    with pytest.raises(EngineLoadError, match=r"adapts model\.visual\.layers\.\d\..*, which the model does not have"):
        named("model.visual")


SCREEN = [{"type": "text", "text": "the screen"}, {"type": "image"}]
WITHOUT_IMAGES_OF_TOOLS = """
{%- for m in messages -%}
{%- if m.role == 'tool' and m.content is not string %}{{ raise_exception('Results are text.') }}{% endif -%}
<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}
{{- part.text if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}{% endfor %}{% endif -%}
{%- for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor -%}
<|im_end|>
{% endfor -%}
"""


def tool_shows() -> list[Any]:
    """A conversation in which two tools answer images, and the user shows another."""
    functions = [
        {"id": f"c{number}", "type": "function", "function": {"name": f"look_{number}", "arguments": {}}}
        for number in range(2)
    ]
    return [
        {"role": "user", "content": "Look twice."},
        {"role": "assistant", "content": "", "tool_calls": functions},
        {"role": "tool", "tool_call_id": "c0", "content": SCREEN},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "image"}]},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, {"type": "image"}]},
    ]


def test_images_of_a_tool_are_seen_where_they_stand(fresh: VisionEngine) -> None:
    """The template shows them in results, as it does a user's; all three are in the prompt, each its own."""
    assert "images_in_results" in fresh.describe().capabilities
    prompt = ChatPrompt(msgspec.json.encode(tool_shows()))
    text = fresh.preprocessor.prompter.render_chat(prompt)
    results = text[text.index("<tool_response>") : text.rindex("</tool_response>")]
    assert "the screen<|vision_start|><|image_pad|><|vision_end|>" in results
    assert (results.count("<|image_pad|>"), text.count("<|image_pad|>")) == (2, 3)
    asked = job(1, prompt, images=[shown(FILES[at], at) for at in range(3)], max_tokens=4)
    seen = [picture.key for picture in prepared(fresh, asked, FILES).images.placeholders]
    assert seen == [picture.key for picture in prepared(fresh, look(2, FILES, [0, 1, 2]), FILES).images.placeholders]
    assert len(run(fresh, [asked], files=FILES)[1].tokens[0]) >= 1


def test_images_of_a_tool_follow_where_the_template_shows_none(folder: Path, tmp_path: Path) -> None:
    """In a user message behind the results, which says whose they are; the order of images stays."""
    made = tmp_path / "model"
    shutil.copytree(folder, made)
    (made / "chat_template.jinja").write_text(WITHOUT_IMAGES_OF_TOOLS)
    engine = make(made, prefix_cache_bytes=0, feature_cache_bytes=0)
    assert "images_in_results" not in engine.describe().capabilities
    prompt = ChatPrompt(msgspec.json.encode(tool_shows()))
    text = engine.preprocessor.prompter.render_chat(prompt)
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    moved = f"user\nImages in the result of look_0:{image}Images in the result of look_1:{image}<|im_end|>"
    assert "tool\nthe screen<|im_end|>" in text
    assert moved in text
    assert text.index(moved) < text.index("And this?")
    asked = job(1, prompt, images=[shown(FILES[at], at) for at in range(3)], max_tokens=4)
    assert len(prepared(engine, asked, FILES).images.placeholders) == 3
