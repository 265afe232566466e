"""Each parser's result in one shape, and nothing but ValueError from any of them."""

import importlib
import json
import time

import pytest
from mlx_lm.tool_parsers import glm47

from protocol.parts import joined_calls
from tests.support.tool_formats import reading
from worker.text.tool_calls.calls import Call, calls_from
from worker.text.tool_calls.formats import FORMATS

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
WEATHER = {"city": "Zürich", "days": 3}
JSON = json.dumps({"name": "get_weather", "arguments": WEATHER}, ensure_ascii=False)
BLOCKS = {
    "json_tools": f"\n{JSON}\n",
    "qwen3_coder": (
        "\n<function=get_weather>\n<parameter=city>\nZürich\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n"
    ),
    "mistral": 'get_weather[ARGS]{"city": "Zürich", "days": 3}',
    "pythonic": '[get_weather(city="Zürich", days=3)]',
    "glm47": (
        "get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
    ),
    "laguna": (
        "get_weather<arg_key>city</arg_key><arg_value>Zürich</arg_value><arg_key>days</arg_key><arg_value>3</arg_value>"
    ),
    "kimi_k2": (
        "<|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>"
        '{"city": "Zürich", "days": 3}<|tool_call_end|>'
    ),
    "kimi_k3": (
        '<|open|>call tool="get_weather" index="1"<|sep|>'
        '<|open|>argument key="city" type="string"<|sep|>Zürich<|close|>argument<|sep|>'
        '<|open|>argument key="days" type="number"<|sep|>3<|close|>argument<|sep|><|close|>call<|sep|>'
    ),
    "longcat": (
        "get_weather<longcat_arg_key>city</longcat_arg_key><longcat_arg_value>Zürich</longcat_arg_value>"
        "<longcat_arg_key>days</longcat_arg_key><longcat_arg_value>3</longcat_arg_value>"
    ),
    "minimax_m2": (
        '\n<invoke name="get_weather">\n<parameter name="city">Zürich</parameter>\n'
        '<parameter name="days">3</parameter>\n</invoke>\n'
    ),
    "minicpm5": '"get_weather"><param name="city">Zürich</param><param name="days">3</param>',
    "muse_spark": (
        '<atem:invoke name="get_weather"><atem:parameter name="city">Zürich</atem:parameter>'
        '<atem:parameter name="days">3</atem:parameter></atem:invoke>'
    ),
    "gemma4": 'call:get_weather{city:<|"|>Zürich<|"|>,days:3}',
    "function_gemma": "call:get_weather{city:<escape>Zürich<escape>,days:3}",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_call_is_found_in_the_text_of_each_format(run, name):
    """From generated characters to a named call with its arguments, for every parser that mlx-lm ships."""
    form = FORMATS[name]
    done = run(list(f"Let me see.{form.start}{BLOCKS[name]}{form.end}"), **reading(name, TOOLS))
    (call,) = joined_calls(done.whole.calls)
    assert (call.name, json.loads(call.arguments)) == ("get_weather", WEATHER)
    assert (done.whole.text, done.whole.finish) == ("Let me see.", "tool_calls")
    assert call.id == ("functions.get_weather:0" if name == "kimi_k2" else "call_0")


@pytest.mark.parametrize("name", BLOCKS)
def test_mlx_lm_reads_the_same_block(name):
    """These are the formats of its parsers."""
    module = importlib.import_module(f"mlx_lm.tool_parsers.{name}")
    (call,) = calls_from(module.parse_tool_call, TOOLS)(BLOCKS[name])
    assert (call.name, json.loads(call.arguments)) == ("get_weather", WEATHER)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("mistral", 'a[ARGS]{"x": 1}b[ARGS]{"x": 2}'),
        ("mistral", 'a[ARGS]{"x": 1}[TOOL_CALLS]b[ARGS]{"x": 2}'),
        ("mistral", '[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": "{\\"x\\": 2}"}]'),
        ("pythonic", "[a(x=1), b(x=2)]"),
        (
            "kimi_k2",
            '<|tool_call_begin|>functions.a:0<|tool_call_argument_begin|>{"x": 1}<|tool_call_end|>'
            '<|tool_call_begin|>functions.b:1<|tool_call_argument_begin|>{"x": 2}<|tool_call_end|>',
        ),
        ("gemma4", "call:a{x:1}call:b{x:2}"),
        ("json_tools", '{"name": "a", "arguments": {"x": 1}}\n{"name": "b", "arguments": {"x": 2}}'),
        ("json_tools", '{"name": "a", "arguments": {"x": 1}}<tool_call>{"name": "b", "arguments": {"x": 2}}'),
        ("json_tools", '[{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {"x": 2}}]'),
        ("qwen3_coder", '{"name": "a", "arguments": {"x": 1}}</tool_call>{"name": "b", "arguments": {"x": 2}}'),
    ],
)
def test_several_calls_come_out_of_one_block(run, name, block):
    """Formats that list calls inside one pair of markers give all of them, in order; JSON is read in any."""
    form = FORMATS[name]
    block = block.replace("</tool_call>", "</tool_call>\n<tool_call>")
    for pieces in ([f"{form.start}{block}{form.end}"], list(f"{form.start}{block}{form.end}")):
        done = run(pieces, **reading(name, None))
        calls = joined_calls(done.whole.calls)
        assert [(call.name, json.loads(call.arguments)) for call in calls] == [("a", {"x": 1}), ("b", {"x": 2})]
        assert done.whole.text == ""


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("block", ["", "to do this. 1 < 2", "{", '{"name": ', "[]", "{" * 5000, "[" * 100_000])
def test_malformed_blocks_are_text(run, name, block):
    """Whatever a model writes, no call is made up of free text, and none of it is lost."""
    form = FORMATS[name]
    text = f"{form.start}{block}{form.end}"
    done = run([text], **reading(name, TOOLS))
    assert (done.whole.text, done.whole.calls, done.whole.finish) == (text, [], "stop")
    with pytest.raises(ValueError, match="not a tool call"):
        calls_from(importlib.import_module(f"mlx_lm.tool_parsers.{name}").parse_tool_call, TOOLS)(block)


@pytest.mark.parametrize(
    "result",
    [
        [],
        "text",
        None,
        {"arguments": {}},
        {"name": "", "arguments": {}},
        {"name": 1, "arguments": {}},
        {"name": "f", "arguments": [1]},
        {"name": "f", "arguments": "[1]"},
        {"name": "f", "arguments": "no json"},
        {"name": "f", "arguments": {"x": float("nan")}},
        {"name": "f", "arguments": {"x": {1}}},
        {"name": "\ud800", "arguments": {}},
        [{"name": "f", "arguments": {}}, {"name": "g", "arguments": 3}],
    ],
)
def test_results_that_are_no_calls_raise_value_error(result):
    """What can't be sent as a JSON object never leaves as a call."""
    with pytest.raises(ValueError, match="not a tool call"):
        calls_from(lambda text, tools: result)("x")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"name": "f", "arguments": '{"x":  1}'}, Call(name="f", arguments='{"x":  1}')),
        ({"name": "f"}, Call(name="f", arguments="{}")),
        ({"name": "f", "arguments": {"x": 2**70, "y": "é"}}, Call(name="f", arguments=f'{{"x": {2**70}, "y": "é"}}')),
        ({"name": "f", "arguments": {"x": "\ud800"}}, Call(name="f", arguments='{"x": "\\ud800"}')),
        ({"name": "f", "arguments": '{"x": True,}'}, Call(name="f", arguments='{"x": true}')),
        ({"name": "f", "arguments": {}, "id": "abc"}, Call(name="f", arguments="{}", id="abc")),
        ({"name": "f", "arguments": {}, "id": 5}, Call(name="f", arguments="{}")),
    ],
)
def test_arguments_become_the_text_of_an_object(result, expected):
    """JSON text passes as the model wrote it, objects are encoded, an absent value is an empty object."""
    assert calls_from(lambda text, tools: result)("x") == [expected]


def test_free_text_is_no_call_when_glm_reads_it_as_one():
    """glm47 reads any words as name and raw arguments; only for a function that was offered is that a call."""
    parse = calls_from(glm47.parse_tool_call, TOOLS)
    with pytest.raises(ValueError, match="not a tool call"):
        parse("tags to answer.")
    assert parse("get_weather for Bern")[0].name == "get_weather"


def test_tools_reach_the_parser():
    """Some parsers need the declared types."""
    seen = []
    calls_from(lambda text, tools: seen.append(tools) or {"name": "f"}, TOOLS)("x")
    assert seen == [TOOLS]


PARTS = [
    "call:f{",
    "call:get_weather{a:",
    '{"name":',
    "<arg_key>",
    "<parameter=a>",
    "[",
    "\\",
    '"',
    "<",
    "</tool_call>",
]
PARTS += ["</parameter>", "<tool_call>\n<function=f>", '<|"|>', " ", "{", "1", "get_weather(", '<|"|> ' + " " * 30]


@pytest.mark.parametrize("name", sorted(BLOCKS))
@pytest.mark.parametrize("part", PARTS)
def test_block_that_only_begins_costs_little(run, name, part):
    """A model that was told to repeat the beginning of a call holds up nobody, were it 40 kB."""
    form = FORMATS[name]
    inside = BLOCKS[name][: BLOCKS[name].index("Zürich") + 1]
    size = 40_000 // len(part)
    for text in (part * size, inside + part * size):
        pieces = [form.start, *(text[at : at + 16] for at in range(0, len(text), 16))]
        began = time.thread_time()
        run(pieces, reason="length", **reading(name, TOOLS))
        assert time.thread_time() - began < 1
