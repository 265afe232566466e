"""What chat templates take is found out by trying, and conversations are brought into that form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mlx_lm import tokenizer_utils

from protocol.errors import Code, JobError
from protocol.messages import ChatPrompt
from tests.support.chat_templates import REAL, TEMPLATES, make_prompter
from tests.support.real_tokenizers import fetch_tokenizer
from worker.engines.chat.prompts import Prompter
from worker.engines.chat.template_probe import probe_template
from worker.engines.chat.template_traits import TemplateTraits

Json = dict[str, Any]
PrompterOf = Callable[[str], Prompter]

pytestmark = pytest.mark.mlx

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Tells.", "parameters": {}}}


@pytest.fixture(scope="module")
def prompter_of(model_folder: Callable[[str], Path]) -> PrompterOf:
    """Answers the prompter of a template, by name; each is made once."""
    made: dict[str, Prompter] = {}

    def find(name: str) -> Prompter:
        if name not in made:
            if name in REAL:
                made[name] = make_prompter(fetch_tokenizer(name))
            else:
                made[name] = make_prompter(model_folder("qwen3"), TEMPLATES.get(name, name))
        return made[name]

    return find


def user(text: str) -> Json:
    return {"role": "user", "content": text}


def said(text: str, **more: Any) -> Json:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> Json:
    return {"role": "system", "content": text}


def called(*calls: tuple[str, str, Any], text: str = "", **more: Any) -> Json:
    """A message with calls: id, name and arguments of each."""
    functions = [
        {"id": own, "type": "function", "function": {"name": name, "arguments": arguments}}
        for own, name, arguments in calls
    ]
    return said(text, tool_calls=functions, **more)


def result(call_id: str, text: str) -> Json:
    return {"role": "tool", "content": text, "tool_call_id": call_id}


def render(prompter: Prompter, messages: list[Json], **more: Any) -> str:
    tools = more.pop("tools", None)
    return prompter.render_chat(
        ChatPrompt(msgspec.json.encode(messages), msgspec.json.encode(tools) if tools else None, **more)
    )


def in_order(prompt: str, words: list[str]) -> bool:
    at = 0
    for word in words:
        at = prompt.find(word, at)
        if at < 0:
            return False
        at += len(word)
    return True


FOUND: list[tuple[str, Json]] = [
    ("qwen3", {}),
    ("llama3", {"tools": False, "calls": False}),
    (
        "deepseek",
        {"system_anywhere": False, "tools": False, "mapped_arguments": False, "call_content": None,
         "call_text": "before"},
    ),
    ("chatml", {"tools": False, "calls": False}),
    (
        "qwen3.5",
        {"systems_in_row": False, "system_anywhere": False, "user_absent": False, "text_arguments": False},
    ),
    ("qwen3-coder", {"text_arguments": False}),
    (
        "mistral-nemo",
        {"systems_in_row": False, "system_anywhere": False, "users_in_row": False, "assistants_in_row": False,
         "assistant_first": False, "user_absent": False, "call_ids": "plain", "call_text": "apart",
         "user_after_calls": False, "lone_results": False},
    ),
    ("mistral-small", {"systems_in_row": False, "system_anywhere": False, "filler": " "}),
    ("llama3.1", {"user_absent": False, "call_text": "before", "parallel_calls": False}),
    ("hermes3", {"call_text": "before"}),
    ("deepseek-v3.1", {"system_anywhere": False, "tools": False, "mapped_arguments": False}),
    (
        "gpt-oss",
        {"systems_in_row": False, "system_anywhere": False, "call_text": "before", "parallel_calls": False,
         "lone_results": False},
    ),
    ("glm4", {"text_arguments": False}),
    ("kimi-k2", {"call_ids": "named"}),
    ("minimax", {"systems_in_row": False, "system_anywhere": False, "text_arguments": False, "lone_results": False}),
    (
        "gemma2",
        {"system": False, "system_anywhere": False, "users_in_row": False, "assistants_in_row": False,
         "assistant_first": False, "tools": False, "calls": False},
    ),
    (
        "gemma3",
        {"systems_in_row": False, "system_anywhere": False, "users_in_row": False, "assistants_in_row": False,
         "assistant_first": False, "user_absent": False, "tools": False, "calls": False},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "differing"), FOUND, ids=[name for name, _ in FOUND])
def test_traits_are_those_of_the_template_when_probed(prompter_of: PrompterOf, name: str, differing: Json) -> None:
    """Each behaviour is seen by rendering, under whatever name the template goes."""
    usual, found = TemplateTraits(), probe_template(prompter_of(name)._render)
    fields = [field for field in usual.__struct_fields__ if field not in ("variables", "images_in_results")]
    assert {name: getattr(found, name) for name in fields if getattr(found, name) != getattr(usual, name)} == differing


@pytest.mark.parametrize(
    ("name", "read", "unread"),
    [
        ("qwen3", {"enable_thinking"}, {"thinking", "reasoning_effort"}),
        ("deepseek-v3.1", {"thinking"}, {"enable_thinking"}),
        ("gpt-oss", {"reasoning_effort"}, {"enable_thinking"}),
        ("{{ messages }}{% if clear_thinking %}{{ keep }}{% endif %}", {"clear_thinking", "keep"}, {"messages"}),
        ("{% generation %}{{ a }}{% endgeneration %}{{ bos_token }}{{ raise_exception }}", {"a"}, {"bos_token"}),
        ("{% for m in messages %}{{ loop.index }}{{ m }}{% if b %}{% break %}{% endif %}{% endfor %}", {"b"}, {"m"}),
    ],
)
def test_variables_are_those_that_the_template_reads(
    prompter_of: PrompterOf, name: str, read: set[str], unread: set[str]
) -> None:
    """What a request may set by `chat_template_kwargs`: no name that is the pool's own to give."""
    found = prompter_of(name).traits.variables
    assert read <= found
    assert not unread & found


def test_template_is_taken_for_able_when_it_renders_nothing(prompter_of: PrompterOf) -> None:
    """One that raises at everything is found out by the first request, in words that name a parameter."""
    prompter = prompter_of("{{ raise_exception('Never.') }}")
    usual = TemplateTraits()
    assert msgspec.structs.replace(prompter.traits, variables=frozenset()) == usual
    with pytest.raises(JobError) as raised:
        render(prompter, [user("hi")])
    assert (raised.value.code, raised.value.param) == (Code.INVALID_REQUEST, "messages")
    assert "Never." in raised.value.message


@pytest.mark.parametrize("name", [*REAL, *TEMPLATES])
def test_system_message_keeps_its_place_when_it_comes_late(prompter_of: PrompterOf, name: str) -> None:
    """It stands behind what came before it, whether the template shows it or it is marked as a user's words."""
    prompter = prompter_of(name)
    messages = [system("Rule one."), user("First?"), said("Yes."), system("Rule two."), user("Second?")]
    prompt = render(prompter, messages)
    assert in_order(prompt, ["Rule one.", "First?", "Yes.", "Rule two.", "Second?"])
    assert ("<system>\nRule two.\n</system>" in prompt) is not prompter.traits.system_anywhere
    # What came before is the same, so that it is found again in the prefix cache.
    before = prompt[: prompt.index("Yes.")]
    assert render(prompter, [*messages[:3], user("Next?")]).startswith(before)


@pytest.mark.parametrize("name", [*REAL, *TEMPLATES])
@pytest.mark.parametrize(
    "messages",
    [
        [user("A1"), user("A2")],
        [user("A1"), said("A2"), said("A3"), user("A4")],
        [said("A1"), user("A2")],
        [system("A1"), said("A2"), user("A3")],
        [system("A1")],
        [system("A1"), system("A2"), user("A3")],
        [system("A1"), user("A2"), system("A3"), system("A4")],
        [user("A1"), said(""), user("A2")],
        [user(""), said("A1"), user("A2")],
        [user("A1"), said("A2")],
        [user("A1"), said("", reasoning_content="hm"), user("A2")],
    ],
)
def test_order_of_roles_is_taken_when_it_is_unusual(prompter_of: PrompterOf, name: str, messages: list[Json]) -> None:
    """Nobody's words are refused for who spoke before; all are there, in their order."""
    prompt = render(prompter_of(name), messages)
    assert in_order(prompt, [message["content"] for message in messages if message["content"]])


def test_users_are_joined_by_a_blank_line_when_turns_must_alternate(prompter_of: PrompterOf) -> None:
    """The rule that is documented, also for a marked system message."""
    prompter = prompter_of("gemma3")
    assert "user\nOne\n\nTwo<end_of_turn>" in render(prompter, [user("One"), user("Two")])
    marked = render(prompter, [user("One"), said("Two"), system("Three"), user("Four")])
    assert "user\n<system>\nThree\n</system>\n\nFour<end_of_turn>" in marked


ODD_IDS = ("call_0123456789abcdef01234567", "chatcmpl-tool-1", "toolu_01A", "x", "functions.f:0", "123456789")


@pytest.mark.parametrize("name", [*REAL, *TEMPLATES])
@pytest.mark.parametrize("ids", [ODD_IDS[:3], ODD_IDS[3:], ("same", "same", "same")])
def test_calls_and_results_are_shown_when_sent_back(
    prompter_of: PrompterOf, name: str, ids: tuple[str, str, str]
) -> None:
    """Parallel calls, text beside them, calls in a row and a user in between: all of it is there."""
    one, two, three = ids
    messages = [
        system("Help."),
        user("Weather?"),
        called((one, "look_up", {"city": "Oslo"}), (two, "look_again", {"town": "Rome"}), text="Looking."),
        result(one, "cold") if one != two else result(one, "cold again"),
        result(two, "warm"),
        called((three, "third_one", {}), reasoning_content="hm"),
        result(three, "plain"),
        said("Done."),
        user("More?"),
        called((one, "unanswered", {"city": "Bonn"})),
        user("Stop."),
    ]
    prompt = render(prompter_of(name), messages, tools=[TOOL])
    for word in ("Looking.", "look_up", "Oslo", "look_again", "Rome", "cold", "warm", "third_one", "plain"):
        assert word in prompt
    assert in_order(prompt, ["Weather?", "Looking.", "third_one", "plain", "Done.", "More?", "unanswered", "Stop."])
    assert "get_weather" in prompt


@pytest.mark.parametrize("arguments", ['{"city": "Os', "[1, 2]", '"text"', "17"])
@pytest.mark.parametrize("name", [*REAL, *TEMPLATES])
def test_arguments_are_shown_when_they_are_no_object(prompter_of: PrompterOf, name: str, arguments: str) -> None:
    """What a model wrote wrongly, or what was cut off, comes back to it; templates that want a mapping get one."""
    prompt = render(prompter_of(name), [user("Go."), called(("a", "f", arguments)), result("a", "bad"), said("Sorry.")])
    assert in_order(prompt, ["Go.", "bad", "Sorry."])
    assert arguments in prompt or json.dumps(arguments)[1:-1] in prompt


@pytest.mark.parametrize("name", [*REAL, *TEMPLATES])
def test_result_is_shown_when_its_call_is_missing(prompter_of: PrompterOf, name: str) -> None:
    """As after a client cut old messages away."""
    prompt = render(prompter_of(name), [result("gone", "Leftover."), said("Well."), user("So?"), result("x", "Other.")])
    assert in_order(prompt, ["Leftover.", "Well.", "So?", "Other."])


def test_ids_are_mapped_when_the_template_takes_one_form(prompter_of: PrompterOf) -> None:
    """Nine letters and digits, the same for a call and its result; one that has the form stays."""
    messages = [user("Go."), called(("call_1", "f", {}), ("aB3dE5gH7", "g", {})), result("call_1", "r"), said("ok")]
    prompt = render(prompter_of("mistral-nemo"), messages)
    own = prompt.split('"id": "')[1][:9]
    assert own.isalnum()
    assert f'"call_id": "{own}"' in prompt
    assert '"id": "aB3dE5gH7"' in prompt
    named = render(prompter_of("kimi-k2"), messages)
    assert in_order(named, ["functions.f:0", "functions.g:1", "Return of functions.f:0"])


def test_calls_come_one_by_one_when_the_template_takes_one(prompter_of: PrompterOf) -> None:
    """Each with its result behind it, in the order of the results."""
    messages = [
        user("Go."),
        called(("a", "first", {}), ("b", "second", {}), ("c", "third", {})),
        result("b", "B!"),
        result("a", "A!"),
    ]
    prompt = render(prompter_of("llama3.1"), messages)
    assert in_order(prompt, ["second", "B!", "first", "A!", "third"])
    assert prompt.count("ipython<|end_header_id|>") == 2


# -- tools that a template leaves out


@pytest.mark.parametrize("name", ["llama3", "gemma3", "gemma2", "chatml"])
def test_tools_are_told_when_the_template_leaves_them_out(prompter_of: PrompterOf, name: str) -> None:
    """In the system message, in a form whose calls the pool reads; earlier calls and results are shown in it."""
    prompter = prompter_of(name)
    assert prompter.generic_tools
    assert "generic_tools" in prompter.list_capabilities()
    earlier = [called(("a", "get_weather", {"city": "Oslo"}), text="Wait."), result("a", "cold")]
    prompt = render(prompter, [system("Be kind."), user("Hi."), *earlier], tools=[TOOL])
    assert in_order(prompt, ["Be kind.", json.dumps(TOOL["function"]), "<tool_call>", "Hi.", "Wait."])
    assert 'Wait.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>' in prompt
    assert "<tool_response>\ncold\n</tool_response>" in prompt
    assert json.dumps(TOOL["function"]) in render(prompter, [user("Hi.")], tools=[TOOL])
    assert "get_weather" not in render(prompter, [user("Hi.")])


@pytest.mark.parametrize("name", ["qwen3", "mistral-nemo", "llama3.1"])
def test_tools_are_the_templates_when_it_shows_them(prompter_of: PrompterOf, name: str) -> None:
    """Nothing is told twice."""
    prompter = prompter_of(name)
    assert not prompter.generic_tools
    assert render(prompter, [user("Hi.")], tools=[TOOL]).count("get_weather") == 1


def test_tools_are_refused_when_nobody_could_read_calls(prompter_of: PrompterOf) -> None:
    """A parser of another form, and a template that shows no calls: what the model writes would be guesswork."""
    prompter = prompter_of("chatml")
    tokenizer = tokenizer_utils.load(Path(prompter._tokenizer.name_or_path))
    tokenizer.chat_template = TEMPLATES["chatml"]
    from mlx_lm.tool_parsers import glm47

    tokenizer._tool_parser, tokenizer._tool_call_start = glm47.parse_tool_call, "<other_call>"
    other = Prompter(tokenizer, vocab_size=len(tokenizer), context_length=4096)
    assert not other.calls_tools
    with pytest.raises(JobError) as raised:
        render(other, [user("Hi.")], tools=[TOOL])
    assert (raised.value.code, raised.value.param) == (Code.UNSUPPORTED, "tools")


@pytest.mark.parametrize("name", ["deepseek", "deepseek-v3.1"])
def test_tools_are_told_in_the_models_form_when_its_calls_are_read_so(name: str) -> None:
    """Where a template writes earlier calls and leaves out tools, what it writes is the example, and stays so."""
    tokenizer = tokenizer_utils.load(fetch_tokenizer("deepseek"))
    tokenizer.chat_template = TEMPLATES.get(name, tokenizer.chat_template)
    tokenizer._tool_parser = tokenizer_utils.load  # Any that is not the generic one.
    tokenizer._tool_call_start, tokenizer._tool_call_end = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
    prompter = Prompter(tokenizer, vocab_size=len(tokenizer), context_length=4096)
    assert prompter.calls_tools
    assert not prompter.generic_tools
    earlier = [called(("a", "get_weather", {"city": "Oslo"})), result("a", "cold")]
    prompt = render(prompter, [user("Hi."), *earlier], tools=[TOOL])
    told, rest = prompt.split("Hi.")
    assert json.dumps(TOOL["function"]) in told
    example = told[told.index("<｜tool▁calls▁begin｜>") :]
    assert example.count("<｜tool▁calls▁end｜>") == 1
    assert in_order(example, ["function_name", '{"argument": "value"}', "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"])
    assert "<｜end▁of▁sentence｜>" not in example
    assert "<tool_call>" not in prompt
    assert in_order(rest, ["<｜tool▁calls▁begin｜>", "get_weather", '{"city": "Oslo"}', "cold"])


# -- a last message that goes on


@pytest.mark.parametrize("name", [*REAL, *TEMPLATES])
@pytest.mark.parametrize("text", ["Once upon", "Once upon a ", "```json\n{\n"])
def test_prompt_ends_with_the_last_message_when_it_goes_on(prompter_of: PrompterOf, name: str, text: str) -> None:
    """Not a character behind it, no end of turn, and nothing of what opens an answer."""
    prompt = render(prompter_of(name), [user("Tell."), said(text)], continue_final_message=True)
    assert prompt.endswith(text)
    assert "Tell." in prompt


@pytest.mark.parametrize(
    "messages",
    [[user("Tell.")], [user("Tell."), said("")], [user("Go."), called(("a", "f", {}), text="Well")],
     [user("Go."), called(("a", "f", {})), result("a", "r")]],
)  # fmt: skip
def test_continuation_is_refused_when_there_is_nothing_to_continue(
    prompter_of: PrompterOf, messages: list[Json]
) -> None:
    """The last message must be the assistant's, with content and without calls."""
    with pytest.raises(JobError) as raised:
        render(prompter_of("qwen3"), messages, continue_final_message=True)
    assert (raised.value.code, raised.value.param) == (Code.INVALID_REQUEST, "continue_final_message")


def test_no_answer_is_opened_when_not_asked_for(prompter_of: PrompterOf) -> None:
    """`add_generation_prompt` false leaves the conversation as it is."""
    opened, plain = (render(prompter_of("qwen3"), [user("Hi.")], add_generation_prompt=yes) for yes in (True, False))
    assert opened == plain + "<|im_start|>assistant\n"


# -- variables of a template


def test_thinking_is_switched_when_the_template_calls_it_otherwise(prompter_of: PrompterOf) -> None:
    """`enable_thinking` reaches a template that reads `thinking`; what it names itself counts first."""
    prompter = prompter_of("deepseek-v3.1")
    assert render(prompter, [user("Hi.")], template={"enable_thinking": True}).endswith("<think>")
    assert render(prompter, [user("Hi.")], template={"enable_thinking": False}).endswith("</think>")
    assert render(prompter, [user("Hi.")], template={"thinking": True}).endswith("<think>")
    both = {"thinking": False, "enable_thinking": True}
    assert render(prompter, [user("Hi.")], template=both).endswith("</think>")


@pytest.mark.parametrize("name", ["messages", "tools", "chat_template", "bos_token", "tokenize", "return_dict"])
def test_reserved_name_changes_nothing_when_a_gateway_lets_it_pass(prompter_of: PrompterOf, name: str) -> None:
    """What is the pool's own to give is never taken from a request."""
    prompter = prompter_of("qwen3")
    assert render(prompter, [user("Hi.")], template={name: "x"}) == render(prompter, [user("Hi.")])


@pytest.mark.parametrize("error", ["[][3] + 1", "{}.missing.deeper", "1 // 0", "messages[0].content.nothing()"])
def test_words_name_the_parameter_when_a_template_breaks(prompter_of: PrompterOf, error: str) -> None:
    """Whatever a template does to itself is an invalid request about `messages`, never an engine's failure."""
    template = f"{{% if messages | length > 6 %}}{{{{ {error} }}}}{{% endif %}}{TEMPLATES['chatml']}"
    with pytest.raises(JobError) as raised:
        render(prompter_of(template), [user("a"), said("b")] * 4)
    assert (raised.value.code, raised.value.param) == (Code.INVALID_REQUEST, "messages")
    assert raised.value.message.startswith("The model's chat template can't take these messages")
