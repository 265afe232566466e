"""What gpt-oss's chat template does, in our own words: its tokenizer comes without one.

It is as particular as the real one. It takes thoughts or content beside a call and not both, writes a message's first
call alone, drops thoughts once an answer followed them, names results after the last call, and leaves out what it does
not know: system messages that are not the first, further calls.
"""

HARMONY_TEMPLATE = """
{%- macro ts_type(spec) -%}
  {%- if spec.enum is defined -%}
    {%- for value in spec.enum -%}{{ value | tojson }}{{ " | " if not loop.last }}{%- endfor -%}
  {%- elif spec.type == "array" -%}{{ ts_type(spec["items"] or {}) }}[]
  {%- elif spec.type == "object" and spec.properties -%}{{ ts_object(spec) }}
  {%- elif spec.type in ["string", "number", "boolean"] -%}{{ spec.type }}
  {%- elif spec.type == "integer" -%}number
  {%- else -%}any{%- endif -%}
{%- endmacro -%}
{%- macro ts_object(spec) -%}
{ {%- for name, part in spec.properties.items() %}
{% if part.description %}// {{ part.description }}
{% endif %}{{ name }}{{ "?" if name not in (spec.required or []) }}: {{ ts_type(part) }},
{%- endfor %}
}
{%- endmacro -%}
<|start|>system<|message|>{{ model_identity or "You are ChatGPT, a large language model trained by OpenAI." }}
Knowledge cutoff: 2024-06

Reasoning: {{ reasoning_effort or "medium" }}

# Valid channels: analysis, commentary, final. Channel must be included for every message.
{%- if tools %}
Calls to these tools must go to the commentary channel: 'functions'.
{%- endif %}<|end|>
{%- set head = namespace(text="") -%}
{%- set rest = messages -%}
{%- if messages[0].role in ["system", "developer"] -%}
  {%- set head.text = messages[0].content -%}{%- set rest = messages[1:] -%}
{%- endif -%}
{%- if head.text or tools -%}
<|start|>developer<|message|>
{%- if head.text %}# Instructions

{{ head.text }}

{% endif %}
{%- if tools %}# Tools

## functions

namespace functions {
{% for tool in tools %}
{% set function = tool.function or tool -%}
// {{ function.description }}
{% set spec = function.parameters or {} -%}
type {{ function.name }} = ({% if spec.properties %}_: {{ ts_object(spec) }}{% endif %}) => any;
{% endfor %}
} // namespace functions
{%- endif -%}<|end|>
{%- endif -%}
{%- set called = namespace(name=none) -%}
{%- for message in rest -%}
  {%- if message.role == "assistant" -%}
    {%- for key in ["content", "thinking"] -%}
      {%- set text = message[key] or "" -%}
      {%- if "<|channel|>analysis<|message|>" in text or "<|channel|>final<|message|>" in text -%}
        {{- raise_exception("Pass thoughts in 'thinking' and answers in 'content', without tags of channels.") -}}
      {%- endif -%}
    {%- endfor -%}
    {%- if "tool_calls" in message -%}
      {%- set later = namespace(answer=false) -%}
      {%- for other in rest[loop.index:] -%}
        {%- if other.role == "assistant" and "tool_calls" not in other -%}{%- set later.answer = true -%}{%- endif -%}
      {%- endfor -%}
      {%- set call = message.tool_calls[0].function or message.tool_calls[0] -%}
      {%- if message.content and message.thinking -%}
        {{- raise_exception("Both content and thinking in a message with calls.") -}}
      {%- elif (message.content or message.thinking) and not later.answer -%}
        {{- "<|start|>assistant<|channel|>analysis<|message|>" + (message.content or message.thinking) + "<|end|>" -}}
      {%- endif -%}
      {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" -}}
      {{- call.arguments | tojson -}}<|call|>
      {%- set called.name = call.name -%}
    {%- else -%}
      {%- if loop.last and not add_generation_prompt and message.thinking -%}
        {{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" -}}
      {%- endif -%}
      {{- "<|start|>assistant<|channel|>final<|message|>" + message.content -}}
      {{- "<|return|>" if loop.last and not add_generation_prompt else "<|end|>" -}}
      {%- set called.name = none -%}
    {%- endif -%}
  {%- elif message.role == "tool" -%}
    {%- if called.name is none -%}{{- raise_exception("A result, but no call before it.") -}}{%- endif -%}
    {{- "<|start|>functions." + called.name + " to=assistant<|channel|>commentary<|message|>" -}}
    {{- message.content | tojson -}}<|end|>
  {%- elif message.role == "user" -%}
    {{- "<|start|>user<|message|>" + message.content + "<|end|>" -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
"""
