"""What a chat template takes as it comes, and what has to be brought into another form. Data alone.

`template_probe` finds it out, `arrangement` goes by it.
"""

import re
from typing import Literal

import msgspec

CallText = Literal["beside", "before", "apart"]
CallIds = Literal["any", "plain", "named"]


class TemplateTraits(msgspec.Struct, frozen=True, kw_only=True):
    """How a template takes a conversation; the defaults take everything as it comes.

    - `system`, `systems_in_row`, `system_anywhere`: a system message in front, several of them, one further behind.
    - `users_in_row`, `assistants_in_row`, `assistant_first`, `user_absent`: orders besides strict turns.
    - `filler`: what stands where a message says nothing.
    - `tools`: it shows the tools of a request.
    - `calls`: calls and results have a form of their own; else they are text.
    - `mapped_arguments`: arguments of calls as a mapping, not as JSON; `text_arguments`: also what is no object.
    - `call_ids`: any; `plain`: of nine letters and digits; `named`: with the function's name in them.
    - `call_content`: what stands for no content beside calls.
    - `call_text`: content of a message with calls stays beside them, or goes before them in a message of its own
      (`apart`: with an empty user message between).
    - `parallel_calls`: several calls in one message.
    - `user_after_calls`: a user may speak where the assistant's answer is due; else an empty one is put there.
    - `lone_results`: results without their call.
    - `thoughts`: earlier thoughts beside an answer or calls; whether it shows them is its own affair.
    - `images_in_results`: it shows images of tools.
    - `variables`: what it reads besides messages and tools.
    """

    system: bool = True
    systems_in_row: bool = True
    system_anywhere: bool = True
    users_in_row: bool = True
    assistants_in_row: bool = True
    assistant_first: bool = True
    user_absent: bool = True
    filler: str = ""
    tools: bool = True
    calls: bool = True
    mapped_arguments: bool = True
    text_arguments: bool = True
    call_ids: CallIds = "any"
    call_content: str | None = ""
    call_text: CallText = "beside"
    parallel_calls: bool = True
    user_after_calls: bool = True
    lone_results: bool = True
    thoughts: bool = True
    images_in_results: bool = False
    variables: frozenset[str] = frozenset()

    def in_plain_turns(self) -> "TemplateTraits":
        """Return the same for what nearly any template takes: users and assistants in turn, calls as text."""
        return msgspec.structs.replace(
            self,
            system_anywhere=False,
            systems_in_row=False,
            users_in_row=False,
            assistants_in_row=False,
            assistant_first=False,
            user_absent=False,
            filler=self.filler or " ",
            calls=False,
            thoughts=False,
            images_in_results=False,
        )


PLAIN_ID = re.compile(r"[a-zA-Z0-9]{9}")
"""The form of Mistral's ids: the only one that some templates take."""
NAMED_ID = "functions.{name}:{number}"
"""The form of Kimi's ids: calls are counted through the conversation."""
