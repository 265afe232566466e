"""The detokenizers that mlx-lm picks, over tokenizers trained on the spot."""

import json
from functools import partial

import pytest

from worker.text.markers import initial_state, markers_of
from worker.text.tool_calls.calls import calls_from

pytestmark = pytest.mark.mlx

CORPUS = [
    "Grüezi, wie geht es dir? Zürich kostet 5 € 😀.",
    "the answer is  forty two.\n\nUser: and then",
    "{'a': [1, 2]}",
]
THOUGHTS = "\nDas kostet 5 € 😀.\nSo "
ANSWER = "Grüezi  aus Zürich, 日本! 😀 \n 5 €"
CALL = json.dumps({"name": "get_weather", "arguments": {"city": "Zürich", "note": "😀"}}, ensure_ascii=False)
TEXT = f"<think>{THOUGHTS}</think>\n\n{ANSWER}<tool_call>\n{CALL}\n</tool_call>"


def trained(kind, special):
    """A small tokenizer of the byte-level or the SentencePiece kind, wrapped as mlx-lm does."""
    import transformers
    from mlx_lm.tokenizer_utils import (
        BPEStreamingDetokenizer,
        NaiveStreamingDetokenizer,
        SPMStreamingDetokenizer,
        TokenizerWrapper,
    )
    from mlx_lm.tool_parsers import json_tools
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    # The markers are tokens of their own (as Qwen's are), or the vocabulary only has to name them.
    added = ["<think>", "</think>", "<tool_call>", "</tool_call>"] if special else ["<think>", "</think>"]
    if kind == "spm":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        specials = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, limit_alphabet=40)
        detokenizer = SPMStreamingDetokenizer
    else:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        detokenizer = BPEStreamingDetokenizer if kind == "bpe" else NaiveStreamingDetokenizer
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    tokenizer.add_tokens([AddedToken(marker, normalized=False) for marker in added])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    return TokenizerWrapper(
        fast,
        detokenizer,
        eos_token_ids=[0],
        tool_call_start=json_tools.tool_call_start,
        tool_call_end=json_tools.tool_call_end,
        tool_parser=json_tools.parse_tool_call,
    )


@pytest.fixture(scope="module", params=["bpe", "naive", "spm"])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=[True, False], ids=["marker tokens", "spelled markers"])
def tokenizer(kind, request):
    return trained(kind, request.param)


@pytest.fixture
def generate(tokenizer, make_choice):
    """A choice over the tokens of a text, and those tokens."""

    def start(text, **options):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        options = {"markers": markers_of(tokenizer), "parse": calls_from(tokenizer.tool_parser)} | options
        return make_choice(detokenizer=tokenizer.detokenizer, **options), tokens

    return start


def collect(choice, tokens):
    pieces = []
    for token in tokens:
        choice.feed_token(token)
        pieces.append(choice.take_pieces())
    return pieces


def test_every_channel_comes_out_whole(generate, merged):
    """Thoughts, answer and call of one text, with characters of two to four bytes."""
    choice, tokens = generate(TEXT)
    whole = merged([*collect(choice, tokens), choice.finish_text("stop")])
    assert (whole.reasoning, whole.text) == (THOUGHTS.lstrip("\n"), ANSWER)
    (call,) = whole.calls
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Zürich", "note": "😀"})
    assert whole.finish == "tool_calls"
    assert 0 < choice.reasoning_tokens < len(tokens)


def test_no_piece_holds_half_a_character(generate):
    """What is sent never has to be taken back."""
    choice, tokens = generate(ANSWER)
    assert not [piece for piece in collect(choice, tokens) if piece and "\ufffd" in piece.text]


@pytest.mark.parametrize("stop", ["\n 5", "日本", "😀 ", "h,", "zi  aus"])
def test_stop_matches_in_real_tokens(generate, merged, stop):
    """Wherever the tokenizer cut, the answer ends before the stop string."""
    choice, tokens = generate(ANSWER, stop=[stop])
    whole = merged([*collect(choice, tokens), choice.finish_text("length")])
    assert (whole.text, whole.finish) == (ANSWER[: ANSWER.index(stop)], "stop")


def test_a_trailing_space_is_not_lost(generate, merged):
    """Detokenizers hold a last space back; finish hands it over, and a stop may end with it."""
    choice, tokens = generate("Zürich ")
    assert merged([*collect(choice, tokens), choice.finish_text("length")]).text == "Zürich "
    choice, tokens = generate("Zürich ", stop=["h "])
    assert merged([*collect(choice, tokens), choice.finish_text("length")]).text == "Züric"


def test_a_replay_goes_on_behind_every_token(generate, merged):
    """Whatever was delivered before the worker died, the rest is exactly what is missing."""
    choice, tokens = generate(TEXT)
    pieces = collect(choice, tokens)
    last = choice.finish_text("stop")
    whole = merged([*pieces, last])
    for delivered in range(0, len(tokens), 3):
        again, _ = generate(TEXT)
        collect(again, tokens[:delivered])
        rest = [*collect(again, tokens[delivered:]), again.finish_text("stop")]
        assert merged([*pieces[:delivered], *rest]) == whole


def test_generation_starts_reasoning_when_the_prompt_ends_so(tokenizer):
    """The wrapper's own search finds the open block at the end of a prompt."""
    start = partial(initial_state, markers_of(tokenizer), tokenizer)
    encode = partial(tokenizer.encode, add_special_tokens=False)
    assert start(encode("the answer<think>\n")) == "reasoning"
    assert start(encode("the answer<think>\n\n</think>\n\n")) == "normal"
    assert start([*encode("say <think> "), 0, *encode("the answer")]) == "normal"
