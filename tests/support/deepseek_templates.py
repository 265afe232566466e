"""What the chat templates of DeepSeek V3, V3.1 and V3.2 do with tools and calls, in our own words."""

_TURNS = """
{{- bos_token -}}
{%- for message in messages if message.role == "system" -%}{{ message.content }}{{ "\\n\\n" }}{%- endfor -%}
{%- for tool in tools or [] %}
### {{ tool.function.name }}
{{ tool.function.description }}
{{ tool.function.parameters | tojson }}
{% endfor -%}
{%- if tools %}
Call them like this: CALLS
{% endif -%}
{%- for message in messages -%}
  {%- if message.role == "user" -%}<｜User｜>{{ message.content }}
  {%- elif message.role == "assistant" -%}<｜Assistant｜>{{ message.content or "" }}
    {%- if message.tool_calls -%}
      <｜tool▁calls▁begin｜>
      {%- for call in message.tool_calls -%}
        {%- set name = call.function.name -%}
        {%- set arguments = call.function.arguments | tojson -%}
        CALL
      {%- endfor -%}
      <｜tool▁calls▁end｜>
    {%- endif -%}<｜end▁of▁sentence｜>
  {%- elif message.role == "tool" -%}<｜tool▁output▁begin｜>{{ message.content }}<｜tool▁output▁end｜>
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<｜Assistant｜>{%- endif -%}
"""


def _template(before: str, after: str) -> str:
    """Return a template whose calls are written between these texts."""
    sketch = f"<｜tool▁calls▁begin｜>{before.replace('NAME', 'name')}{{}}{after}<｜tool▁calls▁end｜>"
    written = f"{{{{ '{before}'.replace('NAME', name) }}}}{{{{ arguments }}}}{{{{ '{after}' }}}}"
    return _TURNS.replace("CALLS", f"{{{{ '{sketch}' }}}}").replace("CALL", written)


V3_TEMPLATE = _template("<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\\n```json\\n", "\\n```<｜tool▁call▁end｜>")
V31_TEMPLATE = _template("<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>", "<｜tool▁call▁end｜>")
