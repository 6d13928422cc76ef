"""What a job lays down for its chat template, written into the template itself.

So every place that renders, the exported student's included, renders as the training did, and a program that passes a
variable of its own is still obeyed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from minillm_core.errors import UserError

Value = bool | int | float | str

# The line break is eaten by the block before it (`trim_blocks`), so that what follows begins a line as before.
_ARGUMENT = "{{% if {name} is not defined %}}{{% set {name} = {value} %}}{{% endif %}}\n"
_SYSTEM = (
    "{{% if not messages or messages[0]['role'] != 'system' %}}"
    "{{% set messages = [{{'role': 'system', 'content': {value}}}] + messages %}}{{% endif %}}\n"
)


def set_defaults(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Value], system_prompt: str | None = None
) -> None:
    """Give the tokenizer's chat template variables that it has where nobody passes them, and the first message of
    conversations that have no system message.

    Raises UserError ``template_unavailable`` for a variable that the template does not read. A tokenizer without a
    chat template stays as it is.
    """
    if not tokenizer.chat_template:
        return
    own = str(tokenizer.get_chat_template())
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", own):
            raise UserError(
                "template_unavailable",
                f"the chat template of the model's tokenizer reads no variable {name}",
                param=f"/dataset/template_arguments/{name}",
            )
    written = [_ARGUMENT.format(name=name, value=_literal(value)) for name, value in arguments.items()]
    if system_prompt is not None:
        written.append(_SYSTEM.format(value=_literal(system_prompt)))
    if written:
        tokenizer.chat_template = "".join(written) + own


def _literal(value: Value) -> str:
    # Jinja reads these of JSON as they are; characters beyond ASCII are left, whose escapes it has by halves.
    return json.dumps(value, ensure_ascii=False)
