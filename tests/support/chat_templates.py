"""Chat templates that behave as those of models that people run: what they take, refuse and leave out.

Each is written anew for these tests, with the quirks of its model and nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from mlx_lm import tokenizer_utils

from worker.engines.chat.generic_tools import adopt_generic_tools
from worker.engines.chat.harmony_prompts import HarmonyPrompter
from worker.engines.chat.prompts import Prompter
from worker.engines.output_formats import read_markers, recognise_format

CHATML = """
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""
"""Knows neither tools nor calls; shows every role."""

QWEN35 = """
{%- if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif -%}
{%- if tools or messages[0].role == 'system' -%}
<|im_start|>system
{% if tools %}<tools>{% for tool in tools %}
{{ tool | tojson }}{% endfor %}
</tools>{% endif %}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|im_end|>
{% endif -%}
{%- set asked = namespace(found=false) -%}
{%- for m in rest if m.role == 'user' %}{% set asked.found = true %}{% endfor -%}
{%- if not asked.found %}{{ raise_exception('No user query found in messages.') }}{% endif -%}
{%- for m in rest -%}
{%- if m.role == 'system' %}{{ raise_exception('System message must be at the beginning.') }}{% endif -%}
{%- if m.role == 'assistant' -%}
<|im_start|>assistant
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}
{%- for call in m.tool_calls %}
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items %}<parameter={{ key }}>
{{ value if value is string else value | tojson }}
</parameter>
{% endfor %}</function>
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'user' -%}
<|im_start|>user
{{ m.content }}<|im_end|>
{% else %}{{ raise_exception('Unexpected message role.') }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
<think>
{% if enable_thinking is defined and enable_thinking is false %}
</think>

{% endif %}{% endif -%}
"""

QWEN3_CODER = """
{%- if messages[0].role == 'system' or tools -%}
<|im_start|>system
{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- for tool in tools or [] %}
<function><name>{{ tool.function.name }}</name>
<description>{{ tool.function.description | trim }}</description>
{% for key, field in (tool.function.parameters or {}).get('properties', {}) | items -%}
<parameter><name>{{ key }}</name>{{ field | tojson }}</parameter>
{% endfor %}</function>{% endfor %}<|im_end|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'system' and loop.first -%}
{%- elif m.role == 'assistant' and m.tool_calls is defined and m.tool_calls | length > 0 -%}
<|im_start|>assistant
{% if m.content is defined and m.content is string and m.content | trim | length > 0 %}{{ m.content | trim }}
{% endif -%}
{%- for call in m.tool_calls -%}
<tool_call>
<function={{ call.function.name }}>
{% for key, value in call.function.arguments | items -%}
<parameter={{ key }}>
{{ value | tojson if value is mapping or (value is sequence and value is not string) else value | string }}
</parameter>
{% endfor %}</function>
</tool_call>
{% endfor %}<|im_end|>
{% elif m.role in ('user', 'system', 'assistant') -%}
<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% elif m.role == 'tool' -%}
<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response>
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

NEMO = """
{%- if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] -%}
{%- else %}{% set rest = messages %}{% endif -%}
{%- set users = rest | selectattr('role', 'equalto', 'user') | list -%}
{%- set ns = namespace(turn=0) -%}
{%- for m in rest -%}
{%- if not (m.role == 'tool' or (m.tool_calls is defined and m.tool_calls is not none)) -%}
{%- if (m.role == 'user') != (ns.turn % 2 == 0) -%}
{{ raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/...') }}
{%- endif -%}
{%- set ns.turn = ns.turn + 1 -%}
{%- endif -%}
{%- endfor -%}
{{ bos_token }}
{%- for m in rest -%}
{%- if m.role == 'user' -%}
{%- if tools and m == users[-1] -%}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{%- endif -%}
{%- if loop.last and first is defined -%}[INST]{{ first + '\\n\\n' + m.content }}[/INST]
{%- elif loop.first and first is defined -%}[INST]{{ first + '\\n\\n' + m.content }}[/INST]
{%- else -%}[INST]{{ m.content }}[/INST]{%- endif -%}
{%- elif m.tool_calls is defined and m.tool_calls is not none -%}
[TOOL_CALLS][
{%- for call in m.tool_calls -%}
{%- if call.id is not defined or call.id | length != 9 -%}
{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif -%}
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}, "id": "{{ call.id }}"}
{%- if not loop.last %}, {% endif -%}
{%- endfor -%}
]</s>
{%- elif m.role == 'assistant' -%}
{{ m.content }}</s>
{%- elif m.role == 'tool' -%}
{%- if m.tool_call_id is not defined or m.tool_call_id | length != 9 -%}
{{ raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif -%}
[TOOL_RESULTS]{"content": {{ m.content }}, "call_id": "{{ m.tool_call_id }}"}[/TOOL_RESULTS]
{%- else -%}
{{ raise_exception('Only user and assistant roles are supported, with the exception of an initial system message!') }}
{%- endif -%}
{%- endfor -%}
"""

MISTRAL_SMALL = """
{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set first = messages[0].content %}{% set rest = messages[1:] -%}
{%- else %}{% set first = 'You are a probe.' %}{% set rest = messages %}{% endif -%}
[SYSTEM_PROMPT]{{ first }}[/SYSTEM_PROMPT]
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif -%}
{%- for m in rest -%}
{%- if m.role == 'user' -%}[INST]{{ m.content }}[/INST]
{%- elif m.role == 'assistant' -%}
{%- if not m.content and not m.tool_calls -%}
{{ raise_exception('Assistant message must have a string or a list of chunks in content, or tool calls.') }}
{%- endif -%}
{{ m.content or '' }}
{%- for call in m.tool_calls or [] -%}
{%- set arguments = call.function.arguments -%}
{%- if arguments is not string %}{% set arguments = arguments | tojson | safe %}{% endif -%}
[TOOL_CALLS]{{ call.function.name }}[ARGS]{{ arguments }}
{%- endfor -%}</s>
{%- elif m.role == 'tool' -%}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]
{%- else -%}{{ raise_exception('Only user, assistant and tool roles are supported, got ' + m.role + '.') }}
{%- endif -%}
{%- endfor -%}
"""

LLAMA31 = """
{{- bos_token }}
{%- if messages[0].role == 'system' -%}
{%- set first = messages[0].content | trim %}{% set rest = messages[1:] -%}
{%- else %}{% set first = '' %}{% set rest = messages %}{% endif -%}
<|start_header_id|>system<|end_header_id|>

{% if tools is defined and tools is not none %}Environment: ipython
{% endif %}{{ first }}<|eot_id|>
{%- if tools is defined and tools is not none -%}
{%- if rest | length == 0 -%}
{{ raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
{%- endif -%}
<|start_header_id|>user<|end_header_id|>

Given the following functions, answer as {"name": function name, "parameters": dictionary}.
{% for tool in tools %}{{ tool | tojson(indent=4) }}

{% endfor %}{{ rest[0].content | trim }}<|eot_id|>
{%- set rest = rest[1:] -%}
{%- endif -%}
{%- for m in rest -%}
{%- if not (m.role == 'ipython' or m.role == 'tool' or 'tool_calls' in m) -%}
<|start_header_id|>{{ m.role }}<|end_header_id|>

{{ m.content | trim }}<|eot_id|>
{%- elif 'tool_calls' in m -%}
{%- if m.tool_calls | length != 1 -%}
{{ raise_exception('This model only supports single tool-calls at once!') }}
{%- endif -%}
{%- set call = m.tool_calls[0].function -%}
<|start_header_id|>assistant<|end_header_id|>

{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>
{%- else -%}
<|start_header_id|>ipython<|end_header_id|>

{% if m.content is mapping or m.content is iterable and m.content is not string %}{{ m.content | tojson }}
{%- else %}{{ m.content }}{% endif %}<|eot_id|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>

{% endif -%}
"""

HERMES3 = """
{%- if tools -%}
<|im_start|>system
Functions: <tools>{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools><|im_end|>
{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' or m.role == 'system' or (m.role == 'assistant' and m.tool_calls is not defined) -%}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}
{%- elif m.role == 'assistant' -%}
<|im_start|>assistant
{%- for call in m.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% elif m.role == 'tool' -%}
{%- if loop.previtem and loop.previtem.role != 'tool' %}<|im_start|>tool
{% endif -%}
<tool_response>
{{ m.content }}{% if not loop.last %}
</tool_response>
{% else %}
</tool_response>{% endif -%}
{%- if not loop.last and loop.nextitem.role != 'tool' %}<|im_end|>{% elif loop.last %}<|im_end|>{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
"""

DEEPSEEK_V31 = """
{%- if thinking is not defined %}{% set thinking = false %}{% endif -%}
{%- set ns = namespace(system='', tool=false, user=false) -%}
{%- for m in messages if m.role == 'system' %}{% set ns.system = ns.system + m.content %}{% endfor -%}
{{ bos_token }}{{ ns.system }}
{%- for m in messages -%}
{%- if m.role == 'user' %}{% set ns.user = true %}{% set ns.tool = false %}{{ '<｜User｜>' + m.content }}
{%- elif m.role == 'assistant' and m.tool_calls is defined and m.tool_calls is not none -%}
{%- if ns.user %}<｜Assistant｜></think>{% endif %}{% set ns.user = false %}{% set ns.tool = false -%}
{{ m.content or '' }}<｜tool▁calls▁begin｜>
{%- for call in m.tool_calls -%}
{{ '<｜tool▁call▁begin｜>' + call.function.name + '<｜tool▁sep｜>' + call.function.arguments + '<｜tool▁call▁end｜>' }}
{%- endfor -%}<｜tool▁calls▁end｜><｜end▁of▁sentence｜>
{%- elif m.role == 'assistant' -%}
{%- if ns.user %}<｜Assistant｜></think>{% endif %}{% set ns.user = false -%}
{{ (m.content.split('</think>', 1)[1] if '</think>' in m.content else m.content) + '<｜end▁of▁sentence｜>' }}
{%- elif m.role == 'tool' -%}
{%- set ns.user = false %}{% set ns.tool = true -%}
{{ '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.user %}<｜Assistant｜>{{ '<think>' if thinking else '</think>' }}{% endif -%}
"""

GPT_OSS = """
{%- if messages[0].role in ('developer', 'system') -%}
{%- set first = messages[0].content %}{% set rest = messages[1:] -%}
{%- else %}{% set first = '' %}{% set rest = messages %}{% endif -%}
<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>
{%- if first or tools -%}
<|start|>developer<|message|>{{ first }}
{%- for tool in tools or [] %}
type {{ tool.function.name }} = (_: {{ tool.function.parameters | tojson }}) => any;
{%- endfor %}<|end|>
{%- endif -%}
{%- set last = namespace(name=none) -%}
{%- for m in rest -%}
{%- if m.role == 'assistant' -%}
{%- if 'tool_calls' in m -%}
{%- if m.content and m.thinking -%}
{{ raise_exception('Cannot pass both content and thinking in an assistant message with tool calls!') }}
{%- endif -%}
{%- if m.content or m.thinking -%}
<|start|>assistant<|channel|>analysis<|message|>{{ m.content or m.thinking }}<|end|>
{%- endif -%}
{%- set call = m.tool_calls[0].function %}{% set last.name = call.name -%}
<|start|>assistant to=functions.{{ call.name }}<|channel|>commentary json<|message|>
{{- call.arguments | tojson }}<|call|>
{%- else -%}
{%- set last.name = none -%}
<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>
{%- endif -%}
{%- elif m.role == 'tool' -%}
{%- if last.name is none -%}
{{ raise_exception('Message has tool role, but there was no previous assistant message with a tool call!') }}
{%- endif -%}
<|start|>functions.{{ last.name }} to=assistant<|channel|>commentary<|message|>{{ m.content | tojson }}<|end|>
{%- elif m.role == 'user' -%}
<|start|>user<|message|>{{ m.content }}<|end|>
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|start|>assistant{% endif -%}
"""

GLM4 = """
[gMASK]<sop>
{%- if tools %}<|system|>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}{% endif -%}
{%- for m in messages -%}
{%- if m.role == 'user' %}<|user|>
{{ m.content }}
{%- elif m.role == 'assistant' %}<|assistant|>
{%- if m.reasoning_content is string %}
<think>{{ m.reasoning_content.strip() }}</think>{% else %}
<think></think>{% endif -%}
{%- if m.content.strip() %}
{{ m.content.strip() }}{% endif -%}
{%- for call in m.tool_calls or [] %}
<tool_call>{{ call.function.name }}
{% for key, value in call.function.arguments.items() -%}
<arg_key>{{ key }}</arg_key>
<arg_value>{{ value if value is string else value | tojson }}</arg_value>
{% endfor %}</tool_call>{% endfor -%}
{%- elif m.role == 'tool' %}<|observation|>
<tool_response>
{{ m.content }}
</tool_response>
{%- elif m.role == 'system' %}<|system|>
{{ m.content }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>
{%- if enable_thinking is defined and not enable_thinking %}<think></think>{% endif -%}
{%- endif -%}
"""

KIMI_K2 = """
{%- if tools %}<|im_system|>tool_declare<|im_middle|>{{ tools | tojson }}<|im_end|>{% endif -%}
{%- for m in messages -%}
{%- set role = m.get('name') or m.role -%}
{%- if m.role == 'user' %}<|im_user|>{{ role }}<|im_middle|>
{%- elif m.role == 'assistant' %}<|im_assistant|>{{ role }}<|im_middle|>
{%- else %}<|im_system|>{{ role }}<|im_middle|>{% endif -%}
{%- if m.role == 'assistant' and m.get('tool_calls') -%}
{{ m.content or '' }}<|tool_calls_section_begin|>
{%- for call in m.tool_calls -%}
<|tool_call_begin|>{{ call.id }}<|tool_call_argument_begin|>
{%- if call.function.arguments is string %}{{ call.function.arguments }}{% else %}{{ call.function.arguments | tojson }}
{%- endif %}<|tool_call_end|>
{%- endfor %}<|tool_calls_section_end|>
{%- elif m.role == 'tool' -%}
## Return of {{ m.tool_call_id }}
{{ m.content }}
{%- elif m.content is string -%}
{{ m.content }}
{%- endif %}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif -%}
"""

MINIMAX = """
{%- if messages[0].role == 'system' %}{% set first = messages[0].content %}{% set rest = messages[1:] -%}
{%- else %}{% set rest = messages %}{% endif -%}
]~!b[]~b]system
{{ first | default('You are a helpful assistant.') }}
{%- for tool in tools or [] %}
<tool>{{ tool.function | tojson }}</tool>{% endfor %}[e~[
{% set ns = namespace(called=false) -%}
{%- for m in rest -%}
{%- if m.role == 'assistant' -%}
]~b]ai
{% if m.reasoning_content %}<think>
{{ m.reasoning_content }}
</think>

{% endif %}{{ m.content }}
{%- if m.tool_calls %}
<minimax:tool_call>
{% for call in m.tool_calls %}<invoke name="{{ call.function.name }}">
{% for key, value in call.function.arguments.items() -%}
<parameter name="{{ key }}">{{ value if value is string else value | tojson }}</parameter>
{% endfor %}</invoke>
{% endfor %}</minimax:tool_call>{% set ns.called = true %}
{%- else %}{% set ns.called = false %}{% endif %}[e~[
{% elif m.role == 'tool' -%}
{%- if not ns.called -%}
{{ raise_exception('Message has tool role, but there was no previous assistant message with a tool call!') }}
{%- endif -%}
{%- if loop.first or rest[loop.index0 - 1].role != 'tool' %}]~b]tool{% endif %}
<response>{{ m.content }}</response>
{%- if loop.last or rest[loop.index0 + 1].role != 'tool' %}[e~[
{% endif -%}
{%- elif m.role == 'user' -%}
]~b]user
{{ m.content }}[e~[
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}]~b]ai
<think>
{% endif -%}
"""

GEMMA2 = """
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{%- for m in messages -%}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}
{{ m.content | trim }}<end_of_turn>
{% endfor -%}
{%- if add_generation_prompt %}<start_of_turn>model
{% endif -%}
"""

TEMPLATES: Mapping[str, str] = MappingProxyType(
    {
        "chatml": CHATML,
        "qwen3.5": QWEN35,
        "qwen3-coder": QWEN3_CODER,
        "mistral-nemo": NEMO,
        "mistral-small": MISTRAL_SMALL,
        "llama3.1": LLAMA31,
        "hermes3": HERMES3,
        "deepseek-v3.1": DEEPSEEK_V31,
        "gpt-oss": GPT_OSS,
        "glm4": GLM4,
        "kimi-k2": KIMI_K2,
        "minimax": MINIMAX,
        "gemma2": GEMMA2,
    }
)
"""By the names that tests use."""
REAL = ("qwen3", "llama3", "deepseek", "gemma3")
"""Names of `real_tokenizers` that bring a template."""


def make_prompter(folder: Path, template: str | None = None) -> Prompter:
    """Return the prompter of a model with the tokenizer in the folder, with its own template or another one."""
    tokenizer = tokenizer_utils.load(folder)
    if template is not None:
        tokenizer.chat_template = template
        tokenizer.has_chat_template = True
        tokenizer._tool_parser = tokenizer._tool_call_start = tokenizer._tool_call_end = None
    recognise_format(tokenizer)
    adopt_generic_tools(tokenizer)
    make = HarmonyPrompter if read_markers(tokenizer).controls else Prompter
    return make(tokenizer, vocab_size=len(tokenizer), context_length=32_768)
